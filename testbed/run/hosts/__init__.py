"""Hosts of a run: an agent on each, and the driver that has them do their parts."""
