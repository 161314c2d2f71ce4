"""Diagnostics of the layers of a quantized network on one batch: clipping, levels in use, ranges, code changes.

`looks.py` writes them to a file and reads them back.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spequant.calibration.batches import modes_kept, run_model
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
        inputs, weights = dict[str, Tensor](), dict[str, Tensor]()  # figures, which stay on the device until the end
        hooks = [q.register_forward_pre_hook(_reader(inputs, name)) for name, q in quantizers.items()]
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
        modules = {  # tied weights only once: the second would be compared with the codes of the first
            m.weight_quantizer: m for m in model.modules() if isinstance(m, QuantizedLayer) and m.weight_quantizer
        }
        for quantizer, module in modules.items():
            weights[weight_names[quantizer]] = self._weight(weight_names[quantizer], module)
        for name, (clipped, used, levels, low, high) in _numbers(inputs):
            values = {"clipped": clipped, "levels": int(used), "act_bits": quantizers[name].bits, "of": int(levels)}
            layers[name].update(values, low=low, high=high)
        bits = {name: q.bits for q, name in weight_names.items()}
        for name, (changed, clip) in _numbers(weights):
            layers[name].update(weight_bits=bits[name], changed=None if changed < 0 else changed, clip=clip)
        return row

    def _weight(self, name: str, layer: Any) -> Tensor:
        """Return the share of changed codes, -1 if none are known from before, and the clip."""
        q: Quantizer = layer.weight_quantizer
        codes = q.encode(layer.float_weight).to(torch.uint8)
        before, self.codes[name] = self.codes.get(name), codes
        clip = q.grid_bounds(layer.float_weight)[1].mean()
        return torch.stack([torch.full_like(clip, -1.0) if before is None else (codes != before).float().mean(), clip])


def _numbers(figures: Mapping[str, Tensor]) -> list[tuple[str, list[float]]]:
    """Return {name: figures} as pairs with numbers; the device is waited for once."""
    return list(zip(figures, torch.stack(list(figures.values())).tolist(), strict=True)) if figures else []


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


def _reader(figures: dict[str, Tensor], name: str):
    """Make a hook of an activation quantizer that writes the share clipped, the number of levels in use and in all, and
    the bounds to `figures`."""

    def read(quantizer: Quantizer, inputs: tuple[Tensor]) -> None:
        x = inputs[0]
        low, high = quantizer.grid_bounds(x)
        used = torch.zeros(2**8, device=x.device)
        used[quantizer.encode(x).flatten().long()] = 1.0
        clipped = ((x < low) | (x > high)).float().mean()
        figures[name] = torch.stack([clipped, used.sum(), quantizer.levels, low, high])

    return read
