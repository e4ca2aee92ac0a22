"""Commands on links and this machine: profiles, calibrate, doctor."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from experiments.commands import options as common
from testbed.config_error import ConfigError
from testbed.report import terminal


@click.group(invoke_without_command=True)
@common.says()
@click.pass_context
def profiles(context: click.Context, output: terminal.Output) -> None:
    """List the link profiles; `profiles show NAME` prints one."""
    if context.invoked_subcommand is None:
        from testbed.network import profiles as links
        from testbed.report import profiles as report

        found = [links.load(name) for name in links.names()]
        output.show(report.listing(found), [report.row(profile) for profile in found])


@profiles.command()
@click.argument("name", metavar="NAME|FILE.toml", shell_complete=common.offers("profile"))
@common.says()
def show(name: str, output: terminal.Output) -> None:
    """One profile: its numbers, where each comes from, and what it can carry."""
    from testbed.network.profiles import load
    from testbed.report import profiles as report

    profile = load(name)
    if not output.as_json:
        output.say(f"{profile.summary}\n")
    output.show(report.page(profile), report.details(profile))
    if not output.as_json:
        for source in profile.sources:
            output.say(f"source: {source}")


@click.command()
@click.option(
    "--profile",
    "names",
    shell_complete=common.offers("profile"),
    multiple=True,
    default=("4g",),
    metavar="NAME,...|all",
    help="What to measure: profiles or your own .toml files; may be repeated.  [default: 4g]",
)
@click.option(
    "--links",
    shell_complete=common.offers("links"),
    default="auto",
    metavar="auto|netem|userspace|loopback",
    help="As for launch.  [default: auto]",
)
@click.option(
    "--seconds",
    default=40.0,
    type=common.Decimal(),
    metavar="N",
    help="Most that each profile may take, 5 to 3600; what does not fit is not measured.  "
    "[default: 40]",
)
@common.says()
def calibrate(names: tuple[str, ...], links: str, seconds: float, output: terminal.Output) -> None:
    """Measure links and hold them against their profiles; exit 1 where a gate is missed.

    \b
    Examples:
      python cli.py calibrate --profile=4g,wifi
      python cli.py calibrate --profile=all --links=userspace --json
    """
    from testbed.calibration import measure, report
    from testbed.links.interface import Backend, LinkError
    from testbed.machine import limits

    def check(nodes: int, backend: Backend) -> None:
        asked = f"--profile={','.join(names)}"
        limits.allow(nodes, streams=backend.name == "loopback", what=asked)

    limits.require_proc()
    if not 5 <= seconds <= 3600:
        raise ConfigError(f"--seconds {seconds:g}: must be 5 to 3600")
    profiles = measure.named(names)
    try:
        found = measure.calibrate(profiles, links, seconds, terminal.say, check)
    except LinkError as error:
        terminal.complain(str(error))
        sys.exit(1)
    output.show(report.table(found), report.data(found))
    terminal.say(report.closing(found))
    sys.exit(0 if found.passed else 1)


@click.command()
@click.option(
    "--mininet",
    required=True,
    shell_complete=common.offers("file"),
    metavar="FILE.py:NAME",
    help="The running net's topology: of the file's `topos`, as for `mn --custom`.",
)
@click.option("--server", metavar="HOST", help="The host that the others probe.")
@common.says()
def certify(mininet: str, server: str | None, output: terminal.Output) -> None:
    """Hold a running Mininet's links against its topology; exit 1 where one is not as asked.

    \b
    Example:
      sudo python cli.py certify --mininet=net.py:mytopo
    """
    import msgspec

    from testbed.library import mininet as nets
    from testbed.report import certificate

    topo = nets.topology(mininet)
    running = nets.Running(topo, nets.running_hosts(topo.hosts()))
    network = nets.MininetNetwork(running, server)
    try:
        found = network.certificate()
    finally:
        network.down()
    output.show(certificate.table(found), msgspec.to_builtins(found))
    terminal.say(f"links checked: {found.verdict}: {found.reason}")
    sys.exit(0 if found.verdict == "pass" else 1)


@click.command()
@click.option(
    "--hosts",
    metavar="ADDRESS[:PORT],...",
    help="Whether a run on these could begin, too: who answers, and has the same software.",
)
@common.token_file()
@common.says()
def doctor(hosts: str | None, token_file: Path | None, output: terminal.Output) -> None:
    """Say what this machine can do, and how to close each gap."""
    import msgspec

    from experiments import hosts as spread
    from testbed.machine import doctor as checks

    if hosts is None and token_file is not None:
        raise ConfigError(f"--token-file={token_file}: {spread.ONE_HOST}")
    findings = checks.examine()
    if hosts is not None:
        from experiments import hosts_doctor

        findings += hosts_doctor.findings(hosts, spread.token(token_file))
    output.show(checks.table(findings), msgspec.to_builtins(findings))
