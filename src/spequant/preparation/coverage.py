"""How much of a prepared network computes on quantized numbers, and which parts do not, measured on one batch."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from spequant.calibration.batches import modes_kept, run_model
from spequant.layers import OUTPUT, QuantizedAdd, QuantizedLayer, QuantizedProduct
from spequant.networks import QUANTIZABLE
from spequant.quantizers import Quantizer

PRODUCTS = "products of two activations"
"""The entry of `Coverage.in_float` for attention's q k and p v, and for gates that multiply matrices."""


@dataclass(frozen=True)
class Coverage:
    """What of a network is quantized when it runs.

    Attributes:
        layers: Number of layers with quantized weight and input.
        additions: Number of quantized addends of residual additions.
        products: Number of products with both factors quantized.
        share: Share of the multiply-accumulates that multiply two quantized numbers, 0 to 1.
        in_float: {why they are float: share of the multiply-accumulates}, the largest first; 1 in all with `share`.
    """

    layers: int
    additions: int
    products: int
    share: float
    in_float: dict[str, float]


@torch.no_grad()
def coverage(model: nn.Module, batch: Any, run: Callable[[nn.Module, Any], Any] = run_model) -> Coverage:
    """Measure what of a prepared and calibrated `model` is quantized when it runs on `batch`, in eval mode.

    Convolutions, matrix products and fused attention are counted. Operations that have no weights (normalisation,
    softmax, activation functions, pooling) are not.

    Args:
        model: What `prepare` returned, calibrated. The mode of each module is restored.
        batch: One batch that `run` understands.
        run: Called as `run(model, batch)`; by default a batch is a tensor, (inputs, ...) or a dict of keyword
            arguments.

    Raises:
        ValueError: The model ran no operation that is counted.
    """
    with modes_kept(model), _Counter(model) as counter:
        model.eval()
        run(model, batch)
    total = sum(counter.counts.values())
    if not total:
        raise ValueError("model ran no convolution and no matrix product on this batch; there is nothing to cover")
    in_float = Counter({reason: n for reason, n in counter.counts.items() if reason is not None})
    modules = list(model.modules())
    adds = sum(2 for m in modules if isinstance(m, QuantizedAdd)) + sum(OUTPUT in m._modules for m in modules)
    return Coverage(
        sum(isinstance(m, QuantizedLayer) and _quantized(m) for m in modules),
        adds,
        sum(isinstance(m, QuantizedProduct) for m in modules),
        counter.counts[None] / total,
        {reason: count / total for reason, count in in_float.most_common()},
    )


def _recurrent(x: Tensor, first: Tensor, second: Tensor, *_: Any, **__: Any) -> int:
    """Count one layer and direction of an LSTM over all steps; x has shape (..., inputs)."""
    return 2 * (x.numel() // x.shape[-1]) * (first.numel() + second.numel())


EXTRA_OPERATIONS: dict[str, Callable[..., int]] = {
    "mkldnn_rnn_layer": _recurrent,
    "mv": lambda matrix, vector, **_: 2 * matrix.numel(),
    "addmv": lambda bias, matrix, vector, **_: 2 * matrix.numel(),
    "_trilinear": lambda first, weight, second, *_, **__: 2 * (first.numel() // first.shape[-1]) * weight.numel(),
    "_grouped_mm": lambda a, b, *_, **__: 2 * a.numel() * b.shape[-1],
}
"""{name of an operation that torch's table lacks: how many floating-point operations it does}."""


class _Counter(TorchDispatchMode):
    """Counts floating-point operations: `counts` has them by the reason why they are float, None for quantized ones."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.stack, self.counts = model, [], Counter()
        # Parameters, and tensors computed only from them, by their place in memory.
        self.fixed: dict[int, Tensor] = {_place(p): p for p in model.parameters()}

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

    def _is_product(self, func: Any, args: Any) -> bool:
        """Tell whether `func` multiplies two activations: batches of matrices, none of them a parameter."""
        product = "bmm" in str(func) or "attention" in str(func)
        return product and not any(_place(x) in self.fixed for x in tree_leaves(args) if isinstance(x, Tensor))

    def _follow(self, args: Any, out: Any) -> None:
        """Note results computed only from parameters, such as a parameter in another memory layout.

        They are stored, so that no activation can get their place in memory.
        """
        inputs = [x for x in tree_leaves(args) if isinstance(x, Tensor)]
        if inputs and all(_place(x) in self.fixed for x in inputs):
            self.fixed |= {_place(x): x for x in tree_leaves(out) if isinstance(x, Tensor)}

    def _leave(self) -> None:  # a hook that returned the module would replace the output by it
        self.stack.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not any(isinstance(m, QuantizedLayer) for m in self.stack):
            self._follow(args, out)
        count = flop_registry.get(func.overloadpacket) or EXTRA_OPERATIONS.get(func.overloadpacket.__name__)
        if count is not None and self.stack and not isinstance(self.stack[-1], Quantizer):  # its search for a range
            quantized = any(_quantized(m) for m in self.stack)
            reason = None if quantized else _reason(self.stack, self._is_product(func, args))
            self.counts[reason] += count(*args, **(kwargs or {}), out_val=out)
        return out


def _place(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _quantized(module: nn.Module) -> bool:
    both = isinstance(module, QuantizedLayer) and None not in (module.weight_quantizer, module.act_quantizer)
    return both or isinstance(module, QuantizedProduct)


def _reason(running: list[nn.Module], is_product: bool) -> str:
    """Say why a multiplication is float.

    running: the modules that run, the innermost last. is_product: two activations are multiplied.
    """
    module = running[-1]
    if any(isinstance(m, QuantizedLayer) for m in running):
        return "layers with one side float"
    if isinstance(module, QUANTIZABLE):
        return "layers left float"
    if is_product:
        return PRODUCTS
    return f"{type(module).__name__}: weights that are no layer's"
