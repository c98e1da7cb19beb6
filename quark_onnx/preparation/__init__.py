"""From the user's float model to the one that is quantized, which computes the same."""
