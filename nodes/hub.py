"""Files of the Hugging Face hub, and processes apart for libraries that start threads.

Nodes are forked from a process with a single thread, so whatever leaves threads behind runs in
another, which ends with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from testbed.child import die_with_parent
from testbed.config_error import ConfigError

DOWNLOAD_LIMIT_S = 3600.0
REFUSED = 3
"""Exit status of a process whose output is the text of a ConfigError."""


def fetch(kind: str, name: str, repository: str, patterns: list[str]) -> Path:
    """The folder of a hub repository's files, downloaded where they are not cached.

    `kind` is "model" or "dataset", the field that the user set to `name`; of `patterns` those that
    match nothing are left out. Where the hub cannot be reached, what is cached is taken as it is.
    ConfigError where nothing is.
    """
    asked = [kind, name, repository, *patterns]
    return Path(run_apart("nodes.hub", *asked, limit_s=DOWNLOAD_LIMIT_S))


def run_apart(module: str, *arguments: str, limit_s: float) -> str:
    """Run a module of this project as a program; returns what it printed.

    ConfigError where it refused, failed, or took longer than `limit_s`.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired as error:
        what = " ".join(arguments)
        raise ConfigError(f"{module} {what}: not done within {limit_s:.0f} s") from error
    text = done.stdout.strip()
    if done.returncode == REFUSED:
        raise ConfigError(text)
    if done.returncode:
        what = " ".join(arguments)
        raise ConfigError(f"{module} {what}: failed; what it wrote to stderr says why")
    return text


def answer(body: Callable[[], str]) -> None:
    """Be the program that `run_apart` runs: print what ``body`` returns, or why it refuses."""
    die_with_parent(os.getppid())
    try:
        print(body())
    except ConfigError as error:
        print(error)
        sys.exit(REFUSED)


def _download() -> str:
    # Heeded at import. Otherwise the client first asks the hub for more than the files.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import HfApi, constants, errors, snapshot_download

    kind, name, repository, *patterns = sys.argv[1:]
    reachable = True
    try:
        # The download's own first request would wait for an answer without limit.
        HfApi().repo_info(repository, repo_type=kind, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        reason = f"there is no {kind} {repository} on the hub for you"
        raise ConfigError(f"{kind} = {name!r}: {reason}: {_advice(kind)}") from error
    except Exception:  # Each layer of the client has errors of its own.
        reachable = False
    try:
        return snapshot_download(
            repository, repo_type=kind, allow_patterns=patterns, local_files_only=not reachable
        )
    except errors.LocalEntryNotFoundError as error:
        reason = "the hub cannot be reached, and nothing of it is cached"
        raise ConfigError(f"{kind} = {name!r}: {reason}: {_advice(kind)}") from error
    except Exception as error:
        reason = f"the download failed ({str(error).partition(chr(10))[0]})"
        raise ConfigError(f"{kind} = {name!r}: {reason}: {_advice(kind)}") from error


def _advice(kind: str) -> str:
    flag = {"model": "--model=FOLDER", "dataset": "--data-path=FOLDER"}[kind]
    return f"take {flag}, prepared as docs/data.md says"


if __name__ == "__main__":
    answer(_download)
