"""Memory for tensors: none lies where another one does that is needed at the same time, and few bytes are lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spequant.deploy.arena import Buffer, aligned, peak, plan

BUFFERS = st.lists(
    st.builds(
        lambda size, first, more: Buffer("b", size, first, first + more),
        st.integers(0, 200),
        st.integers(0, 12),
        st.integers(0, 6),
    ),
    max_size=14,
)


@given(BUFFERS)
def test_buffers_of_one_time_lie_apart(buffers):
    made = plan(buffers)
    ends = [(o, o + b.size) for b, o in zip(buffers, made.offsets, strict=True)]
    for i, a in enumerate(buffers):
        assert ends[i][0] % 4 == 0 and ends[i][1] <= made.size
        for j, b in enumerate(buffers[:i]):
            apart = ends[i][1] <= ends[j][0] or ends[j][1] <= ends[i][0]
            assert apart or not a.meets(b)
    assert peak(buffers)[0] <= made.size <= sum(aligned(b.size) for b in buffers)


def test_a_chain_takes_the_two_largest_neighbours():
    sizes = (8, 100, 60, 40, 4)
    chain = [Buffer(str(i), size, i, i + 1) for i, size in enumerate(sizes)]
    assert plan(chain).size == 160
    most, live = peak(chain)
    assert most == 160 and [b.size for b in live] == [100, 60]


def test_a_gap_is_used_again():
    wide, low, high = Buffer("wide", 64, 0, 1), Buffer("low", 32, 0, 5), Buffer("high", 32, 2, 5)
    made = plan([wide, low, high])
    assert made.size == 96


def test_nothing_takes_nothing():
    assert plan([]).size == 0 and peak([]) == (0, ())


@pytest.mark.parametrize(("arguments", "match"), [((-1, 0, 0), "size of x is -1"), ((1, 3, 2), "from step 3 to 2")])
def test_a_buffer_that_cannot_be_is_named(arguments, match):
    with pytest.raises(ValueError, match=match):
        Buffer("x", *arguments)
