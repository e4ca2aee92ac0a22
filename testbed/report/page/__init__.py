"""Pages: the report of a run, its sections, and what all pages are made of."""
