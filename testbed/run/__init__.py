"""One run: what it is, and the processes that carry it out."""
