"""Diagnostics of the layers of a quantized network on one batch: clipping, levels in use, ranges, code changes.

`looks.py` writes them to a file and reads them back.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spequant.calibration.batch_norm import modes_kept
from spequant.calibration.batches import run_model
from spequant.layers import QuantizedLayer, act_quantizers, slots_of, weight_quantizers
from spequant.policies import Policy, Stochastic, precision
from spequant.quantizers import Quantizer


class Diagnostics:
    """Measures the layers of a model once per call, and compares them with the previous call.

    Args:
        policy: How the teacher's precision is drawn, for the agreement of teacher and student; None: `Stochastic()`.
    """

    def __init__(self, policy: Policy | None = None):
        self.policy = policy or Stochastic()
        self.codes: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(
        self, model: nn.Module, batch: Any, *, step: int = 0, run: Callable[[nn.Module, Any], Tensor] = run_model
    ) -> dict[str, Any]:
        """Measure the layers of `model` on `batch`, in eval mode.

        Args:
            model: A prepared and calibrated network. The mode of each module is restored.
            batch: One batch that `run` understands.
            step: Number of the training step, by which the teacher's precision is drawn.
            run: Called as `run(model, batch)`; returns the logits.

        Returns:
            {"layers": {name: values}, "agreement": share}, layers in the model's order. Values of activations:
            `act_bits`; `clipped`, the share beyond the bounds; `levels`, how many of the `of` levels are in use; `low`
            and `high`. Values of weights: `weight_bits`; `changed`, the share whose code changed since the previous
            call, None in the first; `clip`, the largest value, or the mean over several ranges. The agreement is the
            share of answers (as a rule, samples) for which teacher and student predict the same class.
        """
        quantizers = act_quantizers(model)
        weight_names = {q: name for name, q in weight_quantizers(model).items()}
        layers: dict[str, dict[str, Any]] = {name: {} for name in _names(model, quantizers, weight_names)}
        hooks = [q.register_forward_pre_hook(_reader(layers[name])) for name, q in quantizers.items()]
        row: dict[str, Any] = {"layers": layers}
        with modes_kept(model):
            model.eval()
            try:
                student = run(model, batch)
            finally:
                for hook in hooks:
                    hook.remove()
            if quantizers:
                with precision(model, self.policy, seed=1, step=step):
                    teacher = run(model, batch)
                row["agreement"] = float((student.argmax(-1) == teacher.argmax(-1)).float().mean())
        weights = {  # tied weights only once: the second would be compared with the codes of the first
            m.weight_quantizer: m for m in model.modules() if isinstance(m, QuantizedLayer) and m.weight_quantizer
        }
        for quantizer, module in weights.items():
            name = weight_names[quantizer]
            layers[name].update(self._weight(name, module))
        return row

    def _weight(self, name: str, layer: Any) -> dict[str, Any]:
        q: Quantizer = layer.weight_quantizer
        codes = q.encode(layer.float_weight).to(torch.uint8)
        before, self.codes[name] = self.codes.get(name), codes
        changed = None if before is None else float((codes != before).float().mean())
        return {"weight_bits": q.bits, "changed": changed, "clip": float(q.grid_bounds(layer.float_weight)[1].mean())}


def _names(
    model: nn.Module, quantizers: Mapping[str, Quantizer], weight_names: Mapping[Quantizer, str]
) -> Iterator[str]:
    """Yield the names of all quantizers of weights and activations, in the model's order, some more than once."""
    names: dict[nn.Module, str] = {**{q: name for name, q in quantizers.items()}, **weight_names}
    for module in model.modules():
        weight = module.weight_quantizer if isinstance(module, QuantizedLayer) else None
        for q in (weight, *(getattr(module, slot) for slot in slots_of(module))):
            if q is not None:
                yield names[q]  # type: ignore[index]


def _reader(row: dict[str, Any]):
    """Make a hook of an activation quantizer that writes into `row`."""

    def read(quantizer: Quantizer, inputs: tuple[Tensor]) -> None:
        x = inputs[0]
        low, high = quantizer.grid_bounds(x)
        row["clipped"] = float(((x < low) | (x > high)).float().mean())
        row["levels"] = len(torch.unique(quantizer.encode(x)))
        row["act_bits"] = quantizer.bits
        row["of"] = int(quantizer.levels)
        row["low"], row["high"] = float(low), float(high)

    return read
