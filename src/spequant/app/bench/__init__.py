"""Times, measured in one run and interleaved: ratios hold on a machine that is shared, times alone do not."""
