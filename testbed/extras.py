"""Extras: packages that some commands alone need, and what to type where they are missing."""

from importlib.util import find_spec

from testbed.config_error import ConfigError

PACKAGES = {
    "train": ("torch", "peft", "safetensors", "huggingface_hub", "PIL", "tokenizers"),
    "tensorboard": ("tensorboard", "torch"),
    "hosts": ("ray",),
}
"""By extra of the distribution, the names under which they are imported."""


def missing(extra: str) -> list[str]:
    """Packages of an extra that are not installed; none of them is imported."""
    return [name for name in PACKAGES[extra] if find_spec(name) is None]


def install(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'wiretune[{extra}]'"


def require(what: str, extra: str) -> None:
    """Raises ConfigError where a package that ``what`` needs is missing."""
    if names := missing(extra):
        raise ConfigError(f"{what}: needs {', '.join(names)}: {install(extra)}")
