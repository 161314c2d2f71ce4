"""From a recipe's strings to objects: data, networks with their weights, quantizers and their ranges."""

from dataclasses import replace

import pytest
import torch

from spequant.app.recipes import RECIPES
from spequant.app.recipes.build import build_augment, build_data, build_network, build_quantized, calibrated, with_seed
from spequant.app.recipes.schema import Data, Network, Quantization
from spequant.data import Augment, eval_batches, load_digits
from spequant.layers import act_quantizers, weight_quantizers
from spequant.models import CifarResNet, resnet8
from spequant.quantizers import PACT

CPU = torch.device("cpu")


def small() -> CifarResNet:
    return CifarResNet(1, in_channels=1, widths=(8, 8, 16))


def test_quantizers_are_the_recipes():
    train, _ = load_digits()
    batches = list(eval_batches(train.part(slice(0, 128)), 64))
    choice = Quantization(weight="lsq", weight_bits=3, act="minmax", act_bits=4, end_bits=7, residual_bits=6)
    model = calibrated(small(), choice, batches)
    bits = {name: q.bits for name, q in act_quantizers(model).items()}
    assert bits["conv1"] == bits["linear"] == 7 and bits["layer1.0.conv2"] == 4 and bits["layer1.0.add.branch"] == 6
    assert {type(q).__name__ for q in weight_quantizers(model).values()} == {"LSQ"}
    channels = build_quantized(resnet8(), replace(choice, per_channel=True))
    assert {q.shape for q in weight_quantizers(channels).values()} == {
        (16, 1, 1, 1),
        (32, 1, 1, 1),
        (64, 1, 1, 1),
        (10, 1),
    }
    float_ends = build_quantized(resnet8(), replace(choice, end_bits=None, residual_bits=None))
    assert "conv1" not in act_quantizers(float_ends) and "layer1.0.add.branch" not in act_quantizers(float_ends)
    network = small()
    assert calibrated(network, Quantization(weight_bits=None, act_bits=None), batches) is network


def test_clips_are_at_the_recipes_percentile():
    train, _ = load_digits()
    batches = list(eval_batches(train.part(slice(0, 128)), 128))
    network, clip = small(), {}
    for p in (None, 50.0, 99.0):
        model = calibrated(network, Quantization(percentile=p), batches)
        clip[p] = float(act_quantizers(model)["linear"].clip.detach())
    assert clip[50.0] < clip[99.0] and clip[None] not in (clip[50.0], clip[99.0])


def test_the_penalty_on_clips_comes_from_the_recipe():
    choice = replace(RECIPES["digits-w2a2-speq"]().quant, act_decay=0.5)
    model = build_quantized(small(), choice)
    decays = {(q.bits, q.decay) for q in act_quantizers(model).values() if isinstance(q, PACT)}
    assert decays == {(2, 0.5), (8, 2e-4)}  # ends and addends keep their own
    assert build_quantized(small(), replace(choice, act="lsq"))


def test_the_backward_of_weights_and_activations_is_scaled_where_the_recipe_says_so():
    plain, scaled = (build_quantized(small(), Quantization("lsq", act="lsq", ewgs=d)) for d in (0.0, 0.5))
    for found, d in ((plain, 0.0), (scaled, 0.5)):
        quantizers = [*weight_quantizers(found).values(), *act_quantizers(found).values()]
        assert {q.ewgs for q in quantizers} == {d}


def test_bits_of_single_layers():
    texts = ("layer*=3/4", "layer2.0.conv1=8", "layer3.*=float/2", "linear=4", "conv1=float", "layer1.0.conv1=5/float")
    model = build_quantized(small(), Quantization(overrides=texts))
    act = {name: q.bits for name, q in act_quantizers(model).items()}
    weight = {name: q.bits for name, q in weight_quantizers(model).items()}
    assert "conv1" not in act and "conv1" not in weight and (weight["linear"], act["linear"]) == (4, 4)
    assert (weight["layer1.0.conv2"], act["layer1.0.conv2"]) == (3, 4)
    assert (weight["layer2.0.conv1"], act["layer2.0.conv1"]) == (8, 8)
    assert "layer3.0.conv1" not in weight and act["layer3.0.conv1"] == 2
    assert weight["layer1.0.conv1"] == 5 and "layer1.0.conv1" not in act
    assert {type(q).__name__ for n, q in act_quantizers(model).items() if n.startswith("layer2")} == {"PACT"}
    with pytest.raises(ValueError, match="'conv9' matches no layer"):
        build_quantized(small(), Quantization(overrides=("conv9=3",)))


def test_held_out_images_lie_behind_the_ones_to_train_on():
    everything, _ = load_digits()
    few = Data("digits", images=100, held_out=50, augment=False)
    train, held, test = build_data(few, CPU)
    assert torch.equal(train.images, everything.images[:100]) and (len(held), len(test)) == (50, 500)
    behind = {image.numpy().tobytes() for image in everything.images[100:]}
    assert all(image.numpy().tobytes() in behind for image in held.images)
    rest, held, _ = build_data(replace(few, images=None), CPU)
    assert (len(rest), len(held)) == (1247, 50)
    assert build_data(replace(few, held_out=0), CPU)[1] is None
    assert build_augment(few, train) is None and build_augment(Data("digits"), train) == Augment()


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (Data("digits", held_out=9999), "held_out is 9999; expected 0 to 1296"),
        (Data("digits", held_out=0, images=1298), r"data\.images is 1298; expected 1 to 1297"),
        (Data("digits", held_out=300, images=1000), r"data\.images is 1000 and data\.held_out 300; expected 1297"),
        (Data("squad", held_out=0, augment=True), r"data\.name is 'squad'"),
        (Data("cifar10"), r"data\.root is not set; .*CIFAR-10.*SPEQUANT_DATA"),
        (Data("folder"), r"data\.root is not set; .*--data\.root"),
    ],
)
def test_data_that_are_not_there_are_named(data, named, monkeypatch):
    monkeypatch.delenv("SPEQUANT_DATA", raising=False)
    with pytest.raises(ValueError, match=named):
        build_data(data, CPU)


def test_weights_of_other_classes_ask_for_a_new_head(tmp_path):
    from safetensors.torch import save_file

    train, _ = load_digits()
    known = resnet8(classes=7, in_channels=1)
    save_file(known.state_dict(), tmp_path / "seven.safetensors")
    choice = Network("resnet8", weights=tmp_path / "seven.safetensors")
    with pytest.raises(ValueError, match=r"size mismatch.* 10 classes.*--network.new-head"):
        build_network(choice, train)
    made = build_network(replace(choice, new_head=True), train)
    assert torch.equal(made.conv1.weight, known.conv1.weight) and made.linear.weight.shape[0] == 10


def test_a_network_starts_from_the_weights_of_a_run(digits_run):
    """Of a low-bit one from those before rounding."""
    train, _ = load_digits()
    low = build_network(Network("resnet8", weights=digits_run), train)
    start = build_network(Network("resnet8", weights=digits_run.parent / "digits-float"), train)
    assert type(low) is type(start) and low.state_dict().keys() == start.state_dict().keys()
    assert len(low.conv1.weight.unique()) > 100 and not torch.equal(low.conv1.weight, start.conv1.weight)


def test_a_seed_is_the_trainings():
    recipe = RECIPES["digits-float"]()
    assert with_seed(recipe, 7) == replace(recipe, train=replace(recipe.train, seed=7))
