"""From the data of one layer to its integers."""
