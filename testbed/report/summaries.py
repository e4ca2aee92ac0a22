"""summary.json as it is read: what is shown of it is typed and bounded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from testbed import files
from testbed.config_error import ConfigError
from testbed.record.events import (
    MOST_ROUNDS,
    Count,
    Environment,
    Figure,
    Metrics,
    Seconds,
    UpDown,
    Verdict,
)

NAME = "summary.json"
SCHEMA = 1
Summary = dict[str, Any]


class _Wire(msgspec.Struct):
    wire: UpDown


class _Round(msgspec.Struct):
    round: Annotated[int, msgspec.Meta(ge=1, le=MOST_ROUNDS)]
    finished: bool
    seconds: Seconds | None
    bytes: _Wire
    metrics: Metrics

    def __post_init__(self) -> None:
        if self.finished and self.seconds is None:
            raise ValueError(f"round {self.round} is finished and has no seconds")


class _Metrics(msgspec.Struct):
    initial: Metrics
    final: Metrics


class _Compute(msgspec.Struct):
    mode: str | None
    device_class: str | None = None


class _Fidelity(msgspec.Struct):
    verdict: Verdict


class _Seconds(msgspec.Struct):
    total: Figure


class _Summary(msgspec.Struct):
    status: Literal["ok", "failed", "interrupted"]
    reason: str | None
    method: str | None
    model: str | None
    dataset: str | None
    profile: str | None
    clients: Count
    links: str | None
    seed: Count | None
    rounds_done: Count
    seconds: _Seconds
    bytes: _Wire
    rounds: list[_Round]
    metrics: _Metrics
    compute: _Compute
    fidelity: _Fidelity
    environment: Environment | None
    server_profile: str | None = None
    profile_versions: dict[str, str] = {}
    congestion: str | None = None
    connections: dict[str, Count] = {}


def load(path: Path) -> Summary:
    """A run's summary.json.

    Raises:
        ConfigError: it cannot be read, or is not as this version writes it; the text says why.
    """
    try:
        found = msgspec.json.decode(files.read(path, files.SUMMARY_BYTES))
        schema = found.get("schema") if isinstance(found, dict) else None
        if schema != SCHEMA:
            raise ConfigError(f"has schema {schema!r}, this version reads {SCHEMA}")
        msgspec.convert(found, _Summary)
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(error.strerror or str(error)) from error
    except (ValueError, OverflowError, RecursionError) as error:
        raise ConfigError(f"is not as this version writes it ({error})") from error
    return found  # type: ignore[no-any-return]
