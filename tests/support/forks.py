"""Work in processes of its own that need not import torch again: forks of one process that has, and does nothing else.

That process is held to the instructions that all x86-64 processors of today share, so that what its forks compute is
the same on each of them (tests/support/golden.py tells more).
"""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing import forkserver
from typing import Any

PLAIN = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "COMPATIBLE"}
IMPORTED = ("torch", "torch._dynamo", "accelerate", "sklearn.datasets", "spequant.app.runs")


class Fork:
    """`work(*arguments)` under way in a fork. work: a function of a module of tests/support, or of the library."""

    def __init__(self, work: Callable[..., Any], *arguments: Any):
        _ensure_server()
        context = multiprocessing.get_context("forkserver")
        self.receiver, sender = context.Pipe(duplex=False)
        self.process = context.Process(target=_carry_out, args=(sender, work, arguments))
        self.process.start()
        sender.close()

    def result(self) -> Any:
        """What the work returned; AssertionError with the traceback where it failed."""
        try:
            failed, result = self.receiver.recv()
        except EOFError:
            failed, result = True, "the fork died"
        self.receiver.close()
        self.process.join()
        self.process.close()
        assert not failed, result
        return result


def forked(work: Callable[..., Any], *arguments: Any) -> Any:
    """`Fork`, and its result."""
    return Fork(work, *arguments).result()


def _ensure_server() -> None:
    """Start the process that forks, once, with the settings of `PLAIN`, which no other process gets."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(IMPORTED))
    before = dict(os.environ)
    os.environ |= {**PLAIN, "OMP_NUM_THREADS": "1"}
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


def _carry_out(sender: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    try:
        sender.send((False, work(*arguments)))
    except BaseException:
        sender.send((True, traceback.format_exc()))
