"""What real data decides before training: ranges of quantizers, and statistics of batch norm."""
