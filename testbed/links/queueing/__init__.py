"""The model of a line, which the backends without a kernel's qdisc share."""
