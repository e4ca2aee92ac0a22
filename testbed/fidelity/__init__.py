"""The certificate of a run: its links and its host, held against what was asked."""
