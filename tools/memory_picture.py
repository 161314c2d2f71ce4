"""Draws docs/pictures/memory.png of docs/how-to/c.md: memory over the steps of ResNet-8. python tools/memory_picture.py

Tensors are those of the C program, untrained: of W8A8 and W2A2 as it plans them; of fp32 those of W8A8, 4 bytes per
number, without the windows that only packed codes need.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

import spequant
from spequant.deploy import lower
from spequant.deploy.arena import Buffer
from spequant.deploy.formats.c import c_project
from spequant.models import make_network
from spequant.quantizers import PACT, SAWB

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "pictures" / "memory.png"
WINDOW = ": window"


def buffers(bits: int, residual: int = 8) -> tuple[tuple[Buffer, ...], int]:
    """Return the tensors of ResNet-8 at `bits`, its additions at `residual`, and the size of its arena in bytes."""
    torch.manual_seed(0)
    x = torch.randn(8, 3, 32, 32)
    network = make_network("resnet8", classes=10, in_channels=3, size=32)
    model = spequant.prepare(network, weight=SAWB(bits), act=PACT(bits), residual=residual)
    spequant.calibrate(model, [x], samples=8)
    plan = c_project(lower(model.eval(), x[:1])).plan
    return plan.buffers, plan.size


def live(tensors: tuple[Buffer, ...], times: int = 1) -> list[float]:
    """Return the KiB that are alive at each step; times: bytes for each byte."""
    steps = range(max(t.last for t in tensors) + 1)
    return [sum(t.size for t in tensors if t.first <= step <= t.last) * times / 1024 for step in steps]


def main() -> None:
    """Draw the steps of fp32, W8A8 and W2A2."""
    (full, full_arena), (low, low_arena), (lowest, lowest_arena) = buffers(8), buffers(2), buffers(2, residual=4)
    plain = tuple(t for t in full if not t.name.endswith(WINDOW))
    lines = {
        f"fp32, peak {max(live(plain, 4)):.1f} KiB": (live(plain, 4), "#6b7280"),
        f"W8A8, arena {full_arena / 1024:.1f} KiB": (live(full), "#1d4ed8"),
        f"W2A2, arena {low_arena / 1024:.1f} KiB": (live(low), "#047857"),
        f"W2A2, additions at 4 bits, arena {lowest_arena / 1024:.1f} KiB": (live(lowest), "#b45309"),
    }
    figure, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    for label, (values, colour) in lines.items():
        axes.stairs(values, baseline=None, color=colour, linewidth=2, label=label)
    axes.set(xlabel="calls, from the image to the scores", ylabel="KiB of tensors alive", ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(PICTURE, dpi=150)
    print({label: max(values) for label, (values, _) in lines.items()})


if __name__ == "__main__":
    main()
