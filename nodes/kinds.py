"""Kinds of messages between server and clients, beside a method's own."""

HELLO = "hello"
WELCOME = "welcome"
STOP = "stop"
EVALUATE = "evaluate"
"""To a client: the round is over, and the metrics of its own model are wanted."""
METRICS = "metrics"
ABSENT = "absent"
"""To clients that speak to one another: who is not there and why, and, by an empty reason, who is
there again."""
REFUSED = "refused"
"""The answer to what cannot be taken: for its sender, or its receiver, this round is over."""
