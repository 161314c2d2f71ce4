"""Times, measured in turns in one run: on a shared machine the ratios are reliable, the times themselves are not."""
