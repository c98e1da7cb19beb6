"""Which tensors get 4, 8 or 16 bits, or stay in float, so that a model keeps an accuracy with few bits."""
