"""What is asked of the system below, or told of it: memory, time, unfinished files, native threads, progress."""
