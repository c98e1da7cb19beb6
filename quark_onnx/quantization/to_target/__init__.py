"""Quantizing to a target: several runs, of which the best is kept."""
