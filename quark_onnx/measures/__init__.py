"""How far the outputs of two models, or of two forms of a layer, are from each other."""
