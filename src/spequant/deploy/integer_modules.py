"""Quantized linear layers and products as modules of ONNX's integer operations, for torch's exporter to write."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spequant.deploy.grids import Grid, act_grid, weight_grid
from spequant.deploy.integers import PAIR, check_sum, largest_sums
from spequant.deploy.onnx_versions import TRACED
from spequant.deploy.operations.torch_layer import layer_attributes
from spequant.layers import OUTPUT, QuantizedLayer, QuantizedProduct, quantize_output, run_with
from spequant.preparation.adapters.products import Product
from spequant.quantizers import Quantizer


class CodesOf(nn.Module):
    """An activation quantizer: the values of codes. x of any shape, float."""

    rate: Tensor
    unit: Tensor
    step: Tensor
    zero: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, quantizer: Quantizer):
        super().__init__()
        self.grid: Grid = act_grid(quantizer)
        low, high = self.grid.low + self.grid.zero, self.grid.high + self.grid.zero
        self.clips = (low, high) != (0, 255)
        numbers = {"rate": self.grid.rate, "unit": 1.0, "step": self.grid.step}
        for name, number in numbers.items():
            self.register_buffer(name, torch.tensor(number, dtype=torch.float32))
        for name, code in {"zero": self.grid.zero, "low": low, "high": high}.items():
            self.register_buffer(name, torch.tensor(code, dtype=torch.uint8))

    def codes(self, x: Tensor) -> Tensor:
        """As graphs store them: uint8. x * rate, as fake quantization has it, not x / step."""
        out = _node("QuantizeLinear", (x * self.rate, self.unit, self.zero), torch.uint8, x.shape)
        return _node("Clip", (out, self.low, self.high), torch.uint8, x.shape) if self.clips else out

    def forward(self, x: Tensor) -> Tensor:
        """In float: behind QuantizeLinear and DequantizeLinear onnxruntime quantizes the weights of float convolutions,
        coarsely and unasked."""
        return (x * self.rate).round().clamp(self.grid.low, self.grid.high) * self.step


class IntegerModule(nn.Module):
    """Sums of integers, exact, scaled to float at the end.

    saturates: whether a sum of two products may pass 16 bits, to which some processors without VNNI clip it.
    """

    saturates = False


class _InPlace(nn.Module):
    """What stands where a layer was: its other attributes (kernel_size, out_features ...) are the layer's."""

    source: nn.Module | None = None

    def stand_for(self, layer: nn.Module) -> None:
        self.__dict__["source"] = layer  # no module of this one: its weight is not exported

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if self.source is None:
                raise
            return getattr(self.source, name)


class IntegerLayer(_InPlace, IntegerModule):
    """A linear layer, weight and input quantized: (..., inputs) -> (..., outputs). largest: of its sums, in magnitude.

    ValueError: another kind of layer, or codes that int8 does not hold.
    """

    codes: Tensor
    codes_zero: Tensor
    scale: Tensor
    offset: Tensor | None

    def __init__(self, layer: QuantizedLayer, name: str):
        super().__init__()
        assert layer.act_quantizer is not None
        wrapped: Any = layer.layer
        if layer_attributes(wrapped):
            raise ValueError(f"{name} is a {type(wrapped).__name__}; expected a linear layer")
        self.act = CodesOf(layer.act_quantizer)
        codes, scale = weight_grid(layer)
        largest = self.act.grid.high + self.act.grid.zero
        self.saturates = 2 * largest * int(codes.abs().max()) > PAIR
        self.largest = int(largest_sums(codes, self.act.grid.low, self.act.grid.high).max())
        self.register_buffer("codes", codes.to(torch.int8).t().contiguous())
        self.register_buffer("codes_zero", torch.tensor(0, dtype=torch.int8))
        self.register_buffer("scale", (scale * self.act.grid.step).float())
        self.register_buffer("offset", None if wrapped.bias is None else wrapped.bias.detach())
        self.stand_for(wrapped)

    def forward(self, x: Tensor) -> Tensor:
        inputs = self.act.codes(x), self.codes, self.act.zero, self.codes_zero
        sums = _node("MatMulInteger", inputs, torch.int32, (*x.shape[:-1], self.codes.shape[1]))
        out = sums.float() * self.scale
        return out if self.offset is None else out + self.offset


class IntegerProduct(IntegerModule):
    """A product of two activations, both quantized: (..., n, k), (..., k, m) -> (..., n, m). largest: of its products
    of two codes, in magnitude."""

    scale: Tensor

    def __init__(self, product: QuantizedProduct):
        super().__init__()
        self.left, self.right = CodesOf(product.left_quantizer), CodesOf(product.right_quantizer)
        left, right = ((code.grid.low, code.grid.high) for code in (self.left, self.right))
        self.largest = max(abs(a * b) for a in left for b in right)
        self.register_buffer("scale", (self.left.step.double() * self.right.step.double()).float())

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        inputs = self.left.codes(left), self.right.codes(right), self.left.zero, self.right.zero
        return _node("MatMulInteger", inputs, torch.int32, (*left.shape[:-1], right.shape[-1])).float() * self.scale


