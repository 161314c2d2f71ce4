"""How much of a prepared network computes on quantized numbers, and what does not, measured on one batch."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from spequant.calibration.batch_norm import modes_kept
from spequant.calibration.batches import run_model
from spequant.layers import OUTPUT, QuantizedAdd, QuantizedLayer, QuantizedProduct
from spequant.networks import QUANTIZABLE
from spequant.quantizers import Quantizer

PRODUCTS = "products of two activations"
"""Attention's q k and p v, and gates made of matrices."""


@dataclass(frozen=True)
class Coverage:
    """layers, products: with both sides quantized; additions: quantized addends of residual additions;
    share: of the multiply-accumulates that are between quantized numbers, 0 to 1; in_float: {what: share of them}."""

    layers: int
    additions: int
    products: int
    share: float
    in_float: dict[str, float]


@torch.no_grad()
def coverage(model: nn.Module, batch: Any, run: Callable[[nn.Module, Any], Any] = run_model) -> Coverage:
    """What of a prepared and calibrated `model` is quantized when it runs on `batch`, in eval mode.

    batch, run: as in `calibrate`. Counted are convolutions, matrix products and fused attention; what is float for its
    own sake (normalisation, softmax, activation functions, pooling) multiplies nothing by weights and is not.
    ValueError: the model ran none of these.
    """
    with modes_kept(model), _Counter(model) as counter:
        model.eval()
        run(model, batch)
    total = sum(counter.counts.values())
    if not total:
        raise ValueError("model ran no convolution and no matrix product on this batch; there is nothing to cover")
    in_float = Counter({why: count for why, count in counter.counts.items() if why is not None})
    modules = list(model.modules())
    adds = sum(2 for m in modules if isinstance(m, QuantizedAdd)) + sum(OUTPUT in m._modules for m in modules)
    return Coverage(
        sum(isinstance(m, QuantizedLayer) and _quantized(m) for m in modules),
        adds,
        sum(isinstance(m, QuantizedProduct) for m in modules),
        counter.counts[None] / total,
        {why: count / total for why, count in in_float.most_common()},
    )


def _recurrent(x: Tensor, first: Tensor, second: Tensor, *_: Any, **__: Any) -> int:
    """One layer and direction of an LSTM over all steps; x (..., inputs)."""
    return 2 * (x.numel() // x.shape[-1]) * (first.numel() + second.numel())


OTHERS: dict[str, Callable[..., int]] = {
    "mkldnn_rnn_layer": _recurrent,
    "mv": lambda matrix, vector, **_: 2 * matrix.numel(),
    "addmv": lambda own, matrix, vector, **_: 2 * matrix.numel(),
    "_trilinear": lambda first, weight, second, *_, **__: 2 * (first.numel() // first.shape[-1]) * weight.numel(),
    "_grouped_mm": lambda a, b, *_, **__: 2 * a.numel() * b.shape[-1],
}
"""Floating-point operations of what torch's own table lacks, by the operation's name."""


class _Counter(TorchDispatchMode):
    """counts: floating-point operations by why they are float; None: between quantized numbers."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.stack, self.counts = model, [], Counter()
        self.fixed: dict[int, Tensor] = {
            _place(p): p for p in model.parameters()
        }  # parameters, and what is made of them

    def __enter__(self) -> Self:
        self.handles = []
        for module in self.model.modules():
            self.handles.append(module.register_forward_pre_hook(lambda m, args: self.stack.append(m)))
            self.handles.append(module.register_forward_hook(lambda m, args, out: self._leave(), always_call=True))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self.handles:
            handle.remove()

    def _of_two(self, func: Any, args: Any) -> bool:
        """Whether it multiplies two activations: batches of matrices, none of them a parameter."""
        product = "bmm" in str(func) or "attention" in str(func)
        return product and not any(_place(x) in self.fixed for x in tree_leaves(args) if isinstance(x, Tensor))

    def _follow(self, args: Any, out: Any) -> None:
        """What is made of parameters alone, as when one is laid out anew for a product; kept, so that no activation
        takes its place in memory."""
        given = [x for x in tree_leaves(args) if isinstance(x, Tensor)]
        if given and all(_place(x) in self.fixed for x in given):
            self.fixed |= {_place(x): x for x in tree_leaves(out) if isinstance(x, Tensor)}

    def _leave(self) -> None:  # a hook that returned the module would replace the output by it
        self.stack.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not any(isinstance(m, QuantizedLayer) for m in self.stack):
            self._follow(args, out)
        count = flop_registry.get(func.overloadpacket) or OTHERS.get(func.overloadpacket.__name__)
        if count is not None and self.stack and not isinstance(self.stack[-1], Quantizer):  # how a range is found
            why = None if any(_quantized(m) for m in self.stack) else _why(self.stack, self._of_two(func, args))
            self.counts[why] += count(*args, **(kwargs or {}), out_val=out)
        return out


def _place(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _quantized(module: nn.Module) -> bool:
    both = isinstance(module, QuantizedLayer) and None not in (module.weight_quantizer, module.act_quantizer)
    return both or isinstance(module, QuantizedProduct)


def _why(running: list[nn.Module], of_two: bool) -> str:
    """running: the modules that run, the innermost last. of_two: two activations are multiplied."""
    module = running[-1]
    if any(isinstance(m, QuantizedLayer) for m in running):
        return "layers with one side float"
    if isinstance(module, QUANTIZABLE):
        return "layers left float"
    if of_two:
        return PRODUCTS
    return f"{type(module).__name__}: weights that are no layer's"
