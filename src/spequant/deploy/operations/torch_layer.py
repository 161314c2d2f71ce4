"""How torch's linear layers and convolutions are read: as layers on what is put around their inputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from spequant.deploy.operations.layer import Form, Weighted, layer_of, product
from spequant.deploy.operations.operation import Operation, Read, Step
from spequant.deploy.operations.slicing import Pad, wrapped
from spequant.deploy.operations.transposed import Transposed
from spequant.deploy.operations.windows import grown, joined, last_window, sides
from spequant.layers import QuantizedLayer, effective_weight, run_with
from spequant.networks import QUANTIZABLE, TRANSPOSED

PADDINGS = ("circular", "reflect", "replicate")
"""Values of padding_mode, besides "zeros"."""


def layer_attributes(module: nn.Module, shape: tuple[int, ...] = (), result: tuple[int, ...] = ()) -> dict[str, Any]:
    """Stride, padding, dilation and groups of a convolution; nothing of a linear layer. shape, result: of its input
    and output, by which a subclass with a forward of its own is tried.

    ValueError: neither, or computed in another way than torch's own layers.
    """
    layer = module.layer if isinstance(module, QuantizedLayer) else module
    plain = next((k for k in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d) if isinstance(layer, k)), None)
    if plain is None:
        raise ValueError(f"{type(layer).__name__} has no integer form; spequant.deploy.export_mixed takes it")
    if plain is nn.Linear:
        if type(layer).forward is not plain.forward:
            _tried(layer, shape, [{}])
        return {}
    conv: Any = layer
    form = {"stride": conv.stride, "padding": _own_padding(conv), "dilation": conv.dilation, "groups": conv.groups}
    if type(layer).forward is plain.forward:
        return form
    window = zip(shape[2:], conv.kernel_size, conv.stride, conv.dilation, result[2:], strict=False)
    total = [max(0, last_window(n, (k - 1) * d + 1, s, 0, out)) for n, k, s, d, out in window]
    before = [t // 2 for t in total]
    after = [t - b for t, b in zip(total, before, strict=True)]
    return _tried(layer, shape, [form, {**form, "padding": joined(before, after)}])


def _own_padding(conv: Any) -> tuple[int, ...]:
    if conv.padding_mode not in ("zeros", *PADDINGS):
        raise ValueError(
            f"padding_mode {conv.padding_mode!r} has no integer form; expected zeros, {', '.join(PADDINGS)}"
        )
    if not isinstance(conv.padding, str):
        return conv.padding
    total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    before = [t // 2 if conv.padding == "same" else 0 for t in total]
    return joined(before, [t - b if conv.padding == "same" else 0 for t, b in zip(total, before, strict=True)])


@torch.no_grad()
def _tried(layer: Any, shape: tuple[int, ...], forms: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of `forms`, the one by which a subclass with a forward of its own computes. ValueError: none."""
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(size, generator=generator) for size in (effective_weight(layer).shape, shape or (1,)))
    weight, x = (t.to(layer.weight.device) for t in (weight, x))
    for form in forms if shape else ():
        try:
            expected, got = run_with(layer, weight, x.clone()), product(Form(**form), x, weight, layer.bias)
        except RuntimeError:  # of shapes that do not fit
            continue
        if expected.shape == got.shape and torch.allclose(expected, got, rtol=1e-4, atol=1e-4 * float(got.std())):
            return form
    raise ValueError(
        f"{type(layer).__name__} has no integer form: its own forward computes otherwise than torch's layer does; "
        "spequant.deploy.export_mixed takes it"
    )


def _bordered(source: Step, padding: tuple[int, ...], mode: str, name: str) -> Step:
    """`source` with its own numbers around it."""
    before, after = sides(padding, len(source.shape) - 2)
    if mode == "circular":
        return wrapped(source, [(0, 0), (0, 0), *zip(before, after, strict=True)], name)
    sizes = (n + a + b for n, a, b in zip(source.shape[2:], before, after, strict=True))
    shape = (*source.shape[:2], *sizes)
    return Step(name, Pad, (source,), shape, {"before": (0, *before), "after": (0, *after), "mode": mode, "value": 0.0})


@dataclass(eq=False)
class Layer(Operation):
    """A layer of torch, or a subclass that computes as it. In no program: `Weighted` and `FloatLayer` are."""

    WORD = "layer"
    MODULES: ClassVar[dict[type, Read]] = dict.fromkeys((QuantizedLayer, *QUANTIZABLE), lambda module: {})

    @classmethod
    def settled(cls, step: Step) -> Step:
        """With the zeros that are put around its input before it."""
        if isinstance(layer_of(step), TRANSPOSED):
            return Step(step.name, Transposed, step.inputs, step.shape, {}, step.module)
        source, form = step.inputs[0], layer_attributes(step.module, step.inputs[0].shape, step.shape)  # type: ignore[arg-type]
        spatial = len(form.get("stride", ()))
        if spatial and len(source.shape) != spatial + 2:
            raise ValueError(f"inputs of {len(source.shape)} dimensions have no form here; expected {spatial + 2}")
        mode = getattr(layer_of(step), "padding_mode", "zeros")
        if mode in PADDINGS and any(form["padding"]):
            source, form["padding"] = _bordered(source, form["padding"], mode, step.name), (0,) * spatial
        elif spatial and (margins := source.kind.margins(source)) is not None:
            source, form["padding"] = source.inputs[0], grown(form["padding"], margins)
        return Step(step.name, Weighted, (source,), step.shape, form, step.module)