class IntegerEmbedding(_InPlace, IntegerModule):
    """A quantized table: int8 codes are looked up, and scaled. indices (...) -> (..., width)."""

    codes: Tensor
    scale: Tensor

    def __init__(self, layer: QuantizedLayer):
        super().__init__()
        codes, scale = weight_grid(layer)
        self.by_row = bool((scale[scale > 0] != scale.max()).any())
        self.register_buffer("codes", torch.where(scale[:, None] > 0, codes, 0).to(torch.int8))
        self.register_buffer("scale", (scale[:, None] if self.by_row else scale.max()).float())
        self.stand_for(layer.layer)

    def forward(self, indices: Tensor) -> Tensor:
        shape = (*indices.shape, self.codes.shape[1])
        codes = _node("Gather", (self.codes, indices), torch.int8, shape, {"axis": 0})
        return codes.float() * (self.scale[indices] if self.by_row else self.scale)


class Simulated(_InPlace):
    """Any other quantized layer: float arithmetic on the values of its input's codes and of its weight's.

    So convolutions too: between float values onnxruntime's ConvInteger made ResNet-18 and ConvNeXt 3.6 and 4.5 times
    slower than they are in float, and weights kept as int8 1.4 and 1.7 times.
    """

    weight: Tensor

    def __init__(self, layer: QuantizedLayer):
        super().__init__()
        self.layer = layer.layer
        self.act = None if layer.act_quantizer is None else CodesOf(layer.act_quantizer)
        with torch.no_grad():
            weight = layer.float_weight
            weight = weight if layer.weight_quantizer is None else layer.weight_quantizer(weight)
        self.register_buffer("weight", weight.detach())
        self.stand_for(layer.layer)

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        input = input if self.act is None else self.act(input)
        return run_with(self.layer, self.weight, input, *args, **kwargs)


@contextmanager
def summands(model: nn.Module) -> Iterator[dict[str, int]]:
    """Inside, forwards leave here how many numbers each quantized product of `model` sums, by its name."""
    lengths: dict[str, int] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, QuantizedProduct):

            def note(_: nn.Module, sides: tuple[Tensor, ...], side: str = name) -> None:
                lengths[side] = max(lengths.get(side, 0), sides[0].shape[-1])

            hooks.append(module.register_forward_pre_hook(note))
    try:
        yield lengths
    finally:
        for hook in hooks:
            hook.remove()


def integer_form(model: nn.Module, lengths: Mapping[str, int]) -> None:
    """Replace, in place, every quantized layer, product and quantizer below the prepared `model`, at each place where
    it stands. lengths: how many numbers are summed in each product.

    ValueError: an activation quantizer that is no grid; sums of products that int32 does not hold.
    """
    _below(model, "", lengths, {})


def _below(model: nn.Module, above: str, lengths: Mapping[str, int], seen: dict[int, Any]) -> None:
    """seen: {id of a module: (it, what takes its place)}; a module may stand in several."""
    for child_name, child in list(model._modules.items()):
        if child is None:
            continue
        if id(child) not in seen:
            substitute = _integers(child, above + child_name, lengths)
            seen[id(child)] = child, child if substitute is None else substitute
            if substitute is None:
                _below(child, f"{above}{child_name}.", lengths, seen)
            else:
                _put(model, child_name, substitute)
        elif seen[id(child)][1] is not child:
            setattr(model, child_name, seen[id(child)][1])


def _integers(module: nn.Module, name: str, lengths: Mapping[str, int]) -> nn.Module | None:
    """What computes as `module` on integers; None: it has to be looked into."""
    if isinstance(module, QuantizedLayer):
        return _layer(module, name)
    if isinstance(module, QuantizedProduct) and type(module.product) is Product:
        product = IntegerProduct(module)
        check_sum(name, lengths.get(name, 0) * product.largest)
        return product
    return CodesOf(module) if isinstance(module, Quantizer) else None


def _put(model: nn.Module, name: str, new: nn.Module) -> None:
    """`new` in the place of the module that is there, whose output may be an addend with a quantizer."""
    quantizer = getattr(model, name)._modules.get(OUTPUT)
    setattr(model, name, new)
    if quantizer is not None:
        quantize_output(new, CodesOf(quantizer))


def _layer(layer: QuantizedLayer, name: str) -> nn.Module:
    if type(layer.layer) is nn.Embedding and layer.weight_quantizer is not None:
        try:
            return IntegerEmbedding(layer)
        except ValueError:
            return Simulated(layer)
    if layer.act_quantizer is None or layer.weight_quantizer is None:
        return Simulated(layer)
    try:
        integers = IntegerLayer(layer, name)
    except ValueError:
        act_grid(layer.act_quantizer)  # which `Simulated` needs as well
        return Simulated(layer)
    check_sum(name, integers.largest)
    return integers


def _node(kind: str, inputs: tuple[Any, ...], dtype: torch.dtype, shape: Any, attributes: Any = None) -> Tensor:
    return torch.onnx.ops.symbolic(kind, inputs, attributes or {}, dtype=dtype, shape=shape, version=TRACED)
