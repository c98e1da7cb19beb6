"""From calibration samples to value ranges and weight scales."""
