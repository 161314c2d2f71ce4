"""The versions that an ONNX file declares: the lowest that say the same, so that engines of years ago load it.

An opset is a set of definitions of operators. Where every operator of a graph is defined in a lower opset as it is in
the graph's own, the graph means the same there. IR versions follow from opsets: each was released with some.
"""

from collections.abc import Iterator
from typing import Any

from spequant.extras import needs

WRITTEN = 13
"""opset of the graphs that are written node by node: the first whose quantization has one scale per channel"""
TRACED = 18
"""opset that torch's exporter is asked for"""
DEFAULT = ("", "ai.onnx")
WITH_FUNCTIONS = 8
"""the first IR version whose models may define operators of their own"""


def declare_lowest(model: Any) -> Any:
    """Set, in place, the opset of ONNX's own operators and the IR version of `model`; it."""
    onnx = needs("onnx", "deploy")
    for opset in model.opset_import:
        if opset.domain in DEFAULT:
            schemas = (onnx.defs.get_schema(node.op_type, opset.version, "") for node in _nodes(model))
            opset.version = max((schema.since_version for schema in schemas), default=1)
            version = onnx.helper.find_min_ir_version_for([opset])
            model.ir_version = max(version, WITH_FUNCTIONS if model.functions else 0)
    return model


def _nodes(model: Any) -> Iterator[Any]:
    """The nodes of ONNX's own operators, inside others and in functions too."""
    ahead = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while ahead:
        node = ahead.pop()
        if node.domain in DEFAULT:
            yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                ahead += graph.node
