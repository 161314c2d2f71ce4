"""LiteRT's own metadata: what its tools (MediaPipe, code generators of Android Studio) read of a .tflite file's ends.

A flatbuffer of metadata_schema.fbs, version 1.0.0 ("M001"), of which no Python package at hand has a writer. A table is
{slot of a field: (kind, value)}; slots are places in the schema.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from spequant.extras import needs

METADATA_NAME = "TFLITE_METADATA"
LABELS_FILE = "labels.txt"
"""File with one class per line, in an archive behind the model."""
AXIS_LABELS, IMAGE, FEATURES, NORMALIZATION = 2, 2, 1, 1
RGB, GRAYSCALE = 1, 2


class _Tables:
    def __init__(self) -> None:
        self.builder = needs("flatbuffers", "tflite").Builder(1024)

    def table(self, slots: Mapping[int, tuple[str, Any]]) -> int:
        b = self.builder
        b.StartObject(max(slots, default=-1) + 1)
        for slot, (kind, value) in slots.items():
            if kind == "byte":
                b.PrependInt8Slot(slot, value, 0)
            else:
                b.PrependUOffsetTRelativeSlot(slot, value, 0)
        return b.EndObject()

    def text(self, value: str) -> tuple[str, int]:
        return "offset", self.builder.CreateString(value)

    def tables(self, offsets: Sequence[int]) -> tuple[str, int]:
        self.builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self.builder.PrependUOffsetTRelative(offset)
        return "offset", self.builder.EndVector()

    def floats(self, values: Sequence[float]) -> tuple[str, int]:
        self.builder.StartVector(4, len(values), 4)
        for value in reversed(values):
            self.builder.PrependFloat32(value)
        return "offset", self.builder.EndVector()


def litert_metadata(
    shape: Sequence[int],
    outputs: Sequence[str],
    normalisation: tuple[Sequence[float], Sequence[float]] | None,
    labelled: bool,
) -> bytes:
    """The flatbuffer.

    Args:
        shape: of the network's input, (1, channels, height, width) of images.
        outputs: their names.
        normalisation: (mean, std) of pixels of 0 .. 255 that the graph expects to be normalised by; None: not known.
        labelled: whether `LABELS_FILE`, of the first output, is in the file.
    """
    t = _Tables()
    image = len(shape) == 4 and shape[1] in (1, 3)
    properties = t.table({0: ("byte", RGB if shape[1] == 3 else GRAYSCALE)} if image else {})
    content = t.table({0: ("byte", IMAGE if image else FEATURES), 1: ("offset", properties)})
    source = {0: t.text("input"), 3: ("offset", content)}
    if normalisation is not None:
        mean, std = (t.floats(values) for values in normalisation)
        options = t.table({0: mean, 1: std})
        source[4] = t.tables([t.table({0: ("byte", NORMALIZATION), 1: ("offset", options)})])
    inputs = t.tables([t.table(source)])
    results = []
    for i, name in enumerate(outputs):
        content = t.table({0: ("byte", FEATURES), 1: ("offset", t.table({}))})
        result = {0: t.text(name), 3: ("offset", content)}
        if labelled and i == 0:
            result[6] = t.tables([t.table({0: t.text(LABELS_FILE), 2: ("byte", AXIS_LABELS)})])
        results.append(t.table(result))
    graphs = t.tables([t.table({2: inputs, 3: t.tables(results)})])
    model = t.table({0: t.text("spequant"), 3: graphs, 7: t.text("1.0.0")})
    t.builder.Finish(model, b"M001")
    return bytes(t.builder.Output())
