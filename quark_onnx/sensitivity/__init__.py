"""What single quantizers do to a model's outputs, and which tensors therefore stay in float."""
