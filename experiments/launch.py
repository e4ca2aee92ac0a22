"""One run from flags to a closing table: what `cli.py launch` does."""

import contextlib
import secrets
import shlex
from pathlib import Path
from typing import Any

import msgspec

import methods
from experiments import elastic
from experiments import hosts as spread
from experiments.aftermath import (
    EXIT_CODES,
    STRICT_UNPROBED,
    UNWRITTEN_EXIT,
    capture_warnings,
    give_to_caller,
    mix_label,
    remove_if_empty,
    write_about,
)
from nodes.workload import data
from testbed.config_error import ConfigError
from testbed.links import choice
from testbed.links.dilation import plan as dilated
from testbed.machine import limits
from testbed.metering import meter
from testbed.naming import slug
from testbed.network.hosts import written
from testbed.network.profiles import load as load_profile
from testbed.network.topology import Plan, plan
from testbed.processes import signals
from testbed.record import trust
from testbed.record.recorder import Recorder, create_folder
from testbed.record.recovery import Killed
from testbed.report.progress import RoundLines, closing_table
from testbed.report.terminal import Output
from testbed.report.text import few
from testbed.run import client_links
from testbed.run.config import RunConfig, choose, load, pace
from testbed.run.hosts.whole import HostsBackend
from testbed.run.supervisor import run
from testbed.transport import congestion, keys


def launch(
    file: Path | None,
    flags: dict[str, Any],
    command: list[str],
    started_s: float,
    output: Output,
    tensorboard: bool = False,
    resume: Path | None = None,
    token_file: Path | None = None,
) -> int:
    """Carry out a run and say what came of it; returns the exit status.

    ``tensorboard``: leave event files for TensorBoard, too. ``resume``: the folder of a killed run,
    which goes on. ``token_file``: of the hosts of a run on several.

    Raises:
        ConfigError: refused before anything has started.
    """
    with contextlib.ExitStack() as owned:
        killed = None if resume is None else owned.enter_context(contextlib.closing(Killed(resume)))
        told = output, tensorboard, killed, owned, token_file
        return _launch(file, flags, command, started_s, *told)


