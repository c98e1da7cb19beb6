"""The graphs that stand for one operator: their table, and how they are found."""
