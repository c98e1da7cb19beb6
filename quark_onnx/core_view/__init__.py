"""What the core is given of a layer: its rows, its scales, what its loss looks through."""
