"""How tests prepare networks that are exported with float islands, and what they read of the graphs."""

from collections import Counter
from importlib.util import find_spec

import pytest
import torch

import spequant
from spequant.deploy import mixed_graph
from spequant.deploy.engines import onnxruntime
from spequant.quantizers import PACT, SAWB
from spequant.quantizers.ranges import largest

NEEDS_ONNXSCRIPT = pytest.mark.skipif(not find_spec("onnxscript"), reason="the extra deploy is not installed")


def prepared(network, x, **options):
    """At W4A4 with the ends unless told otherwise, calibrated on `x`."""
    torch.manual_seed(0)
    given = {"weight": SAWB(4), "act": PACT(4), "residual": None} | options
    if "ends" not in options:
        given["overrides"] = {"*": (given["weight"], given["act"])}
    model = spequant.prepare(network, **given)
    spequant.calibrate(model, [x], samples=len(x), rule=largest, reestimate=False)
    return model.eval()


def exported(model, x):
    """(its graph, what torch gives, what onnxruntime gives)."""
    mixed = mixed_graph(model, x[:1])
    (got,) = onnxruntime(mixed.graph.SerializeToString(), 1)({"input": x.numpy()})
    with torch.no_grad():
        return mixed, model(x), torch.from_numpy(got)


def kinds(mixed) -> Counter:
    return Counter(node.op_type for node in mixed.graph.graph.node)
