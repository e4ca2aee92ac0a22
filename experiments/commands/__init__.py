"""Commands of cli.py, one file a group, loaded when asked for."""
