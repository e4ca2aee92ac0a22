"""Ends of connections between two hosts, in words: one for one, whatever the kernel calls it."""

CLOSED = "it closed the connection"


def why(error: OSError, otherwise: str = "the connection broke") -> str:
    """Words for ``error`` of a connection; ``otherwise`` where it has none.

    Who closes with something unread resets, and who writes to it then has a broken pipe: which of
    the three is a matter of microseconds.
    """
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return CLOSED
    return error.strerror or otherwise
