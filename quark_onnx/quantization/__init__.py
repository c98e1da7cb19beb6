"""Quantization: its configuration and its entry points."""
