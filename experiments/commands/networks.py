"""Commands on networks that stay: up, networks, shell, on, down."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import click
import msgspec

from experiments.commands import options as common
from testbed.config_error import ConfigError
from testbed.report import terminal

LINK_OPTIONS = ("profile", "clients", "server_profile", "links", "calibrate")
WORDS = "--"

_which = click.option(
    "--network",
    shell_complete=common.offers("network"),
    metavar="NAME",
    help="Which one.  [default: the only one; in a node, the node's]",
)


@contextlib.contextmanager
def _failing() -> Iterator[None]:
    """Say why a step failed, and end with 1."""
    from testbed.links.interface import LinkError

    try:
        yield
    except LinkError as error:
        terminal.complain(str(error))
        sys.exit(1)


@click.command()
@click.option("--name", metavar="NAME", help="Its name.  [default: the first free of net-1, …]")
@click.option(
    "--prompt",
    is_flag=True,
    help="Obey lines from standard input, as `shell` does; the network ends with them.",
)
@common.of_a_run(*LINK_OPTIONS)
@common.of_one_host()
@common.of_a_run("strict", help_="Have none where a link is not what its profile says.")
@common.says(quietly=True)
def up(name: str | None, prompt: bool, output: terminal.Output, **flags: Any) -> None:
    """Make a network that stays, with nodes for whatever is run in them, until `down`.

    \b
    Examples:
      python cli.py up --profile=4g --clients=4 --name=lab
      python cli.py on client-1 -- ping -c 3 server
      python cli.py down lab
    """
    from testbed.library import places
    from testbed.library.network import NotAsAsked
    from testbed.library.standing import StandingNetwork
    from testbed.network.profiles import load
    from testbed.network.topology import plan
    from testbed.run.client_links import client_links
    from testbed.run.config import RunConfig, convert

    given = {key: value for key, value in flags.items() if value is not None}
    asked = convert(given, RunConfig, "the flags")
    if asked.strict and not asked.calibrate:
        raise ConfigError(
            "--strict with --no-calibrate: links that nobody probes are not known to be as their "
            "profile says; leave one out"
        )
    server = None if asked.server_profile is None else load(asked.server_profile)
    layout = plan(client_links(asked), server)
    visiting = [sys.executable, os.path.abspath(sys.argv[0]), "on"]
    with _failing():
        try:
            network = StandingNetwork(
                layout,
                places.take(name),
                visiting,
                links=asked.links,
                certify=asked.calibrate,
                strict=asked.strict,
            )
        except NotAsAsked as error:
            terminal.complain(f"--strict: {error}")
            sys.exit(1)
        output.say(network.links)
        if (found := network.certificate) is not None:
            style = None if found.verdict == "pass" else "yellow"
            output.say(f"links checked: {found.verdict}: {found.reason}", style=style)
        launcher = network.folder / places.LAUNCHER
        output.result("network", network.folder.name)
        if prompt:
            with network:
                sys.exit(_prompt(network.folder, output))
        output.say(f"its launcher for mpiexec: {launcher}")
        network.leave()
    if output.as_json:
        told = {"name": network.folder.name, "links": network.links, "launcher": str(launcher)}
        output.document({**told, "certificate": msgspec.to_builtins(found)})


def _prompt(network: Any, output: terminal.Output) -> int:
    from testbed.library import listing
    from testbed.library.prompt import Prompt
    from testbed.processes.environment import original_environment

    def show(about: Any) -> None:
        output.show(listing.nodes(about), msgspec.to_builtins(about.nodes))

    return Prompt(network, original_environment(), show).read()


@click.command()
@common.says()
def networks(output: terminal.Output) -> None:
    """List the networks that stay."""
    from testbed.library import listing, places, visit
    from testbed.links.interface import LinkError

    found = []
    for folder in places.up():
        about = None
        with contextlib.suppress(ConfigError, LinkError):
            about = visit.about(folder)
        found.append(listing.Listed(folder, about))
    output.show(listing.networks(found), listing.data(found))


@click.command()
@click.argument("node", required=False)
@_which
@common.says()
def shell(node: str | None, network: str | None, output: terminal.Output) -> None:
    """Give a prompt of a network's, as Mininet does, or in NODE the user's shell.

    Lines may come from a file, too; the exit status is then that of the last command.

    \b
    Examples:
      python cli.py shell
      lab> client-1 ping -c 3 server
      python cli.py shell client-1
    """
    from testbed.library import places, prompt, visit
    from testbed.processes.environment import original_environment

    found = places.find(network)
    with _failing():
        if node is None:
            sys.exit(_prompt(found, output))
        original = original_environment()
        sys.exit(visit.run(found, node, prompt.shell(original), original))


@click.command(context_settings={"allow_interspersed_args": False})
@click.argument("node")
@click.argument(
    "command", nargs=-1, type=click.UNPROCESSED, required=True, metavar="[--] COMMAND..."
)
@_which
def on(node: str, command: tuple[str, ...], network: str | None) -> None:
    """Run a command in NODE, and end as it does.

    Words after -- are the command's as they are; without -- they are a line for a shell, as rsh has
    it, so that mpiexec and its like take this as their launcher.

    \b
    Examples:
      python cli.py on client-1 -- ping -c 3 server
      python cli.py on --network=lab client-1 'cd /srv && ls | wc -l'
    """
    from testbed.library import places, visit
    from testbed.processes.environment import original_environment

    if command == (WORDS,):
        raise click.UsageError("after -- there is no command")
    words = list(command[1:]) if command[0] == WORDS else " ".join(command)
    with _failing():
        sys.exit(visit.run(places.find(network), node, words, original_environment()))


@click.command()
@click.argument("name", required=False, shell_complete=common.offers("network"))
@click.option("--all", "every", is_flag=True, help="All that are up.")
def down(name: str | None, every: bool) -> None:
    """End a network, with every program in it.  [default: the only one]"""
    from testbed.library import places, visit

    if every and name is not None:
        raise ConfigError(f"down {name} --all: ends either that one or all; leave one out")
    with _failing():
        for folder in places.up() if every else [places.find(name)]:
            visit.end(folder)
            click.echo(f"ended: {folder.name}")
