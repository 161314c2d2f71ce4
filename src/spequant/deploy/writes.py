"""Networks that write to their tensors in place: which value each step of a traced network reads.

A step that writes to a tensor makes a new value of it, which all that read that tensor later read, under whatever name.
Which tensors are one, and which steps write, is seen by running the trace: torch counts the writes to each tensor, and
views of one tensor share memory and count.
"""

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.graph import inplace_methods
from torch.fx.passes.shape_prop import ShapeProp
from torch.utils._pytree import tree_leaves

from spequant.calibration.batches import cloned


class ShapedProxy(fx.Proxy):
    """A traced tensor that knows its shape, type and device, and those of its parts; it keeps x += h in place, and its
    kin. value: the tensor of a run beside the trace, or several in a tuple or list."""

    def __init__(self, node: fx.Node, tracer: fx.Tracer, value: Any):
        super().__init__(node, tracer)
        self.value = value

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.__dict__.get("value"), name, None)
        return value if isinstance(value, CONSTANT_TYPES) else super().__getattr__(name)

    def __len__(self) -> int:
        return len(self.value)

    def __iter__(self) -> Iterator[Any]:
        return (operator.getitem(self, i) for i in range(len(self.value)))  # type: ignore[index]


CONSTANT_TYPES = (bool, int, torch.Size, torch.dtype, torch.device)
"""Attributes of tensors that no number in them decides."""


def _in_place(name: str) -> Callable[[ShapedProxy, Any], Any]:
    return lambda proxy, other: proxy.tracer.create_proxy("call_function", getattr(operator, name), (proxy, other), {})


for _name in inplace_methods:  # iadd, isub ...
    setattr(ShapedProxy, f"__{_name}__", _in_place(_name))


@torch.inference_mode(False)  # inside, torch counts no writes
@torch.no_grad()
def propagate(traced: fx.GraphModule, example: Tensor) -> None:
    """Note the shape of each step of `traced`, as ShapeProp does, and let each read the step that made its value last:
    what is read is then written once.

    ValueError: a step reads a view of a tensor that another step has written to since, or the other way round.
    """
    steps = _Steps(traced)
    steps.propagate(cloned(example))
    for node, reads in steps.reads.items():
        for before, after in reads.items():
            node.replace_input_with(before, after)


class _Steps(ShapeProp):
    """reads: {step: {what it was traced to read: the step whose value it reads}}, where these differ."""

    def __init__(self, traced: fx.GraphModule):
        super().__init__(traced)
        self.reads: dict[fx.Node, dict[fx.Node, fx.Node]] = {}
        self.last: dict[fx.Node, fx.Node] = {}
        self.stale: dict[fx.Node, fx.Node] = {}
        self.extra_traceback = False  # messages are ours

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Without its hooks: the quantizer of an output is a step of its own."""
        return self.fetch_attr(target).forward(*args, **kwargs)

    def run_node(self, n: fx.Node) -> Any:
        for i in n.all_input_nodes:
            if i in self.stale:
                raise ValueError(
                    f"{n.name}: reads {i.name}, a part or another shape of a tensor that {self.stale[i].name} has "
                    "written to in place since; that has no form here: write it without the operation in place "
                    "(inplace=False, y = x + h in place of x += h)"
                )
        self.reads[n] = {i: self.last[i] for i in n.all_input_nodes if i in self.last}
        tensors = [x for i in n.all_input_nodes if isinstance(x := self.env[i], Tensor)]
        writes = [x._version for x in tensors]
        out = super().run_node(n)
        for x, before in zip(tensors, writes, strict=True):
            if x._version != before:
                self._written(n, x, out)
        return out

    def _written(self, n: fx.Node, written: Tensor, out: Any) -> None:
        """Note who has, in what was computed before, the tensor that step `n`, which gives `out`, has written to."""
        for other, value in self.env.items():
            if not any(isinstance(x, Tensor) and _memory(x) == _memory(written) for x in tree_leaves(value)):
                continue
            whole = _place(value) == _place(written) == _place(out)
            (self.last if whole else self.stale)[other] = n


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _place(x: Any) -> tuple[Any, ...] | None:
    """Which numbers of which memory `x` is; None: no tensor."""
    return (_memory(x), x.storage_offset(), x.shape, x.stride(), x.dtype) if isinstance(x, Tensor) else None
