"""A network as integer operations: what is computed, not by whom. Made in `lowering.py`, run by `twin.py`, written by
formats."""

from dataclasses import dataclass, field

from spequant.deploy.operations import Input, Operation, Weighted


@dataclass
class Program:
    """ops: in the order of computing, the first the input; outputs: by name; output: the first of them."""

    ops: list[Operation]
    output: Operation
    outputs: dict[str, Operation] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.outputs = self.outputs or {"output": self.output}

    @property
    def input(self) -> Operation:
        return self.ops[0]

    @property
    def weighted(self) -> list[Weighted]:
        """Its integer layers; one whose result two quantizers read is there twice."""
        return [op for op in self.ops if isinstance(op, Weighted)]

    @property
    def integer_ops(self) -> list[Operation]:
        """Operations whose result is codes."""
        return [op for op in self.ops if op.grid is not None and not isinstance(op, Input)]

    @property
    def act_bits(self) -> list[int]:
        """Widths of its activations, each once, in ascending order."""
        return sorted({op.grid.bits for op in self.ops if op.grid is not None})

    def islands(self) -> list[str]:
        """What is computed in float, in words; the quantization of the input and the output's scale are always."""
        return [f"{op.name}: {op.WORD}" for op in self.ops if op.in_float]

    def saturating(self) -> list[str]:
        """Names of the layers whose sums of products some processors without VNNI or dot products clip, each once."""
        return list(dict.fromkeys(op.name for op in self.weighted if op.saturates))
