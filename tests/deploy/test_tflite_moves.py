"""What puts numbers elsewhere in .tflite graphs, as torch does, in both engines."""

import pytest

from spequant.deploy.formats.tflite import op_graph
from spequant.deploy.operations import Concat, Flatten, Pad, PixelShuffle, Repeat, Reshape, Slice, Transpose
from support.tflite_alone import ENDS, FEW, check, source

IMAGE = (6, 4, 5)
CASES = [
    (Flatten, IMAGE, (120,), {}),
    (Reshape, IMAGE, (2, 3, 20), {}),
    (Reshape, IMAGE, (10, 12), {}),
    (Transpose, IMAGE, (4, 5, 6), {"order": (0, 2, 3, 1)}),
    (Transpose, (3, 7), (7, 3), {"order": (0, 2, 1)}),
    (PixelShuffle, (12, 4, 5), (3, 8, 10), {"factors": (2, 2)}),
    (PixelShuffle, (12, 4, 5), (2, 12, 10), {"factors": (3, 2)}),
    (PixelShuffle, (6, 5), (3, 10), {"factors": (2,)}),
    (Slice, IMAGE, (2, 2, 2), {"start": (1, 0, 1), "stop": (5, 4, 4), "step": (2, 2, 2)}),
    (Pad, IMAGE, (7, 4, 8), {"before": (1, 0, 1), "after": (0, 0, 2), "value": 1.0}),
    (Pad, IMAGE, (6, 7, 5), {"before": (0, 1, 0), "after": (0, 2, 0)}),
    (Pad, IMAGE, (6, 7, 8), {"before": (0, 2, 1), "after": (0, 1, 2), "mode": "reflect"}),
    (Pad, IMAGE, (6, 6, 5), {"before": (0, 2, 0), "after": (0, 0, 0), "mode": "replicate"}),
    (Repeat, IMAGE, (6, 12, 10), {"times": (1, 3, 2)}),
    (Repeat, IMAGE, (12, 4, 5), {"times": (2, 1, 1)}),
    (Repeat, (3, 7), (3, 21), {"times": (1, 3)}),
]


@pytest.mark.parametrize("engine", ENDS)
@pytest.mark.parametrize(("kind", "shape", "result", "fields"), CASES)
def test_numbers_are_where_torch_has_them(kind, shape, result, fields, engine):
    for grid in (FEW, None):
        x, codes = source(shape, grid)
        check(kind("op", (x,), grid, (1, *result), **fields), codes, engine=engine)


@pytest.mark.parametrize("engine", ENDS)
def test_concatenation_along_any_dimension(engine):
    for dim, grid in ((1, FEW), (2, FEW), (3, None)):
        (a, first), (b, second) = source(IMAGE, grid), source(IMAGE, grid, "y")
        shape = [1, *IMAGE]
        shape[dim] *= 2
        check(Concat("op", (a, b), grid, tuple(shape), dim), first, second, engine=engine)


def test_upsampling_by_11_looks_places_up():
    """11 * (1 / 11) is below 1 in fp32."""
    x, codes = source((2, 3, 3), FEW)
    assert check(Repeat("op", (x,), FEW, (1, 2, 6, 6), (1, 2, 2)), codes, engine="litert") == [
        "RESIZE_NEAREST_NEIGHBOR"
    ]
    wide = Repeat("op", (x,), FEW, (1, 2, 123, 3), (1, 41, 1))
    assert check(wide, codes, engine="tflm") == ["GATHER"]


def test_a_slice_of_more_dimensions_is_refused():
    x, _ = source((2, 3, 4, 5), FEW)
    op = Slice("part", (x,), FEW, (1, 1, 3, 4, 5), (0, 0, 0, 0), (1, 3, 4, 5), (1, 1, 1, 1))
    with pytest.raises(ValueError, match=r"^part: .*tflite.* 4 .* 5; --to onnx"):
        op_graph(op)