def _launch(
    file: Path | None,
    flags: dict[str, Any],
    command: list[str],
    started_s: float,
    output: Output,
    tensorboard: bool,
    killed: Killed | None,
    owned: contextlib.ExitStack,
    token_file: Path | None,
) -> int:
    # 1. Everything is checked before anything starts, the quick checks first.
    config = load(file if killed is None else killed.config_file, flags)
    config = spread.settled(config, flags)
    config, token = spread.reached(config, token_file, owned)
    profiles = client_links.client_links(config)
    server = None if config.server_profile is None else load_profile(config.server_profile)
    layout = plan(profiles, server, client_links.times_away(config, len(profiles)))
    choose("method", config.method, methods.names())
    choose("dataset", config.dataset, data.names())
    hosts = None
    if token is not None:
        called = owned.enter_context(spread.called(config, len(profiles), token))
    # They bring in torch, which takes seconds, on other hosts at the same time.
    from experiments import footprint, trial_run
    from experiments.resume import Resumption
    from nodes import accelerators
    from nodes.checkpoint import posting, store
    from nodes.program import FineTuning

    limits.require_proc()
    # What a dilated run's links really are: a rate that is divided may be none any more.
    slower = layout if config.dilation == "auto" else dilated(layout, pace(config))
    backend, why = choice.choose(config.links, slower, crowd=elastic.crowd(config, layout))
    asked_for = flags.get("dilation") == "elastic"
    possible = elastic.possible(config, backend.name, asked=asked_for)
    config = msgspec.structs.replace(config, dilation=possible)
    pinned, asked, told = _congestion(config, flags, backend.name, killed)
    config = msgspec.structs.replace(config, congestion=pinned)
    layout = msgspec.structs.replace(layout, congestion=pinned)
    config = msgspec.structs.replace(config, secure=keys.asked(config.secure, config.transport))
    program = FineTuning(config, len(profiles))
    limits.allow(len(layout.nodes), streams=backend.name == "loopback")
    check_links(config, backend.name, peer_to_peer=program.peer_to_peer)
    _refuse_unused(flags, program.task.partition)
    # 2. The configuration as it will be written: nothing left to a default.
    config = msgspec.structs.replace(
        client_links.repeatable(config),
        clients=len(profiles),
        links=backend.name,
        model=program.model,
        options=program.options,
        partition=program.task.partition,
        sequence_length=program.task.length,
        server_accelerator=accelerators.kind(program.places[0]),
        # The model is the clients' own there, and no file of one of them says which it is.
        checkpoints=config.checkpoints and config.transport != "gloo",
    )
    data_digest = program.task.fingerprint()
    link_files = client_links.files(config, [*profiles, *([server] if server else [])])
    if token is not None:
        told_hosts = spread.digests(config, data_digest, link_files)
        needs = footprint.of(config, program)
        joined = spread.joined(called, config, layout, told_hosts, needs)
        hosts, layout = owned.enter_context(joined)
        config = msgspec.structs.replace(config, place=written(layout))
    profile = mix_label(profiles)
    label = f"{config.method}-{profile.replace(':', 'x').replace(',', '+')}"
    facts = run_facts(config, layout, profile, command, asynchronous=program.asynchronous)
    facts["congestion"] = asked
    facts["secure"] = keys.told(config.secure)
    facts["data"] = data_digest
    facts["data_told"] = program.task.told
    facts["accelerators"] = accelerators.names(program.places)
    facts["files"] = link_files
    again = None
    if killed is None:
        with signals.COMMAND.making():
            folder = create_folder(Path(config.out), f"{slug(label)}-{len(profiles)}")
            owned.callback(remove_if_empty, folder)
        facts["run_id"] = folder.name
        facts["identity"] = secrets.token_hex(16)
    else:
        again = Resumption(killed, config, [node.name for node in layout.clients])
        folder = again.folder
        again.check_data(facts)
        again.check_files(facts)
        if read := again.read(config, facts):
            output.say(f"read because its config.toml says so: {few(read)}", style="yellow")
        for text in again.differences(facts):
            output.say(text, style="yellow")
        facts = again.facts(facts)
    owned.callback(give_to_caller, folder)
    # 3. The run, after a trial round where one is to say how slow it must be.
    if config.dilation == "auto":
        output.say("a trial round comes first, to find the dilation")
        try:
            found = trial_run.find(config, layout, backend, facts, folder)
        except trial_run.TrialFailed as error:
            output.error(str(error))
            return EXIT_CODES[error.status]
        output.say(f"dilation: {found.dilation:g}, by {found.how}")
        config = msgspec.structs.replace(config, dilation=found.dilation)
        facts |= {"dilation": found.dilation, "dilation_found": found.how}
        facts["config"] = msgspec.to_builtins(config)
    output.result("results", folder)
    output.say(why)
    if config.strict and not config.calibrate:
        output.say(STRICT_UNPROBED, style="yellow")
    if program.task.told is not None:
        output.say(f"texts: {program.task.told}")
    if told is not None:
        output.say(told, style="yellow")
    progress = RoundLines(output.console, config.rounds, len(profiles))
    # From here on the folder has something in it, and the run says in there how it ends.
    with signals.COMMAND.making():
        if config.checkpoints:
            start = again.start if again else store.Start(run=facts["identity"])
            states = store.ready(folder, start)
            program.keep(store.InFolder(states, start))
            if hosts is not None:
                hosts.states = posting.Collected(states, len(layout.nodes), start)
                owned.callback(hosts.states.close)
        recorder = Recorder(folder, started_s, killed)
        try:
            summary = run(
                config,
                layout,
                HostsBackend(hosts) if hosts else backend,
                program,
                recorder,
                facts,
                progress,
                again.past() if again else None,
                hosts,
            )
        finally:
            progress.close()
            recorder.close()
    # 4. What came of it.
    if summary.status == "ok":
        store.remove(folder)
    for text in capture_warnings(summary.captures):
        output.say(text, style="yellow")
    if summary.rounds_done or output.as_json:
        document = {"folder": folder.as_posix(), **msgspec.to_builtins(summary)}
        output.show(closing_table(summary), document, kept=True)
        trusted = summary.fidelity.verdict == "pass"
        output.say(trust.line(summary), style=None if trusted else "yellow")
    whole = write_about(folder, tensorboard, output)
    if summary.status != "ok":
        # Last, as a bench tells of it.
        output.error(f"{summary.status}: {summary.reason}")
    return EXIT_CODES[summary.status] or (0 if whole else UNWRITTEN_EXIT)


