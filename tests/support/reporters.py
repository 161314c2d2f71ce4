"""A reporter that keeps what it is told."""

from spequant.app.runs import Quiet


class Said(Quiet):
    """phases, lines: texts in their order. counts: of batches, by phase: (announced, taken)."""

    def __init__(self):
        self.phases: list[str] = []
        self.lines: list[str] = []
        self.counts: dict[str, tuple[int, int]] = {}

    def phase(self, text):
        self.phases.append(text)

    def track(self, batches, count):
        for taken, batch in enumerate(batches, 1):
            self.counts[self.phases[-1]] = count, taken
            yield batch

    def say(self, line):
        self.lines.append(line)
