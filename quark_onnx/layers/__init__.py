"""The layers of a float model that have a constant weight, and pairs of them."""
