"""The one error that means: what was asked for cannot be run."""


class ConfigError(ValueError):
    """Refused before anything starts; the text names the field, the value and what is right."""
