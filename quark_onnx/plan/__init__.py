"""What will be finetuned, decided before anything runs."""
