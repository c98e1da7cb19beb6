"""Mutated models through both entry points; tests/integration/test_fuzzed_models.py runs it."""
