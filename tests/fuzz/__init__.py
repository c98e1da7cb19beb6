"""Mutated models through both entry points; tests/integration/hostile/test_fuzzed_models.py runs it."""
