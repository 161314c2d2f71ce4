"""What real data set before training: ranges of quantizers, and statistics of batch norm."""
