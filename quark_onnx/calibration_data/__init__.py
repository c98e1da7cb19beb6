"""The samples that calibration and finetuning run on: readers, checks, batches."""
