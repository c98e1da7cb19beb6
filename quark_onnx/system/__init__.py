"""What is asked of the system below: memory, folders for unfinished files, native threads that end in time."""
