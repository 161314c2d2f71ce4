"""What a C program takes of a machine: constants in flash, the arena in memory, and what makes that so large."""

from dataclasses import dataclass
from math import prod

from spequant.deploy.arena import alive, peak
from spequant.deploy.formats.c import c_project
from spequant.deploy.loaded import Preprocessing
from spequant.deploy.program import Program

CODE = 8192
"""Bytes that are reserved for the kernels. ResNet-8 W2A2 has 5.2 KB of them on a Cortex-M4, 5.0 on an M0 (-Os)."""
STACK = 1024
"""Bytes that are reserved for the stack; manifest.json has what a program needs where it was compiled."""
SCORE_BYTES = 4


@dataclass(frozen=True)
class Footprint:
    """What a program takes, in bytes.

    Attributes:
        constants: Weights, thresholds and tables.
        arena: Memory for tensors.
        scores: Memory for the outputs.
        peak: Tensors, (name, bytes), that are needed at the step which needs most, the largest first. No plan of the
            arena is smaller than their sum.
        layers: Bytes of each layer's weight, at its bits.
        alive: Bytes of tensors that are needed at each step.
    """

    constants: int
    arena: int
    scores: int
    peak: tuple[tuple[str, int], ...]
    layers: dict[str, int]
    alive: tuple[int, ...] = ()

    @property
    def flash(self) -> int:
        """Constants, and what is reserved for the kernels."""
        return self.constants + CODE

    @property
    def ram(self) -> int:
        """Arena, scores, and what is reserved for the stack."""
        return self.arena + self.scores + STACK


def footprint(program: Program, preprocessing: Preprocessing | None = None) -> Footprint:
    """Return what `program` takes as C.

    Args:
        program: What `lower` makes.
        preprocessing: (mean, std) per channel, of images scaled to [0, 1], if the input is uint8 images.

    Raises:
        ValueError: It has no form in C; the text names what is computed in float.
    """
    project = c_project(program, preprocessing=preprocessing)
    _, buffers = peak(project.plan.buffers)
    numbers = sum(prod(output["shape"]) for output in project.head["outputs"])
    layers = {layer["name"]: -(-layer["weights"] * layer["weight_bits"] // 8) for layer in project.head["layers"]}
    largest = tuple((b.name, b.size) for b in buffers if b.size)
    return Footprint(
        project.flash, project.head["arena"], SCORE_BYTES * numbers, largest, layers, alive(project.plan.buffers)
    )
