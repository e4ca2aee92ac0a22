"""Tables as JSON lines, by a program of its own: pyarrow leaves threads, and takes memory."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nodes.workload import hub
from testbed.config_error import ConfigError, in_words

BATCH = 1_000
"""Rows that are in memory at once."""
FILE = b"ARROW1"
"""Begins Arrow's format of files, as of Feather; `datasets` writes that of streams."""


def _convert() -> str:
    where, path, out, *columns = sys.argv[1:]
    with Path(out).open("w") as file:
        for row in _rows(Path(path), set(columns), where):
            # What is no JSON, such as bytes or a time, is for the reader to refuse by its field.
            file.write(json.dumps(row, default=lambda value: {type(value).__name__: str(value)}))
            file.write("\n")
    return ""


def _rows(path: Path, columns: set[str], where: str) -> Iterator[dict[str, Any]]:
    """Rows of a table, with those of ``columns`` that it has; the others are null."""
    import pyarrow as pa
    from pyarrow import parquet

    # Opened here: by its name it could be taken for an address.
    with path.open("rb") as opened:
        try:
            if path.suffix.lower() == ".parquet":
                file = parquet.ParquetFile(opened)
                there = file.schema_arrow.names
                batches = file.iter_batches(BATCH, columns=_known(there, columns))
            else:
                is_file = opened.read(len(FILE)) == FILE
                opened.seek(0)
                found = pa.ipc.open_file(opened) if is_file else pa.ipc.open_stream(opened)
                there = found.schema.names
                several = (
                    map(found.get_batch, range(found.num_record_batches)) if is_file else found
                )
                batches = (batch.select(_known(there, columns)) for batch in several)
            if len(set(there)) < len(there):
                raise ConfigError(f"{where} has two columns of one name: {', '.join(there)}")
            others = dict.fromkeys(name for name in there if name not in columns)
            for batch in batches:
                for row in batch.to_pylist():
                    yield row | others
        except ConfigError:
            raise
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            first = in_words(error).partition("\n")[0] or type(error).__name__
            raise ConfigError(f"{where} cannot be read: {first}") from error


def _known(there: list[str], columns: set[str]) -> list[str]:
    return [name for name in there if name in columns]


if __name__ == "__main__":
    hub.answer(_convert)
