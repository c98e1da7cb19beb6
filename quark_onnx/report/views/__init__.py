"""A report as it is shown: printed, as a page, as a figure."""
