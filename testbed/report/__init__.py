"""From a run's folder to one page that opens from disk: what ran, what came of it, and why.

``read`` takes events.jsonl; ``timeline`` and ``curves`` are what it means; ``html`` and ``svg``
draw it; ``run_page`` puts a run's page together, ``comparison`` that of several runs; ``listing``
is of all runs' folders.
"""
