"""Networks whose arithmetic on codes is exact in torch, too, sums of fp32 included: every number is a small multiple of
a power of two, so that an integer program has to give the very same codes, ties among them."""

import torch
from torch import Tensor, nn

import spequant
from spequant.layers import QuantizedLayer, act_quantizers, weight_quantizers
from spequant.quantizers.held import Held

ACT, WEIGHT = Held(4, levels=9), Held(8, levels=129, signed=True)
BETWEEN = Held(8, levels=65)


def exact(network: nn.Module, x: Tensor, residual: bool = False, between: bool = False) -> nn.Module:
    """`network` prepared, its weights and biases on their grids; x: what it is calibrated on."""
    options = {"residual": ACT if residual else None, "between": BETWEEN if between else None}
    model = spequant.prepare(network, weight=WEIGHT, act=ACT, ends=(WEIGHT, ACT), **options)
    spequant.calibrate(model, [x], samples=len(x), reestimate=False)
    with torch.no_grad():
        for q in act_quantizers(model).values():
            q.set_clip(torch.tensor(2.0))
        for q in weight_quantizers(model).values():
            q.set_clip(torch.tensor(1.0))
        for layer in (m.layer for m in model.modules() if isinstance(m, QuantizedLayer)):
            layer.weight.copy_(torch.randint(-64, 65, layer.weight.shape) / 64)
            layer.weight.view(-1)[0] = 1.0
            layer.bias.copy_(torch.randint(-8, 9, layer.bias.shape) / 16)
    return model.eval()


def codes_read(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """{layer: codes around zero that it reads}, of a forward of an `exact` model on a copy of `x`."""
    found: dict[str, Tensor] = {}

    def keep(layer: QuantizedLayer, args: tuple[Tensor, ...], name: str) -> None:
        q = layer.act_quantizer
        assert q is not None
        low, high = q.bounds(args[0])
        found[name] = (q(args[0]) * (q.levels - 1) / (high - low)).round().int()

    hooks = [
        m.register_forward_pre_hook(lambda layer, args, name=name: keep(layer, args, name))
        for name, m in model.named_modules()
        if isinstance(m, QuantizedLayer)
    ]
    try:
        with torch.no_grad():
            model(x.clone())
    finally:
        for hook in hooks:
            hook.remove()
    return found
