"""Choice of a backend: the one asked for, or the first that a probe shows to work."""

from typing import cast

from testbed.config_error import ConfigError
from testbed.links.interface import Backend
from testbed.links.loopback import backend as loopback
from testbed.links.netem import backend as netem
from testbed.links.userspace import backend as userspace
from testbed.network.topology import Plan

BACKENDS = tuple(cast(Backend, module) for module in (netem, userspace, loopback))
"""Most faithful first."""


def choose(name: str, plan: Plan | None = None, crowd: str = "") -> tuple[Backend, str]:
    """The backend, and one line that says which it is and why.

    ``crowd``: nodes that are more than the cores and go by an elastic clock, which netem cannot,
    such as "21 nodes on 2 cores"; it comes after userspace then.

    Raises:
        ConfigError: the one asked for does not work here, or not for ``plan``; the text says what
            is missing.
    """
    if name != "auto":
        backend = next(backend for backend in BACKENDS if backend.name == name)
        reason = _objection(backend, plan)
        if reason is not None:
            raise ConfigError(f"--links={name} does not work here: {reason}")
        return backend, f"links: {name}, as asked"
    reasons: list[str] = []
    for backend in userspace_first() if crowd else BACKENDS:
        reason = _objection(backend, plan)
        if reason is None:
            why = "; ".join(reasons) or "the most faithful that works here"
            if crowd and backend.name == userspace.name:
                why = f"its clock waits for {crowd}, which that of netem could not"
            return backend, f"links: {backend.name} ({why})"
        reasons.append(f"not {backend.name}: {reason}")
    raise ConfigError("no link backend works here: " + "; ".join(reasons))


def userspace_first() -> list[Backend]:
    """The backends, those whose clock can be elastic before the most faithful."""
    return sorted(BACKENDS, key=lambda backend: backend.name != userspace.name)


def _objection(backend: Backend, plan: Plan | None) -> str | None:
    """Why the backend cannot be used; one that cannot make every link has ``unsupported``."""
    unsupported = getattr(backend, "unsupported", None)
    if unsupported is not None and plan is not None:
        reason: str | None = unsupported(plan)
        if reason is not None:
            return reason
    return backend.probe()
