"""Accounts: sums of a run's figures as a paper makes them, such as "both / base.both"."""

from __future__ import annotations

import ast
import math
import operator
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence

from testbed.config_error import ConfigError
from testbed.record.events import known
from testbed.record.run_summary import Summary

Accounts = dict[str, float]
"""Figures of a run by name."""
UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
"""Bytes, for an account to divide by."""
BASE = "base."
"""Before the name of a figure of another row's, which a claim is held against."""
ENDS = ("_to_target", "_interpolated")
"""Of figures that a run lacks where it never reached its target."""
_DOES: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def of(summary: Summary, figures: Mapping[str, float | None]) -> Accounts:
    """Figures that an account can name, beside UNITS; bytes of the whole run, all clients'.

    ``up``, ``down``, ``both``: payload; ``up.KIND`` of one kind of message, whose name has "_" for
    what is no letter or digit; ``wire_up`` likewise; ``most_up``, ``most_down``, ``most``: of the
    client that sent, received or had the most; ``busiest_mb``: of the client or server that had;
    ``flops``: of a client's part in a round, in the mean; ``rounds``, ``client_rounds``,
    ``clients``, ``seconds``, ``parameters`` (those that are trained); ``metric.NAME``: after the
    last round; and ``figures``, those of a target being infinite where the run never reached it.
    """
    rounds = [entry for entry in summary.rounds if entry.finished]
    payload, wire = summary.bytes.payload, summary.bytes.wire
    clients = [each.bytes.payload for each in summary.per_client]
    flops = [own for each in summary.per_client if (own := known(each.round_flops))]
    found: dict[str, float | None] = {
        "up": payload.up,
        "down": payload.down,
        "both": payload.both,
        "wire_up": wire.up,
        "wire_down": wire.down,
        "wire": wire.both,
        "most_up": max((each.up for each in clients), default=None),
        "most_down": max((each.down for each in clients), default=None),
        "most": max((each.both for each in clients), default=None),
        "flops": statistics.fmean(flops) if flops else None,
        "rounds": len(rounds),
        "client_rounds": sum(entry.clients_ok or 0 for entry in rounds),
        "clients": summary.clients,
        "seconds": sum(entry.seconds or 0.0 for entry in rounds),
        "parameters": summary.trainable_parameters,
    }
    for kind, sizes in summary.bytes.by_kind.items():
        found |= {f"up.{_word(kind)}": sizes.up, f"down.{_word(kind)}": sizes.down}
    for name, value in summary.metrics.final.items():
        found[f"metric.{_word(name)}"] = value
    for name, value in figures.items():
        found[name] = math.inf if value is None and name.endswith(ENDS) else value
    return {name: float(value) for name, value in found.items() if value is not None}


def _word(name: str) -> str:
    return re.sub(r"\W", "_", name)


def medians(runs: Sequence[Accounts]) -> Accounts:
    """Each figure's median over runs; without those that some run lacks."""
    names = set(runs[0]).intersection(*runs[1:])
    return {name: statistics.median(own[name] for own in runs) for name in names}


def check(account: str, where: str) -> None:
    """Raises ConfigError where it is no sum of a run's figures."""
    try:
        named = {name for name in names(account) if name not in UNITS}
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise ConfigError(
            f"{where}: account = {account!r}: {error}; write names of a run's figures and numbers, "
            'with + - * / and brackets, such as "both / base.both"'
        ) from error
    if not named:
        raise ConfigError(f"{where}: account = {account!r}: names no figure of a run")


def is_of_time(account: str) -> bool:
    """Whether it names minutes or seconds, which are a network's only where it was as asked."""
    return any("minutes" in name or "seconds" in name for name in names(account))


def names(account: str) -> set[str]:
    """Figures that it names. ValueError or SyntaxError where it is no account."""
    found: set[str] = set()

    def note(name: str) -> float:
        found.add(name)
        return 1.0

    _worked_out(ast.parse(account, mode="eval").body, note)
    return found


def value(account: str, own: Mapping[str, float], base: Mapping[str, float] | None = None) -> float:
    """Number that it comes to; NaN where it divides by nothing.

    Raises:
        KeyError: a figure that it names is not there.
    """
    there = UNITS | dict(own) | {f"{BASE}{name}": each for name, each in (base or {}).items()}
    return _worked_out(ast.parse(account, mode="eval").body, there.__getitem__)


def _worked_out(part: ast.expr, figure: Callable[[str], float]) -> float:
    match part:
        case ast.Constant(int() | float() as number) if not isinstance(number, bool):
            # Python itself refuses to make a float of digits that are too many for one.
            if not abs(number) <= sys.float_info.max:
                raise ValueError("a number in it is larger than any float")
            return float(number)
        case ast.Name() | ast.Attribute():
            return figure(_dotted(part))
        case ast.BinOp(left, does, right) if type(does) in _DOES:
            one, other = _worked_out(left, figure), _worked_out(right, figure)
            try:
                return _DOES[type(does)](one, other)
            except ZeroDivisionError:
                return math.nan
    raise ValueError(f"{ast.unparse(part)!r} is no figure and no number")


def _dotted(part: ast.expr) -> str:
    match part:
        case ast.Name(name):
            return name
        case ast.Attribute(inner, name):
            return f"{_dotted(inner)}.{name}"
    raise ValueError(f"{ast.unparse(part)!r} is no name")
