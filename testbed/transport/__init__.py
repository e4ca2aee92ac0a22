"""Tensors between nodes over TCP, and their messages' form."""
