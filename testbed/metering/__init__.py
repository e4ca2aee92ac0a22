"""Measurements beside the transport: processes, kernel counters, packets."""
