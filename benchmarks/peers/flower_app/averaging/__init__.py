"""Flower's side of benchmarks/flower.py."""
