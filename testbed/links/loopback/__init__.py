"""Links by a relay of streams on 127.0.0.1."""
