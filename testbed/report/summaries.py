"""summary.json as it is read: bounded, and of this version's types."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import msgspec

from testbed import files
from testbed.config_error import ConfigError, excerpt
from testbed.record.run_summary import SCHEMA, Summary

NAME = "summary.json"


class _Named(msgspec.Struct):
    schema: int | None = None


def is_run(folder: Path) -> bool:
    """Path's own raises for a name that is too long, and where nobody may look."""
    return os.path.isfile(folder / NAME)


def check_open(folder: Path) -> None:
    """Raises ConfigError: a folder in it may hold runs, and this user may not look into it.

    A search passes over such a one, and what is left would be taken for all.
    """
    for outer in (folder, *(each for each in folder.iterdir() if each.is_dir())):
        if outer != folder and is_run(outer):
            continue
        for each in outer.iterdir():
            if each.is_dir() and not os.access(each, os.R_OK | os.X_OK):
                raise ConfigError(f"RUN {each}: cannot look into it: {os.strerror(errno.EACCES)}")


def load(path: Path) -> Summary:
    """A run's summary.json.

    Raises:
        ConfigError: it cannot be read, or is not as this version writes it; the text says why.
    """
    try:
        found = files.read(path, files.SUMMARY_BYTES)
        schema = msgspec.json.decode(found, type=_Named).schema
        if schema != SCHEMA:
            raise ConfigError(f"has schema {schema!r}, this version reads {SCHEMA}")
        return msgspec.json.decode(found, type=Summary)
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(error.strerror or str(error)) from error
    except (ValueError, OverflowError, RecursionError) as error:
        raise ConfigError(f"is not as this version writes it ({excerpt(error)})") from error
