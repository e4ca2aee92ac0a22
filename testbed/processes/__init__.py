"""Processes of a run: how they are made, spoken to and ended."""
