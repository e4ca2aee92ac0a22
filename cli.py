"""The command line. It reads flags, calls the testbed, and prints; it decides nothing else."""

from __future__ import annotations

import os
import signal
import sys
import time

STARTED_S = time.monotonic()

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # An interrupt before ``run`` ends this without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

# Before numpy and torch come in: a process that is to be forked may have no other threads.
# What the environment asks for would be that, and a node has one thread in any case.
# VECLIB is macOS's Accelerate, which crashes in a child if it has used threads in its parent.
for _pool in ("OMP_NUM", "OPENBLAS_NUM", "MKL_NUM", "VECLIB_MAXIMUM"):
    os.environ[f"{_pool}_THREADS"] = "1"
os.environ.pop("MKL_DOMAIN_NUM_THREADS", None)

import functools  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from types import FrameType  # noqa: E402
from typing import Any  # noqa: E402

import click  # noqa: E402

from testbed.config_error import ConfigError  # noqa: E402
from testbed.report import terminal  # noqa: E402
from testbed.report.text import visible  # noqa: E402

FAILED_EXIT = 1
USAGE_EXIT = 2
INTERRUPTED_EXIT = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """Measure how long a federated fine-tuning method takes, and how many bytes it moves,
    on a network of a given kind."""


class _File(click.Path):
    """A path in which ``~`` is a home, as a shell has it but where "=" stands before."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, parameter: Any, context: Any) -> Any:
        from testbed.outside import expanded

        return expanded(os.fsdecode(super().convert(value, parameter, context)))


def _options(values: tuple[str, ...]) -> dict[str, Any]:
    """``rank=4`` to {"rank": 4}: numbers and true/false as in TOML, anything else is text."""
    from testbed.run.config import option_value

    found: dict[str, Any] = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {text!r}: write OPTION=VALUE, such as --set rank=4")
        found[key.strip()] = option_value(value.strip())
    return found


def _number(context: click.Context, option: click.Parameter, value: str | None) -> Any:
    """A number where it is one; what a word may be is for the configuration to say."""
    try:
        return None if value is None else float(value)
    except ValueError:
        return value


def _offers(kind: str) -> Callable[[click.Context, click.Parameter, str], list[Any]]:
    """What completes a value of this kind in a shell."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[Any]:
        from experiments.commands import completion

        return completion.offer(kind, incomplete)

    return complete


