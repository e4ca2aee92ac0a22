"""Reports: from a run's folder to one page that opens from disk.

``read`` takes events.jsonl; ``timeline`` and ``curves`` are what it means; ``html`` and ``svg``
draw it; ``run_page`` puts a run's page together, ``comparison`` that of several runs; ``listing``
is of all runs' folders.
"""
