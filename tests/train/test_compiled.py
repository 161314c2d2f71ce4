"""Compiled networks: without a compiler, training goes on with a warning."""

import copy
import os
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

from spequant.train import Compiled


def test_where_compiling_fails_the_network_runs_uncompiled(monkeypatch):
    from torch._dynamo.exc import BackendCompilerFailed

    calls = []

    def fails(*args):
        calls.append(args)
        raise BackendCompilerFailed(lambda: None, OSError("no compiler here"), None)

    monkeypatch.setattr(torch, "compile", lambda model, **options: fails)
    model, x = nn.Linear(3, 3), torch.randn(2, 3)
    compiled = Compiled(model)
    with pytest.warns(RuntimeWarning, match=r"torch\.compile failed .*--train\.no-compile"):
        assert torch.equal(compiled(x), model(x))
    assert torch.equal(compiled(x), model(x)) and len(calls) == 1


def test_an_error_of_the_network_is_raised_unchanged(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    compiled = Compiled(nn.Linear(3, 3))
    with warnings.catch_warnings(), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        warnings.simplefilter("error")
        compiled(torch.randn(2, 4))
    assert compiled.fast is not None


def test_on_a_cpu_dropout_draws_what_it_draws_uncompiled():
    model, x = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 2)), torch.randn(8, 4)
    gradients = []
    for network in (model, Compiled(model)):
        torch.manual_seed(0)
        logits = [network(x) for _ in range(2)]
        assert not torch.allclose(*logits)
        gradients.append(torch.autograd.grad(torch.stack(logits).square().sum(), list(model.parameters())))
    for eager, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, eager)


FALLBACK = """
import warnings, torch
from spequant import Distill
from spequant.app.runs.assembly import compile_teacher
from spequant.train import wrap
model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU())
wrapped, x = wrap(model, compile=True), torch.randn(2, 3)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert torch.equal(wrapped(x), model(x)) and torch.equal(wrapped(x), model(x))
    distill = Distill(model)
    compile_teacher(distill)
    assert torch.equal(distill.teach(model, (x, None)), model(x).detach())
print([str(w.message)[:60] for w in caught if w.category is RuntimeWarning])
try:
    wrapped(torch.randn(2, 4))
except RuntimeError as error:
    print(error)
"""


@pytest.mark.slow
def test_with_a_compiler_that_does_not_run(tmp_path):
    environment = {**os.environ, "CXX": "/bin/false", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", FALLBACK], env=environment, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    warned, error = done.stdout.splitlines()
    assert warned == str(["torch.compile failed (InvalidCxxCompiler: No working C++ com"] * 2)
    assert "shapes cannot be multiplied" in error


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda compiled: pickle.loads(pickle.dumps(compiled))])
def test_a_copy_runs_with_its_own_weights(monkeypatch, copied):
    compilations = []
    monkeypatch.setattr(torch, "compile", lambda model, **options: compilations.append(options) or model)
    compiled, x = Compiled(nn.Linear(3, 3), cuda_graphs=True), torch.randn(2, 3)
    other = copied(compiled)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert not other(x).any() and compiled(x).any()
    assert compilations == [{"mode": "reduce-overhead"}] * 2
    compiled.fast = None  # compiling failed
    assert copied(compiled).fast is None
