"""`cli.py exec`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from experiments.commands import options as common
from testbed.config_error import ConfigError
from testbed.exec.config import OF_HOSTS, OF_LINKS, ExecConfig
from testbed.report import terminal


def _variables(
    context: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    found = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"--env {text!r}: write NAME=VALUE, such as --env LOG=debug")
        found[name] = value
    return found


@click.command(name="exec", context_settings={"ignore_unknown_options": False})
@click.option(
    "-f",
    "--file",
    type=common.File(),
    shell_complete=common.offers("file"),
    metavar="FILE.toml",
    help="Links and programs as a file, such as the config.toml of an earlier run, with a table "
    "[nodes.NAME] for a node of its own. Flags override it, but for what such tables have.",
)
@common.of_a_struct(ExecConfig)
@click.option(
    "--env",
    multiple=True,
    callback=_variables,
    metavar="NAME=VALUE",
    help="A variable of every node's environment; may be repeated.",
)
@common.of_a_run(*(name for name in OF_LINKS if name != "dilation"), *OF_HOSTS)
@common.token_file()
@common.of_a_run("dilation", help_="None but 1: programs of others go by this machine's clock.")
@click.argument("command", nargs=-1, metavar="[-- COMMAND...]")
@common.says(quietly=True)
@click.pass_context
def exec(
    context: click.Context,
    /,
    file: Path | None,
    token_file: Path | None,
    output: terminal.Output,
    **flags: Any,
) -> None:
    """Run anybody's programs, unchanged, as nodes behind shaped links, and meter them.

    \b
    Examples:
      python cli.py exec --profile=4g --clients=4 -- ping -c 3 server
      python cli.py exec --profile=4g --clients=4 --wait-port=8000 --until=clients \\
        --server='python -m http.server 8000' --client='curl -sO http://server:8000/FILE'
      python cli.py exec -f net.toml
      python cli.py exec --hosts=10.0.0.1,10.0.0.2 --clients=40 -- ping -c 3 server
    """
    from experiments import exec as executing

    began_s = context.find_object(float) or time.monotonic()
    sys.exit(executing.execute(file, flags, sys.argv, began_s, output, token_file))
