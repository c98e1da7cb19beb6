"""Networks that people deploy, with random weights: what each is made of, and data for it."""
