"""Under torch.compile: one graph for both passes of a step, whatever is drawn, and gradients as in eager mode."""

import pytest

from support.compiled_step import graphs, read_from_disk, small, whole
from support.forks import forked


def test_both_passes_share_one_graph():
    assert forked(graphs, 40, small) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("weight", "act", "steps"), [("SAWB", "PACT", 200), ("LSQ", "LSQ", 3)])
def test_both_passes_of_a_whole_network_share_one_graph(weight, act, steps):
    assert forked(graphs, steps, whole, weight, act) == 1


@pytest.mark.slow
def test_the_next_process_reads_the_whole_graph_from_disk(tmp_path):
    assert [forked(read_from_disk, str(tmp_path)) for _ in range(2)] == [0, 1]
