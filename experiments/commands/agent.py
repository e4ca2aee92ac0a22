"""`cli.py agent`."""

from __future__ import annotations

from pathlib import Path

import click

from experiments.commands import options as common


@click.command()
@click.option(
    "--listen",
    required=True,
    metavar="ADDRESS[:PORT]",
    help="Where drivers call it, at this address alone; port 7400 unless another is named.",
)
@common.token_file()
@click.option(
    "--until-input-ends",
    is_flag=True,
    help="End with standard input, as whatever has started it does.",
)
def agent(listen: str, token_file: Path | None, until_input_ends: bool) -> None:
    """Have a part in runs that another machine starts with --hosts: of launch, bench and exec.

    It serves one run at a time, and needs the same program and packages as the other hosts, and
    where they train the same model and data. They all have one token, of 32 bytes or more: whoever
    has it runs commands here as the user that the agent runs as.

    \b
    Example:
      export WIRETUNE_TOKEN=$(cat token)
      python cli.py agent --listen=10.0.0.2
    """
    from experiments import agent as serving
    from experiments import hosts

    serving.run(listen, hosts.token(token_file), until_input_ends=until_input_ends)
