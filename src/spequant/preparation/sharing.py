"""Which layers and additions of a float network read one and the same tensor: they can share a quantizer."""

from collections.abc import Iterator

from torch import fx, nn

from spequant.networks import QUANTIZABLE, copied
from spequant.preparation.adapters.multihead import LayeredAttention
from spequant.preparation.tracing import DROPS, traced

Reader = tuple[str, int]
"""The name of a module and which of its inputs: 0, or 1 for the second addend of an addition."""

TOGETHER = (
    *(("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q_lin", "k_lin", "v_lin"), ("q", "k", "v")),
    *(("query_proj", "key_proj", "value_proj"), ("gate_proj", "up_proj"), ("wi_0", "wi_1"), ("w1", "w3")),
)
"""Names of layers that read one tensor, in modules of transformers, whose networks cannot be traced. Queries of an
attention to other states than its own (`OTHERS` in its path) read another one than keys and values."""
OTHERS = ("cross", "encoder_attn", "EncDecAttention", "enc_attn")


def readers_together(network: nn.Module) -> list[list[Reader]]:
    """Groups of two or more that read the same tensor or, if they are called several times, the same tensors.

    Found by tracing; where the whole cannot be traced, in each part that can, and by names in transformers' modules.
    """
    groups: dict[object, list[Reader]] = {}
    for key, reader in _reads(copied(network).eval(), ""):
        groups.setdefault(key, []).append(reader)
    return [group for group in groups.values() if len(group) > 1]


def _reads(module: nn.Module, name: str) -> Iterator[tuple[object, Reader]]:
    """(what is read, who reads it); equal where it is the same."""
    if sum(isinstance(m, QUANTIZABLE) for m in module.modules()) < 2 and not any(_marked(m) for m in module.modules()):
        return
    try:
        _, graph = traced(module)
    except ValueError:
        yield from _by_names(module, name)
        for own, child in module.named_children():
            yield from _reads(child, f"{name}.{own}" if name else own)
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
    """(name inside `called`, what it reads) of the layers and additions that a call of it runs."""
    given = (*node.args, *node.kwargs.values())
    if isinstance(called, QUANTIZABLE):
        yield "", given[:1]
    elif _marked(called):
        yield "", given[:2]
    elif isinstance(called, LayeredAttention):
        for inner, argument in called.reads(node.args, node.kwargs).items():
            yield inner, (argument,)


def _marked(module: nn.Module) -> bool:
    return bool(getattr(module, "residual_addition", False))


def _origin(module: nn.Module, node: fx.Node) -> fx.Node:
    """What `node` lets through: dropout and identities, in eval mode, return what they are given."""
    while node.op == "call_module" and node.args:
        called = module.get_submodule(str(node.target))
        if not isinstance(called, nn.Identity) and type(called).__name__ not in DROPS:
            break
        node = node.args[0]  # type: ignore[assignment]
    return node


def _by_names(module: nn.Module, name: str) -> Iterator[tuple[object, Reader]]:
    if type(module).__module__.partition(".")[0] != "transformers":
        return
    crossed = any(other in part.lower() for part in (name, type(module).__name__) for other in map(str.lower, OTHERS))
    for names in TOGETHER:
        for own in names[1:] if crossed and len(names) == 3 else names:
            if isinstance(getattr(module, own, None), QUANTIZABLE):
                yield (name, names), (f"{name}.{own}" if name else own, 0)
