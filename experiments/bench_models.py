"""Models of a bench: folders by one path however they were typed, and what tables call them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import msgspec

from experiments.plan import Bench, Cell
from testbed import extras, naming, outside


def located(bench: Bench) -> Bench:
    """The same bench; a folder of a model is its absolute path, whoever goes on from wherever."""
    rows = [msgspec.structs.replace(row, run=_with_paths(row.run)) for row in bench.rows]
    vary = bench.vary
    if "model" in vary:
        vary = {**vary, "model": [_path(each) for each in vary["model"]]}
    return msgspec.structs.replace(bench, run=_with_paths(bench.run), rows=rows, vary=vary)


def _with_paths(run: dict[str, Any]) -> dict[str, Any]:
    return {**run, "model": _path(run["model"])} if "model" in run else run


def _path(model: Any) -> Any:
    if not isinstance(model, str) or not model or not os.path.isdir(outside.expanded(model)):
        return model
    # A name that is known here is none of a folder's, and to know takes torch.
    extras.require("bench", "train")
    from nodes.workload import models

    return models.absolute(model)


def told(cells: Iterable[Cell]) -> dict[str, dict[str, Any]]:
    """Short name and size of each model, as rows of comparison.json have them of theirs."""
    used = {cell.config.model for cell in cells if cell.row.programs is None}
    if not used:
        return {}
    from nodes.workload import models

    short = naming.short(used)
    return {
        each: {"model": short[each], "parameters": models.parameters(each)} for each in sorted(used)
    }
