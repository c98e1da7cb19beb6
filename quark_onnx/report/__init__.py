"""What was done: per layer, end to end, time and memory."""
