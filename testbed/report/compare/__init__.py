"""Comparison of runs: whether they may be held against one another, and what they come to."""
