"""The whole model against the float model, on samples set apart, and the better of two states."""
