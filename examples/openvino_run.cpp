// Run an exported network in C++: one file of uint8 images, one class a line.
//
//   openvino_run model.xml images.bin       of `spequant export RUN --to openvino --preprocessing`
//
// images.bin: the images' bytes one after the other, each channels x height x width.

#include <algorithm>
#include <fstream>
#include <iostream>
#include <iterator>
#include <vector>

#include <openvino/openvino.hpp>

int main(int argc, char** argv) {
    if (argc != 3) {
        std::cerr << "usage: openvino_run model.xml images.bin\n";
        return 2;
    }
    ov::Core core;
    auto network = core.compile_model(argv[1], "CPU", ov::inference_num_threads(1));
    std::ifstream file(argv[2], std::ios::binary);
    std::vector<uint8_t> bytes((std::istreambuf_iterator<char>(file)), {});

    auto shape = network.input().get_partial_shape();
    size_t image = 1;
    for (size_t axis = 1; axis < shape.size(); ++axis) image *= shape[axis].get_length();
    if (bytes.empty() || bytes.size() % image) {
        std::cerr << argv[2] << " has " << bytes.size() << " bytes; expected a multiple of " << image << "\n";
        return 1;
    }
    shape[0] = bytes.size() / image;

    auto request = network.create_infer_request();
    request.set_input_tensor(ov::Tensor(ov::element::u8, shape.to_shape(), bytes.data()));
    request.infer();
    auto logits = request.get_output_tensor();
    size_t classes = logits.get_shape()[1];
    const float* row = logits.data<float>();
    for (size_t i = 0; i < logits.get_shape()[0]; ++i, row += classes)
        std::cout << std::max_element(row, row + classes) - row << "\n";
}