def check_links(config: RunConfig, links: str, *, peer_to_peer: bool) -> None:
    """Raises ConfigError where such ``links`` have not what the run needs.

    ``peer_to_peer``: whether its clients speak to one another.
    """
    if peer_to_peer and links == "loopback":
        asks = "transport" if config.transport == "gloo" else "method"
        raise ConfigError(
            f"{asks} = {getattr(config, asks)!r}: clients speak to one another, which takes links "
            "with namespaces; loopback links lead to the server alone"
        )
    if config.pcap and links == "loopback":
        raise ConfigError(
            "pcap = true: loopback links have no packets of a client's own, for all clients share "
            "127.0.0.1; take links with namespaces (--links=netem or userspace), or leave it out"
        )


def _refuse_unused(flags: dict[str, Any], partition: str) -> None:
    """Raises ConfigError for a flag that is of another partition than the run's."""
    for option, its in (("alpha", "dirichlet"), ("classes_per_client", "pathological")):
        if flags.get(option) is not None and partition != its:
            raise ConfigError(
                f"{option} = {flags[option]!r}: is of partition = {its!r}, and the run's is "
                f"{partition!r}; leave it out, or take --partition={its}"
            )


def _congestion(
    config: RunConfig, flags: dict[str, Any], links: str, killed: Killed | None
) -> tuple[str | None, str | None, str | None]:
    """The congestion control of a run's connections, the one asked for, and what is to be said."""
    if links == "loopback" and flags.get("congestion") is None:
        given = config.congestion
        told = f"congestion = {given!r} is left out: a relay stands in for TCP" if given else None
        return None, None, told
    if config.congestion is not None:
        congestion.check(config.congestion, links)
        return config.congestion, config.congestion, None
    if killed is not None:
        # It began with the host's own.
        return None, None, None
    pinned, told = congestion.default()
    return pinned, congestion.DEFAULT, told


def run_facts(
    config: RunConfig, layout: Plan, profile: str, command: list[str], *, asynchronous: bool
) -> dict[str, Any]:
    """Facts of a run before it begins, for its "run" event."""
    from nodes.workload import models

    return {
        "command": shlex.join(command),
        "method": config.method,
        "asynchronous": asynchronous,
        "transport": config.transport,
        "model": config.model,
        "dataset": config.dataset,
        "profile": profile,
        "server_profile": layout.server.profile.name if layout.server.profile else None,
        "profile_versions": {
            node.profile.name: node.profile.version
            for node in layout.nodes
            if node.profile and node.profile.version
        },
        "seed": config.seed,
        "compute": config.compute,
        "weights": models.fingerprint(config.model) if config.compute == "real" else None,
        "dilation": None if config.dilation == "auto" else pace(config),
        "elastic": config.dilation == "elastic",
        "device_class": config.device_class,
        "server_device_class": config.server_device_class,
        "accelerator": config.accelerator,
        "server_accelerator": config.server_accelerator,
        "client_memory_mb": config.client_memory_mb,
        "client_names": [node.name for node in layout.clients],
        "client_profiles": [node.profile.name for node in layout.clients if node.profile],
        "config": msgspec.to_builtins(config),
        "environment": meter.environment(),
    }
