"""`cli.py launch`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from experiments.commands import options as common
from testbed import extras
from testbed.config_error import ConfigError
from testbed.report import terminal


@click.command()
@click.option(
    "--config",
    type=common.File(),
    metavar="FILE.toml",
    help="A run as a file, such as the config.toml of an earlier one. Flags override it.",
)
@common.of_a_run()
@common.of_a_method("An option of the method, such as rank=4; may be repeated.")
@click.option(
    "--tensorboard",
    is_flag=True,
    help="Write event files for TensorBoard at the end, with wiretune[tensorboard].",
)
@click.option(
    "--resume",
    type=common.File(),
    shell_complete=common.offers("run"),
    metavar="RUN",
    help="Go on with a killed run, in its folder and as it was, after the last round that its "
    "nodes have kept; takes no other flag.",
)
@common.token_file()
@common.says(quietly=True)
@click.pass_context
def launch(
    context: click.Context,
    /,
    config: Path | None,
    options: dict[str, Any],
    resume: Path | None,
    tensorboard: bool,
    token_file: Path | None,
    output: terminal.Output,
    **flags: Any,
) -> None:
    """Run one method over shaped links and measure it.

    \b
    Examples:
      python cli.py launch --profile=4g --clients=20
      python cli.py launch --profile=4g:12,wifi:5,3g:3 --method=fedavg --rounds=10
      python cli.py launch --links=loopback --clients=2 --rounds=1
      python cli.py launch --resume=results/RUN
    """
    extras.require("launch", "train")
    if tensorboard:
        from testbed.report.tensorboard import check

        check()
    from experiments import launch as launching

    if resume is not None:
        given = {"config": config, "options": options or None, **flags}
        if also := [name for name, value in given.items() if value is not None]:
            names = {own.name: own.opts[0] for own in context.command.params}
            raise ConfigError(
                f"--resume with {names[also[0]]}: the run goes on as it was, so it takes no other "
                "flag; `launch --config` on its config.toml starts another run, changed"
            )
    flags["options"] = options
    began_s = context.find_object(float) or time.monotonic()
    ways = tensorboard, resume, token_file
    sys.exit(launching.launch(config, flags, sys.argv, began_s, output, *ways))
