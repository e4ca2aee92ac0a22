"""Anybody's programs as the nodes of a run: each in namespaces of its own, unchanged."""
