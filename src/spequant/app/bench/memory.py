"""The peak memory of a step, beyond what is in use before it."""

import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(step: Callable[[], Any], device: torch.device) -> int:
    """The memory that the tensors of one step take at its peak, without those that exist before it.

    On a GPU torch's allocator counts it. On a CPU it follows from the allocations that torch's profiler records: the
    peak of the process would include the compiler's memory.

    Args:
        step: is called once.
        device: of its tensors.

    Returns:
        Bytes.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return peak_of((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")


def peak_of(allocations: Iterable[tuple[float, int]]) -> int:
    """The largest running sum of allocations in the order of their times.

    Args:
        allocations: (time, bytes) each; bytes are negative where memory is freed.
    """
    total = peak = 0
    for _, size in sorted(allocations, key=lambda pair: pair[0]):
        total += size
        peak = max(peak, total)
    return peak
