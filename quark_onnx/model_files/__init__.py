"""Model files: read through one gate, and written whole."""
