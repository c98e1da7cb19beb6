"""What all layers are finetuned with and no option sets."""

from __future__ import annotations

__all__ = ["HOLDOUT"]

HOLDOUT = 5  # every fifth sample judges what the others fit, but with solver="gradient"
