"""Which layers and additions of a float network read the same tensor, so that they can share a quantizer."""

from collections.abc import Iterator

from torch import fx, nn

from spequant.networks import QUANTIZABLE, copied
from spequant.preparation.adapters.multihead import LayeredAttention
from spequant.preparation.tracing import DROPOUT_NAMES, traced

Reader = tuple[str, int]
"""The name of a module, and the number of its input: 0, or 1 for the second addend of an addition."""

SIBLINGS = (
    *(("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q_lin", "k_lin", "v_lin"), ("q", "k", "v")),
    *(("query_proj", "key_proj", "value_proj"), ("gate_proj", "up_proj"), ("wi_0", "wi_1"), ("w1", "w3")),
)
"""Names of layers inside one module of transformers that read the same tensor; those networks cannot be traced."""
CROSS_ATTENTION = ("cross", "encoder_attn", "EncDecAttention", "enc_attn")
"""Parts of the names of modules whose queries read another tensor than their keys and values."""


def readers_together(network: nn.Module) -> list[list[Reader]]:
    """Find the layers and marked additions that read the same tensor.

    A layer that is called several times belongs to a group only if it reads the same tensors as the others in it. The
    network is traced; where that is impossible, its children are, one by one. In modules of transformers, layers are
    found by their names.

    Args:
        network: The float network, adapted; it is copied before it is traced.

    Returns:
        Groups of two or more readers.
    """
    groups: dict[object, list[Reader]] = {}
    for key, reader in _reads(copied(network).eval(), ""):
        groups.setdefault(key, []).append(reader)
    return [group for group in groups.values() if len(group) > 1]


def _reads(module: nn.Module, name: str) -> Iterator[tuple[object, Reader]]:
    """Yield (key, reader) for the readers in `module`; two readers of the same tensor have equal keys."""
    if sum(isinstance(m, QUANTIZABLE) for m in module.modules()) < 2 and not any(
        _is_marked(m) for m in module.modules()
    ):
        return
    try:
        _, graph = traced(module)
    except ValueError:
        yield from _by_names(module, name)
        for child_name, child in module.named_children():
            yield from _reads(child, f"{name}.{child_name}" if name else child_name)
        return
    sources: dict[Reader, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            called = module.get_submodule(node.target)
            for inner, arguments in _readers(called, node):
                for i, argument in enumerate(arguments):
                    if isinstance(argument, fx.Node):
                        path = ".".join(part for part in (name, node.target, inner) if part)
                        sources.setdefault((path, i), []).append(_origin(module, argument))
    for reader, nodes in sources.items():
        yield (name, tuple(nodes)), reader


def _readers(called: nn.Module, node: fx.Node) -> Iterator[tuple[str, tuple[object, ...]]]:
    """Yield (name inside `called`, the arguments that it reads) for each layer and addition that a call of it runs."""
    arguments = (*node.args, *node.kwargs.values())
    if isinstance(called, QUANTIZABLE):
        yield "", arguments[:1]
    elif _is_marked(called):
        yield "", arguments[:2]
    elif isinstance(called, LayeredAttention):
        for inner, argument in called.reads(node.args, node.kwargs).items():
            yield inner, (argument,)


def _is_marked(module: nn.Module) -> bool:
    return bool(getattr(module, "residual_addition", False))


def _origin(module: nn.Module, node: fx.Node) -> fx.Node:
    """Return the node whose value `node` returns: in eval mode, dropout and identities return their input."""
    while node.op == "call_module" and node.args:
        called = module.get_submodule(str(node.target))
        if not isinstance(called, nn.Identity) and type(called).__name__ not in DROPOUT_NAMES:
            break
        node = node.args[0]  # type: ignore[assignment]
    return node


def _by_names(module: nn.Module, name: str) -> Iterator[tuple[object, Reader]]:
    """Yield (key, reader) for the children of a module of transformers whose names are `SIBLINGS`."""
    if type(module).__module__.partition(".")[0] != "transformers":
        return
    marks = [mark.lower() for mark in CROSS_ATTENTION]
    is_cross = any(mark in part.lower() for part in (name, type(module).__name__) for mark in marks)
    for siblings in SIBLINGS:
        for child in siblings[1:] if is_cross and len(siblings) == 3 else siblings:
            if isinstance(getattr(module, child, None), QUANTIZABLE):
                yield (name, siblings), (f"{name}.{child}" if name else child, 0)
