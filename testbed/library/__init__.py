"""Shaped networks for other people's Python: ``wiretune.Network``, and a pytest fixture of it."""
