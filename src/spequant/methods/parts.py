"""Parts of a network that several methods use: its stages, and their inputs and outputs. No loss belongs here."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spequant.functional import fake_quantize
from spequant.layers import QuantizedLayer
from spequant.networks import QUANTIZABLE
from spequant.quantizers import APoT, DoReFa, Quantizer
from spequant.recomputation import entered_again

FEWEST_STAGES = 3
"""If a network has fewer children with layers, `stages_of` descends into them."""


WRAPPERS = ("module", "_orig_mod", "model")
"""Names under which wrappers hold the network: DistributedDataParallel, torch.compile, `train.Compiled`."""


def part_of(model: nn.Module, name: str) -> nn.Module:
    """Return the module called `name` in `model`, which may be compiled or distributed.

    Args:
        model: The model, whose wrappers may put a prefix before the names of its modules.
        name: Name in the network without wrappers.

    Raises:
        ValueError: There is no such module, or several end in this name and none has it in full.
    """
    modules = {n: m for n, m in model.named_modules() if n == name or n.endswith(f".{name}")}
    if not modules:
        raise ValueError(
            f"the model has no module {name!r}; there are {', '.join(n for n, _ in model.named_children())}"
        )
    full = [n for n in modules if all(part in WRAPPERS for part in n.removesuffix(name).split(".")[:-1])]
    if not full and len(modules) > 1:
        raise ValueError(f"{name!r} may be {' or '.join(list(modules)[:3])}; expected the whole name of a module")
    return modules[min(full or modules, key=len)]


def stages_of(network: nn.Module) -> tuple[str, ...]:
    """Return the names of the stages of a float network: modules with layers that follow one another.

    They are the children of the network that contain layers. As long as there are fewer than three, the largest
    nn.Sequential among them (by parameters) is replaced by its children. That the children follow one another is
    assumed.

    Args:
        network: The float network.

    Raises:
        ValueError: There are fewer than three, and none of them is an nn.Sequential.
    """
    names = _children_with_layers(network, "")
    while len(names) < FEWEST_STAGES:
        containers = [name for name in names if isinstance(network.get_submodule(name), nn.Sequential)]
        if not containers:
            raise ValueError(
                f"{type(network).__name__} has the stages {', '.join(names) or 'none'}; expected {FEWEST_STAGES} or "
                "more: name modules that follow one another with stages="
            )
        largest = max(containers, key=lambda name: sum(p.numel() for p in network.get_submodule(name).parameters()))
        i = names.index(largest)
        names[i : i + 1] = _children_with_layers(network.get_submodule(largest), f"{largest}.")
    return tuple(names)


def resolve_stages(network: nn.Module, stages: Sequence[str] | None) -> tuple[str, ...]:
    """Return `stages`, after a check, or `stages_of(network)` if `stages` is None.

    Raises:
        ValueError: There are fewer than two stages, or `network` has no module of a name.
    """
    names = stages_of(network) if stages is None else tuple(stages)
    if len(names) < 2:
        raise ValueError(f"stages is {names!r}; expected two modules or more that follow one another")
    for name in names:
        part_of(network, name)
    return names


def _children_with_layers(module: nn.Module, prefix: str) -> list[str]:
    names = []
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):  # networks call its children, not the list
            names += _children_with_layers(child, f"{prefix}{name}.")
        elif any(isinstance(part, QUANTIZABLE) for part in child.modules()):
            names.append(prefix + name)
    return names


class Recorder:
    """Records the inputs or outputs of modules of a model, with gradient.

    Use the same object for all calls: a compiled model writes into the object that it was traced with.

    Args:
        names: Names of the modules in the network without wrappers.
        inputs: Whether to record the first input of each module, instead of its output.
    """

    def __init__(self, names: Sequence[str], *, inputs: bool = False):
        self.names, self.inputs = tuple(names), inputs
        self.values: dict[str, Tensor] = {}
        self.hooks = {name: self._hook(name) for name in self.names}

    def _hook(self, name: str) -> Any:
        def before(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.values[name] = args[0]

        def after(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            self.values[name] = output

        return before if self.inputs else after

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[dict[str, Tensor]]:
        """Yield {name: tensor}, which a forward of `model` inside the context fills.

        Raises:
            RuntimeError: At the end of the context, if a module did not run.
            ValueError: `model` has no module of a name.
        """
        self.values.clear()
        handles = []
        for name in self.names:
            module = part_of(model, name)
            register = module.register_forward_pre_hook if self.inputs else module.register_forward_hook
            handles.append(register(self.hooks[name]))
        try:
            yield self.values
        finally:
            for handle in handles:
                handle.remove()
        missing = [name for name in self.names if name not in self.values]
        if missing:
            raise RuntimeError(
                f"{', '.join(missing)} did not run in the model's forward, or ran unseen inside a compiled model that "
                "had run before; name modules that it calls, or compile after the first call of the method"
            )


@contextmanager
def replaced(network: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[nn.Module]:
    """Put `modules`, {name: module}, in place of the modules of `network` with these names, inside the context."""
    originals = {name: network.get_submodule(name) for name in modules}
    try:
        for name, module in modules.items():
            put_module(network, name, module)
        with entered_again(lambda: replaced(network, modules)):
            yield network
    finally:
        for name, module in originals.items():
            put_module(network, name, module)


def put_module(network: nn.Module, name: str, module: nn.Module) -> None:
    """Set the module called `name`, a path with dots, to `module`."""
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent), attribute, module)


def tokens(x: Tensor, batch: Any) -> Tensor | None:
    """Return the mask of tokens, from the `attention_mask` of a batch.

    Args:
        x: Features (batch, length, features).
        batch: A batch, e.g. a dict with "attention_mask" (batch, length).

    Returns:
        fp32 (batch, length, 1): 1 for a token, 0 for padding. None if the batch has no mask, or `x` has another shape.
    """
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return None if mask is None or x.shape[:-1] != mask.shape else mask.unsqueeze(-1).to(torch.float32)


def float_weights(model: nn.Module) -> list[tuple[Tensor, Quantizer]]:
    """Return the float weights that are quantized, with their quantizers, each once.

    Raises:
        ValueError: No weight of `model` is quantized, or one is rescaled before it is, so that it lies on no level.
    """
    pairs: dict[int, tuple[Tensor, Quantizer]] = {}
    for module in model.modules():
        if isinstance(module, QuantizedLayer) and module.weight_quantizer is not None:
            quantizer = module.weight_quantizer
            if isinstance(quantizer, DoReFa | APoT):
                raise ValueError(
                    f"{quantizer.name} has {type(quantizer).__name__}, which rescales weights, so that they lie on no "
                    "level of their own; expected another quantizer of weights, e.g. LSQ or SAWB"
                )
            if quantizer.bits is not None:
                pairs.setdefault(id(quantizer), (module.float_weight, quantizer))
    if not pairs:
        raise ValueError(f"{type(model).__name__} has no quantized weight, of which this method has a loss")
    return list(pairs.values())


def rounded(x: Tensor, bits: int) -> Tensor:
    """Return `x` rounded to a uniform grid over its range, with a straight-through gradient.

    The grid is [0, max] with 2^bits levels, or [-max|x|, max|x|] with 2^bits - 1 levels if a value is negative.

    Args:
        x: Values of any shape.
        bits: 1 or more; 2 or more if a value is negative.
    """
    low, high = x.detach().amin().float(), x.detach().abs().amax().float().clamp_min(1e-8)
    signed = (low < 0).float()  # on the device, which is not waited for
    return fake_quantize(x, -high * signed, high, 2**bits - signed)
