"""The walk over both graphs and the finetuning of one layer after the other."""
