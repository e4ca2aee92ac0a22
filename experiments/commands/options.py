"""Options: those of a run, made from RunConfig's fields, and those that several share."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click
import msgspec

from testbed import units
from testbed.config_error import ConfigError
from testbed.outside import expanded
from testbed.report import terminal
from testbed.run.config import Flag, RunConfig, option_value

Command = Callable[..., None]


class File(click.Path):
    """A path in which ``~`` is a home, as a shell has it but where "=" stands before."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, parameter: Any, context: Any) -> Any:
        if not value:
            # Path makes the present folder of it.
            name = parameter.get_error_hint(context) if parameter else "a path"
            raise ConfigError(f"{name} {value!r}: must be some text")
        return expanded(os.fsdecode(super().convert(value, parameter, context)))


class Whole(click.types.IntParamType):
    """A whole number in ASCII digits."""

    def convert(self, value: Any, parameter: Any, context: Any) -> Any:
        if isinstance(value, str) and units.whole(value.lstrip().lstrip("+-").rstrip()) is None:
            self.fail(
                f"{value!r} is no whole number of at most {units.MOST_DIGITS} digits, such as 20.",
                parameter,
                context,
            )
        return super().convert(value, parameter, context)


class Decimal(click.types.FloatParamType):
    """A number in ASCII digits."""

    def convert(self, value: Any, parameter: Any, context: Any) -> Any:
        if isinstance(value, str) and units.decimal(value) is None:
            self.fail(f"{value!r} is no number such as 0.5.", parameter, context)
        return super().convert(value, parameter, context)


def offers(kind: str) -> Callable[[click.Context, click.Parameter, str], list[Any]]:
    """Shell completion of a value of this kind."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[Any]:
        from experiments.commands import completion

        return completion.offer(kind, incomplete)

    return complete


def of_a_run(*fields: str, help_: str | None = None) -> Callable[[Command], Command]:
    """Give a command the options of RunConfig's fields, of all that have a Flag or of these.

    ``help_``: in place of what the field says.
    """
    return of_a_struct(RunConfig, *fields, help_=help_)


def of_a_struct(
    kind: type[msgspec.Struct], *fields: str, help_: str | None = None
) -> Callable[[Command], Command]:
    """Give a command the options of another struct's fields, likewise."""
    hints = get_type_hints(kind, include_extras=True)
    defaults = dict(zip(kind.__struct_fields__, kind.__struct_defaults__, strict=True))

    def decorate(command: Command) -> Command:
        for name in reversed(fields or kind.__struct_fields__):
            flags = [each for each in _notes(hints[name]) if isinstance(each, Flag)]
            if flags:
                command = _option(name, hints[name], flags[0], defaults[name], help_)(command)
                if name == "target":
                    command = _target_accuracy(command)
        return command

    return decorate


_target_accuracy = click.option(
    "--target-accuracy", type=Decimal(), metavar="X", help="The same as --target=accuracy=X."
)


def _notes(hint: Any) -> tuple[Any, ...]:
    return getattr(hint, "__metadata__", ())


def _option(
    field: str, hint: Any, flag: Flag, default: Any, help_: str | None
) -> Callable[[Command], Command]:
    option = "--" + field.removesuffix("_s").replace("_", "-")
    kinds = _kinds(hint)
    settings: dict[str, Any] = {"default": None, "metavar": flag.takes}
    if flag.offers:
        settings["shell_complete"] = offers(flag.offers)
    says = flag.default
    if kinds == [bool]:
        return click.option(
            option if default is False else f"{option}/--no-{option[2:]}",
            field,
            is_flag=True,
            default=None,
            help=help_
            or flag.help + (f"  [default: {says or option[2:]}]" if says or default else ""),
        )
    if default == ():
        settings |= {"multiple": True, "callback": _several}
    elif kinds == [int]:
        settings |= {"type": Whole(), "metavar": flag.takes or "N"}
    elif kinds == [float]:
        seconds = field.endswith("_s")
        settings |= {"type": Decimal(), "metavar": flag.takes or ("SECONDS" if seconds else "X")}
    elif float in kinds:
        settings["callback"] = _number
    elif isinstance(kinds[0], str):
        settings["metavar"] = "|".join(kinds)
    if default is not None and default != ():
        says = f"{default:g}" if isinstance(default, float) else str(default)
    if help_ is None:
        help_ = flag.help + (f"  [default: {says}]" if says else "")
    return click.option(option, field, help=help_, **settings)


def _kinds(hint: Any) -> list[Any]:
    """The types that a field's value may have, and its words where only these may stand there."""
    if _notes(hint):
        return _kinds(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    if parts := get_args(hint):
        found = [kind for part in parts for kind in _kinds(part)]
        return [kind for kind in found if kind not in (NoneType, ...)]
    return [hint]


def _several(
    context: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...] | None:
    """None where none was given, for the default is a file's."""
    return values or None


def _number(context: click.Context, option: click.Parameter, value: str | None) -> Any:
    """A number where it is one; what a word may be is for the configuration to say."""
    found = None if value is None else units.decimal(value)
    return value if found is None else found


def token_file() -> Callable[[Command], Command]:
    """Give a command ``--token-file``."""
    return click.option(
        "--token-file",
        type=File(),
        metavar="FILE",
        help="Has the token of a run's hosts.  [default: the environment's WIRETUNE_TOKEN]",
    )


def of_one_host() -> Callable[[Command], Command]:
    """Have a command refuse what is of several hosts, with the reason."""

    def refuse(context: click.Context, option: click.Parameter, value: str | None) -> None:
        if value is not None:
            from testbed.exec.config import ONE_HOST

            raise ConfigError(f"{option.opts[0]}={value}: a network that stays {ONE_HOST}")

    def decorate(command: Command) -> Command:
        for name in ("--hosts", "--place", "--token-file"):
            given: dict[str, Any] = {"hidden": True, "expose_value": False, "callback": refuse}
            command = click.option(name, **given)(command)
        return command

    return decorate


def of_a_method(help_: str) -> Callable[[Command], Command]:
    """Give a command ``--set``: it takes the pairs as ``options``."""
    return click.option(
        "--set", "options", multiple=True, metavar="OPTION=VALUE", callback=_pairs, help=help_
    )


def _pairs(
    context: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> dict[str, Any]:
    """``rank=4`` to {"rank": 4}: numbers and true/false as in TOML, anything else is text."""
    found: dict[str, Any] = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {text!r}: write OPTION=VALUE, such as --set rank=4")
        found[key.strip()] = option_value(value.strip())
    return found


def says(*, quietly: bool = False) -> Callable[[Command], Command]:
    """Give a command ``--json`` and ``--plain``, maybe ``--quiet``: it takes them as ``output``."""
    options = [
        click.option("--json", "as_json", is_flag=True, help="One JSON document, for scripts."),
        click.option(
            "--plain",
            is_flag=True,
            help="No boxes, colours and control codes, as where there is no terminal.",
        ),
    ]
    if quietly:
        help_ = "Say nothing but errors and the folder of the results."
        options.append(click.option("--quiet", "-q", is_flag=True, help=help_))

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def saying(
            *arguments: Any, as_json: bool, plain: bool, quiet: bool = False, **values: Any
        ) -> None:
            output = terminal.Output(as_json=as_json, plain=plain, quiet=quiet)
            command(*arguments, output=output, **values)

        found: Command = saying
        for option in reversed(options):
            found = option(found)
        return found

    return decorate
