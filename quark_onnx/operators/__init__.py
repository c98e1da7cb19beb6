"""The operators that can be layers, one object each (table.py): what differs between them is said here alone."""