def _says(*, quietly: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
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

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def saying(
            *arguments: Any, as_json: bool, plain: bool, quiet: bool = False, **values: Any
        ) -> None:
            output = terminal.Output(as_json=as_json, plain=plain, quiet=quiet)
            command(*arguments, output=output, **values)

        found: Callable[..., None] = saying
        for option in reversed(options):
            found = option(found)
        return found

    return decorate


@main.command()
@click.option(
    "--config",
    type=_File(),
    metavar="FILE.toml",
    help="A run as a file, such as the config.toml of an earlier one. Flags override it.",
)
@click.option(
    "--profile",
    shell_complete=_offers("profile"),
    metavar="NAME|MIX",
    help="Access link of the clients: a profile, your own .toml file, a link in words such as "
    "'rate 10mbit delay 20ms', or a mix such as 4g:12,wifi:5,3g:3.  [default: 4g]",
)
@click.option(
    "--positions",
    shell_complete=_offers("file"),
    metavar="FILE.toml",
    help="Instead of --profile: where an access point and its stations, the clients, are and move.",
)
@click.option(
    "--schedule",
    shell_complete=_offers("file"),
    metavar="FILE.toml",
    help="Changes and outages of the clients' links while training goes on.",
)
@click.option(
    "--availability",
    shell_complete=_offers("file"),
    metavar="on:S,off:S|FILE",
    help="When clients are away: mean seconds there and away, drawn for each; or a .toml or .csv "
    "file of times.  [default: always there]",
)
@click.option(
    "--server-profile",
    shell_complete=_offers("profile"),
    metavar="NAME",
    help="Access link of the server, which all clients share.  [default: without limits]",
)
@click.option(
    "--clients", type=int, metavar="N", help="Client processes.  [default: the mix's sum, or 20]"
)
@click.option(
    "--clients-per-round",
    type=int,
    metavar="N",
    help="How many of them a round takes, drawn anew each time.  [default: all]",
)
@click.option(
    "--method",
    shell_complete=_offers("method"),
    metavar="NAME",
    help="A file of methods/.  [default: fedpeft]",
)
@click.option("--rounds", type=int, metavar="N", help="[default: 5]")
@click.option(
    "--target-accuracy",
    type=float,
    metavar="X",
    help="End after the round that reaches it.  [default: all rounds]",
)
@click.option(
    "--links",
    shell_complete=_offers("links"),
    metavar="auto|netem|userspace|loopback",
    help="netem: the kernel's own shaping between network namespaces (root, or user namespaces). "
    "userspace: the same with a queue of ours, for kernels without sch_netem. "
    "loopback: a shaped relay on 127.0.0.1, no privileges. auto: the first that "
    "works.  [default: auto]",
)
@click.option(
    "--transport",
    metavar="zmq|gloo",
    help="gloo: fedavg and fedpeft average by an all-reduce among the clients (torch.distributed), "
    "and no weights go to the server.  [default: zmq]",
)
@click.option(
    "--congestion",
    shell_complete=_offers("congestion"),
    metavar="cubic|bbr|reno|...",
    help="TCP congestion control of every connection.  [default: the host's]",
)
@click.option(
    "--compute",
    shell_complete=_offers("compute"),
    metavar="real|modelled",
    help="modelled: nodes count operations and wait as long as their devices would compute; models "
    "of any size, and nothing is learnt.  [default: real]",
)
@click.option(
    "--device-class",
    shell_complete=_offers("device class"),
    metavar="CLASS|GFLOPS|MIX",
    help="What clients compute on: phone, pi, jetson, laptop, server, a number of GFLOP/s, or a "
    "mix such as phone:12,pi:8. Real compute is slowed down to it.  [default: a core of this "
    "machine each; phone where compute is modelled]",
)
@click.option(
    "--server-device-class",
    shell_complete=_offers("device class"),
    metavar="CLASS|GFLOPS",
    help="What the server computes on.  [default: a core of this machine; server where compute "
    "is modelled]",
)
@click.option(
    "--client-memory-mb",
    type=float,
    metavar="MB",
    help="What each client may take; one that wants more ends. Of 10^6 bytes.  [default: what its "
    "device class has]",
)
@click.option(
    "--calibrate/--no-calibrate",
    default=None,
    help="Probe every link's round trip and rate while the nodes load, and certify them.  "
    "[default: calibrate]",
)
@click.option(
    "--pcap",
    is_flag=True,
    default=None,
    help="Capture what crosses each client's interface, for Wireshark; not on loopback links.",
)
@click.option(
    "--strict",
    is_flag=True,
    default=None,
    help="Fail before training where a link is not what its profile says, and at the end where "
    "this machine had no time for all nodes.",
)
@click.option(
    "--dilation",
    callback=_number,
    metavar="K|auto",
    help="Let the run's clock go K times slower than this machine's, so that few cores have time "
    "for many clients. All times, limits too, are of that clock. auto: as a trial round says.  "
    "[default: 1]",
)
@click.option("--seed", type=int, metavar="N", help="[default: 0]")
@click.option(
    "--model",
    shell_complete=_offers("model"),
    metavar="NAME|FOLDER|REPOSITORY",
    help="vit-glyphs, vit-b16, vit-l16, or a ViT that transformers saved: its folder or its name "
    "on the Hugging Face hub.  [default: vit-glyphs]",
)
@click.option(
    "--dataset",
    shell_complete=_offers("dataset"),
    metavar="NAME",
    help="digits: 1,797 handwritten digits. glyphs: drawn, as many as the clients "
    "need. cifar10, cifar100, svhn: photographs, with wiretune[hub].  [default: digits]",
)
@click.option(
    "--data-path",
    shell_complete=_offers("folder"),
    metavar="FOLDER",
    help="Where cifar10, cifar100 or svhn is.  [default: downloaded from the Hugging Face hub]",
)
@click.option(
    "--train-samples",
    type=int,
    metavar="N",
    help="Training images of all clients together.  [default: all there are; of glyphs, 64 a "
    "client and at least 2,000]",
)
@click.option(
    "--partition",
    shell_complete=_offers("partition"),
    metavar="dirichlet|iid|pathological",
    help="How samples are split over clients; pathological: each has a few classes.  "
    "[default: dirichlet]",
)
@click.option(
    "--alpha",
    type=float,
    metavar="X",
    help="Dirichlet concentration; smaller is more skewed.  [default: 0.5]",
)
@click.option(
    "--classes-per-client",
    type=int,
    metavar="N",
    help="Most classes of a client in the pathological partition.  [default: 2]",
)
@click.option(
    "--round-timeout",
    "round_timeout_s",
    type=float,
    metavar="SECONDS",
    help="Limit of every wait in a round.  [default: 600]",
)
@click.option(
    "--deadline",
    "deadline_s",
    type=float,
    metavar="SECONDS",
    help="How long a round takes updates; who is later is left out of it.  [default: the round "
    "timeout]",
)
@click.option(
    "--time-limit",
    "time_limit_s",
    type=float,
    metavar="SECONDS",
    help="Limit of the whole run.  [default: 86400]",
)
@click.option(
    "--set",
    "options",
    multiple=True,
    metavar="OPTION=VALUE",
    help="An option of the method, such as rank=4; may be repeated.",
)
@click.option(
    "--out",
    shell_complete=_offers("folder"),
    metavar="FOLDER",
    help="Gets one folder a run.  [default: results]",
)
@click.option(
    "--tensorboard",
    is_flag=True,
    help="Write event files for TensorBoard at the end, with wiretune[tensorboard].",
)
@click.option(
    "--checkpoints/--no-checkpoints",
    default=None,
    help="Keep every node's state after each round, in the run's folder, until the run is over.  "
    "[default: checkpoints]",
)
@click.option(
    "--resume",
    type=_File(),
    shell_complete=_offers("run"),
    metavar="RUN",
    help="Go on with a killed run, in its folder and as it was, after the last round that its "
    "nodes have kept; takes no other flag.",
)
@_says(quietly=True)
def launch(
    config: Path | None,
    options: tuple[str, ...],
    resume: Path | None,
    tensorboard: bool,
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
    if tensorboard:
        from testbed.report.tensorboard import check

        check()
    from experiments import launch as launching

    if resume is not None:
        given = {"config": config, "options": options or None, **flags}
        if also := [name for name, value in given.items() if value is not None]:
            names = {own.name: own.opts[0] for own in click.get_current_context().command.params}
            raise ConfigError(
                f"--resume with {names[also[0]]}: the run goes on as it was, so it takes no other "
                "flag; `launch --config` on its config.toml starts another run, changed"
            )
    flags["options"] = _options(options)
    sys.exit(launching.launch(config, flags, sys.argv, STARTED_S, output, tensorboard, resume))


def _list(context: click.Context, option: click.Parameter, value: str | None) -> list[Any]:
    """ "0,1,2" to a list, numbers where the option is of numbers."""
    from testbed.network import mix

    found = mix.listed(value or "")
    if option.metavar == "N,...":
        if wrong := [part for part in found if not part.isdecimal()]:
            raise ConfigError(f"--{option.name} {value!r}: {wrong[0]!r} is no whole number")
        return [int(part) for part in found]
    return found


@main.command()
@click.option(
    "--preset",
    shell_complete=_offers("preset"),
    metavar="NAME|FILE.toml",
    help="A bench that comes with Wiretune, or your own file.",
)
@click.option(
    "--methods",
    shell_complete=_offers("method"),
    multiple=True,
    metavar="METHOD[:OPTION=VALUE...],...",
    help="Rows of the comparison, such as fedavg,fedpeft:variant=bias; may be repeated.",
)
@click.option(
    "--profiles",
    shell_complete=_offers("profile"),
    callback=_list,
    metavar="NAME,...",
    help="Link profiles to compare on.",
)
@click.option("--clients", callback=_list, metavar="N,...", help="Numbers of clients.")
@click.option("--seeds", callback=_list, metavar="N,...", help="Seeds; figures are medians.")
@click.option("--repeat", type=int, metavar="N", help="Runs of each; figures are medians.")
@click.option("--rounds", type=int, metavar="N", help="Of each run.")
@click.option("--target-accuracy", type=float, metavar="X", help="Compare what it takes to reach.")
@click.option(
    "--links",
    shell_complete=_offers("links"),
    metavar="auto|netem|userspace|loopback",
    help="As for launch.",
)
@click.option(
    "--compute", shell_complete=_offers("compute"), metavar="real|modelled", help="As for launch."
)
@click.option(
    "--device-class",
    shell_complete=_offers("device class"),
    metavar="CLASS|GFLOPS|MIX",
    help="As for launch.",
)
@click.option(
    "--set",
    "options",
    multiple=True,
    metavar="OPTION=VALUE",
    help="An option of every row's method; may be repeated.",
)
@click.option(
    "--budget", type=float, metavar="MINUTES", help="Begin no run after so long.  [default: none]"
)
@click.option(
    "--out",
    shell_complete=_offers("folder"),
    metavar="FOLDER",
    help="Keeps the runs; the same bench goes on where it ended.  [default: results/bench-NAME]",
)
@_says(quietly=True)
def bench(
    preset: str | None,
    methods: tuple[str, ...],
    profiles: list[str],
    clients: list[int],
    seeds: list[int],
    repeat: int | None,
    options: tuple[str, ...],
    budget: float | None,
    out: str | None,
    output: terminal.Output,
    **flags: Any,
) -> None:
    """Compare methods over link profiles: many runs, one table.

    \b
    Examples:
      python cli.py bench --preset=digits
      python cli.py bench --methods=fedavg --methods=fedpeft --profiles=4g,wifi --seeds=0,1,2
      python cli.py bench --preset=fedpeft-table --profiles=ethernet --device-class=server
    """
    from experiments.commands import bench as command

    run = {name: value for name, value in flags.items() if value is not None}
    if options:
        run["options"] = _options(options)
    axes: dict[str, list[Any]] = {"profiles": profiles, "clients": clients, "seeds": seeds}
    sys.exit(command.bench(preset, methods, axes, repeat, run, out, budget, output))


@main.command()
@click.argument("run", metavar="RUN", type=_File(), shell_complete=_offers("run"))
def report(run: Path) -> None:
    """Write RUN/report.html, one page that opens from disk; launch does so by itself.

    \b
    Example:
      python cli.py report results/RUN
    """
    from testbed.report import run_page

    try:
        click.echo(visible(f"report: {run_page.write(run)}"))
    except OSError as error:
        raise ConfigError(f"RUN {run}: cannot write the report: {error.strerror}") from error


@main.command()
@click.argument("run", metavar="RUN", type=_File(), shell_complete=_offers("run"))
@_says()
def links(run: Path, output: terminal.Output) -> None:
    """Say a run's links in tc's words, and while it goes on the way into its namespaces.

    \b
    Example:
      python cli.py links results/RUN
    """
    from testbed.report import way_in

    found = way_in.of(run)
    if output.as_json:
        output.document(way_in.document(found))
        return
    for line in way_in.lines(found):
        click.echo(visible(line))


@main.command()
@click.argument("run", metavar="RUN", type=_File(), shell_complete=_offers("run"))
@click.option("--csv", "as_csv", is_flag=True, help="rounds, clients, kinds and spans as CSV.")
@click.option("--tensorboard", is_flag=True, help="Event files for TensorBoard.")
@click.option(
    "--out",
    type=_File(),
    metavar="FOLDER",
    help="Gets what is written.  [default: the run's folder]",
)
@_says()
def export(
    run: Path, as_csv: bool, tensorboard: bool, out: Path | None, output: terminal.Output
) -> None:
    """Write a run's figures for other programs.

    \b
    Examples:
      python cli.py export results/RUN --csv
      python cli.py export results/RUN --tensorboard && tensorboard --logdir=results/RUN
    """
    from testbed.report import export as exporting

    forms = [form for form, asked in (("csv", as_csv), ("tensorboard", tensorboard)) if asked]
    written = [path.as_posix() for path in exporting.export(run, forms, out)]
    if output.as_json:
        output.document({"written": written})
    for path in written:
        output.say(f"export: {path}")


@main.command()
@click.argument(
    "runs",
    metavar="RUN...",
    nargs=-1,
    required=True,
    type=_File(),
    shell_complete=_offers("run or bench"),
)
@click.option(
    "--target",
    type=click.FloatRange(0, 1),
    metavar="X",
    help="Accuracy to compare at.  [default: the greatest that all reached, rounded down to 0.01]",
)
@click.option(
    "--out",
    type=_File(),
    metavar="FILE.html",
    help="[default: comparison.html in the bench's folder, or beside the first run's]",
)
@_says(quietly=True)
def compare(
    runs: tuple[Path, ...], target: float | None, out: Path | None, output: terminal.Output
) -> None:
    """Hold runs against one another: a table, and a page with their curves.

    RUN is a run's folder, or a bench's with all its runs.

    \b
    Examples:
      python cli.py compare results/RUN results/OTHER-RUN
      python cli.py compare results/bench-digits --target=0.9
    """
    from testbed.report import comparison, comparison_page

    found = comparison.runs(runs)
    rows, reached = comparison.compare(found, target)
    notes = comparison.notes(found)
    try:
        path = comparison_page.write(rows, reached, runs, out, notes)
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot write the page: {error.strerror}") from error
    output.show(comparison.table(rows, reached), comparison.data(rows, reached, notes))
    for text in [*(comparison.sentence(row, reached) for row in rows), *notes]:
        output.say(text)
    output.result("comparison", path)


@main.command()
@click.option(
    "--out",
    default="results",
    type=_File(),
    metavar="FOLDER",
    help="Where the runs' folders are.  [default: results]",
)
@_says()
def results(out: Path, output: terminal.Output) -> None:
    """List runs, the newest first."""
    from testbed.report import listing

    found = listing.rows(out)
    output.show(listing.table(found), found)


@main.group(invoke_without_command=True)
@_says()
@click.pass_context
def profiles(context: click.Context, output: terminal.Output) -> None:
    """List the link profiles; `profiles show NAME` prints one."""
    if context.invoked_subcommand is None:
        from testbed.network import profiles as links
        from testbed.report import profiles as report

        found = [links.load(name) for name in links.names()]
        output.show(report.listing(found), [report.row(profile) for profile in found])


@profiles.command()
@click.argument("name", metavar="NAME|FILE.toml", shell_complete=_offers("profile"))
@_says()
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


@main.command()
@click.option(
    "--profile",
    "names",
    shell_complete=_offers("profile"),
    multiple=True,
    default=("4g",),
    metavar="NAME,...|all",
    help="What to measure: profiles or your own .toml files; may be repeated.  [default: 4g]",
)
@click.option(
    "--links",
    shell_complete=_offers("links"),
    default="auto",
    metavar="auto|netem|userspace|loopback",
    help="As for launch.  [default: auto]",
)
@click.option(
    "--seconds",
    default=40.0,
    type=click.FloatRange(5, 3600),
    metavar="N",
    help="Most that each profile may take; what does not fit is not measured.  [default: 40]",
)
@_says()
def calibrate(names: tuple[str, ...], links: str, seconds: float, output: terminal.Output) -> None:
    """Measure links and hold them against their profiles; exit 1 where a gate is missed.

    \b
    Examples:
      python cli.py calibrate --profile=4g,wifi
      python cli.py calibrate --profile=all --links=userspace --json
    """
    from testbed.calibration import measure, report
    from testbed.links.interface import LinkError

    profiles = measure.named(names)
    try:
        found = measure.calibrate(profiles, links, seconds, _say)
    except LinkError as error:
        _complain(str(error))
        sys.exit(1)
    output.show(report.table(found), report.data(found))
    _say(report.closing(found))
    sys.exit(0 if found.passed else 1)


@main.command()
@_says()
def doctor(output: terminal.Output) -> None:
    """Say what this machine can do, and how to close each gap."""
    import msgspec

    from testbed.machine import doctor as checks

    findings = checks.examine()
    output.show(checks.table(findings), msgspec.to_builtins(findings))


def run() -> None:
    """``main``, with a refusal as one line on stderr and exit status 2."""
    terminal.guard()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupt)
    status = _status()
    # Nothing is left to interrupt but Python's own end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if reason := terminal.lost_output():
        _complain(f"cannot write to standard output: {reason}")
        status = status or FAILED_EXIT
    sys.exit(status)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Once: what an interrupt leads to, another one does not end."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _say(text: str) -> None:
    """Beside what was asked for."""
    click.echo(visible(text), err=True)


def _complain(text: str) -> None:
    _say(f"error: {text}")


def _status() -> int:
    if "COMP_WORDS" in os.environ:
        from experiments.commands import completion

        completion.register()
    try:
        main.main(standalone_mode=False)
        return 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else FAILED_EXIT
    except ConfigError as error:
        _complain(str(error))
        return USAGE_EXIT
    except click.ClickException as error:
        vars(error)["message"] = visible(error.message)
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED_EXIT


if __name__ == "__main__":
    run()
