"""Files of the Hugging Face hub, and processes apart for libraries that start threads.

Nodes are forked from a process with a single thread, so whatever leaves threads behind runs in
another, which ends with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from testbed.config_error import ConfigError, in_words
from testbed.processes.child import describe_exit, die_with_parent

DOWNLOAD_LIMIT_S = 3600.0
REFUSED = 3
"""Exit status of a process whose output is the text of a ConfigError."""
OFFLINE = "only cached "
"""Before a folder that the hub could not be asked about."""
LFS = b"version https://git-lfs"


class Fetched(NamedTuple):
    """A hub repository's files here."""

    folder: Path
    whole: bool
    """False: the hub could not be reached, and any of them may be missing."""


def fetch(kind: str, where: str, repository: str, patterns: list[str]) -> Fetched:
    """The folder of a hub repository's files, downloaded where they are not cached.

    `kind` is "model" or "dataset"; of `patterns` those that match nothing are left out. Where the
    hub cannot be reached, what is cached is taken as it is. ConfigError where nothing is: it begins
    with `where`, the field that the user set and its value.
    """
    asked = [kind, where, repository, *patterns]
    answer = run_apart(f"{__package__}.hub", *asked, limit_s=DOWNLOAD_LIMIT_S)
    return Fetched(Path(answer.removeprefix(OFFLINE)), not answer.startswith(OFFLINE))


def expanded(text: str) -> Path:
    """A path that a user named, with ~ for a home; as it stands where there is no such user."""
    return Path(os.path.expanduser(text))


def unfit(path: Path) -> str | None:
    """The reason why a file holds nothing at all, or None."""
    try:
        with path.open("rb") as file:
            first = file.read(len(LFS))
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not first:
        return "is empty"
    if first == LFS:
        return "is a Git LFS pointer and not the file itself; `git lfs pull` gets that"
    return None


def run_apart(module: str, *arguments: str, limit_s: float) -> str:
    """Run a module of this project as a program; returns what it printed.

    ConfigError where it refused, failed, or took longer than `limit_s`.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=Path(__file__).parents[len((__package__ or "").split("."))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired as error:
        what = " ".join(arguments)
        raise ConfigError(f"{module} {what}: not done within {limit_s:.0f} s") from error
    text = done.stdout.removesuffix("\n")
    if done.returncode == REFUSED:
        raise ConfigError(text)
    if done.returncode:
        what = " ".join(arguments)
        code = done.returncode
        how = text or describe_exit(-code if code < 0 else code << 8)
        raise ConfigError(f"{module} {what}: failed: {how}")
    return text


def answer(body: Callable[[], str]) -> None:
    """Be the program that `run_apart` runs: print what ``body`` returns, or why there is nothing.

    Does not return.
    """
    die_with_parent(os.getppid())
    try:
        text, status = body(), 0
    except ConfigError as error:
        text, status = str(error), REFUSED
    except BaseException as error:
        traceback.print_exc()
        text, status = f"{type(error).__name__}: {error}", 1
    sys.stdout.buffer.write(f"{text}\n".encode(errors="surrogateescape"))
    sys.stdout.flush()
    # The libraries' threads may abort a process that leaves by itself, after its answer.
    os._exit(status)


def _download() -> str:
    # Heeded at import. Otherwise the client first asks the hub for more than the files.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import HfApi, constants, errors, snapshot_download

    kind, where, repository, *patterns = sys.argv[1:]
    reachable = True
    try:
        # The download's own first request would wait for an answer without limit.
        HfApi().repo_info(repository, repo_type=kind, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        reason = f"there is no {kind} {repository} on the hub for you"
        raise ConfigError(f"{where}: {reason}: {advice(kind)}") from error
    except Exception:  # Each layer of the client has errors of its own.
        reachable = False
    try:
        folder = snapshot_download(
            repository, repo_type=kind, allow_patterns=patterns, local_files_only=not reachable
        )
        return folder if reachable else OFFLINE + folder
    except errors.LocalEntryNotFoundError as error:
        reason = "the hub cannot be reached, and nothing of it is cached"
        raise ConfigError(f"{where}: {reason}: {advice(kind)}") from error
    except Exception as error:
        reason = f"the download failed ({in_words(error).partition(chr(10))[0]})"
        raise ConfigError(f"{where}: {reason}: {advice(kind)}") from error


def advice(kind: str) -> str:
    """Advice for where the hub does not help."""
    flag = {"model": "--model=FOLDER", "dataset": "--data-path=FOLDER"}[kind]
    return f"take {flag}, prepared as docs/data.md says"


if __name__ == "__main__":
    answer(_download)
