"""Where tensors of many batches wait: in memory, or in files."""
