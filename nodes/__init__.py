"""Processes of a node: the two ends of the round loop, and what they compute with."""
