"""Parts of a network that several methods look at: its stages, and what passes them. No loss lives here."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spequant.functional import fake_quantize
from spequant.networks import QUANTIZABLE
from spequant.quantizers.base import level_tensor
from spequant.recomputation import entered_again

FEWEST = 3
"""stages; a network with fewer children that compute has those inside them for stages"""


def part_of(model: nn.Module, name: str) -> nn.Module:
    """The module `name` of the plain network inside `model`, which may be compiled or distributed."""
    found = [(n, m) for n, m in model.named_modules() if n == name or n.endswith(f".{name}")]
    if not found:
        raise ValueError(
            f"the model has no module {name!r}; there are {', '.join(n for n, _ in model.named_children())}"
        )
    return min(found, key=lambda pair: len(pair[0]))[1]


def stages_of(network: nn.Module) -> tuple[str, ...]:
    """The names of the modules of the float `network` that compute, taken to follow one another: its children with
    layers inside, and as long as those are fewer than three, the children of the largest nn.Sequential among them."""
    names = _computing(network, "")
    while len(names) < FEWEST:
        containers = [name for name in names if isinstance(network.get_submodule(name), nn.Sequential)]
        if not containers:
            raise ValueError(
                f"{type(network).__name__} has the stages {', '.join(names) or 'none'}; expected {FEWEST} or more: "
                "name modules that follow one another with stages="
            )
        largest = max(containers, key=lambda name: sum(p.numel() for p in network.get_submodule(name).parameters()))
        at = names.index(largest)
        names[at : at + 1] = _computing(network.get_submodule(largest), f"{largest}.")
    return tuple(names)


def given_stages(network: nn.Module, stages: Sequence[str] | None) -> tuple[str, ...]:
    """`stages`, or those that are found. ValueError: fewer than two, or no module of `network` under a name."""
    names = stages_of(network) if stages is None else tuple(stages)
    if len(names) < 2:
        raise ValueError(f"stages is {names!r}; expected two modules or more that follow one another")
    for name in names:
        part_of(network, name)
    return names


def _computing(module: nn.Module, prefix: str) -> list[str]:
    names = []
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):  # is not called itself
            names += _computing(child, f"{prefix}{name}.")
        elif any(isinstance(part, QUANTIZABLE) for part in child.modules()):
            names.append(prefix + name)
    return names


class Recorder:
    """Keeps what passes some modules of a model, in its graph: `inputs` of some, or `outputs`.

    One object for all calls, since a compiled model goes on writing into the one that it was traced with.
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
        """{name: tensor}, filled by a forward of `model` inside. RuntimeError at the end if a module did not run."""
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
    """Inside, `network` has each of `modules` in the place of its own of that name."""
    before = {name: network.get_submodule(name) for name in modules}
    try:
        for name, module in modules.items():
            place(network, name, module)
        with entered_again(lambda: replaced(network, modules)):
            yield network
    finally:
        for name, module in before.items():
            place(network, name, module)


def place(network: nn.Module, name: str, module: nn.Module) -> None:
    """Let `module` be the one under `name`."""
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, module)


def tokens(x: Tensor, batch: Any) -> Tensor | None:
    """(batch, length, 1), 1 where `x`, of shape (batch, length, features), belongs to a token and 0 at padding, as the
    batch's `attention_mask` says; None where there is no padding to leave out."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return None if mask is None or x.shape[:-1] != mask.shape else mask.unsqueeze(-1).to(torch.float32)


def rounded(x: Tensor, bits: int) -> Tensor:
    """`x` on the uniform grid of `bits` bits from its least to its largest value: [0, max], or [-max|x|, max|x|] on one
    level fewer where it goes below zero, which takes 2 bits or more; straight-through."""
    low, high = x.detach().amin().float(), x.detach().abs().amax().float().clamp_min(1e-8)
    signed = bool(low < 0)
    levels = level_tensor(2**bits - signed, x)
    return fake_quantize(x, -high if signed else None, high, levels)
