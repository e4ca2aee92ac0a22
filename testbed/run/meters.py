"""Meters of a run's network: its links' certificate before, their counters, and captures."""

import contextlib
from collections.abc import Callable

import msgspec

from testbed import clock
from testbed.fidelity import checks, settling
from testbed.fidelity.checks import Certificate
from testbed.fidelity.prober import Prober
from testbed.links.interface import Network
from testbed.metering.capture import Capture, in_folder, unused
from testbed.network.topology import Plan
from testbed.record import events, ideal_rounds
from testbed.record.reading import SUPERVISOR
from testbed.run.hosts.captures import HostsCapture
from testbed.run.hosts.driver import Hosts
from testbed.run.ledger import Ledger, RunFailed


class Meters:
    """Measurements of a network that is up, beside the programs on it.

    Processes that they start end with ``owned``, which also has the last counters recorded.
    """

    def __init__(
        self, plan: Plan, network: Network, ledger: Ledger, owned: contextlib.ExitStack
    ) -> None:
        self._plan, self._network, self._ledger, self._owned = plan, network, ledger, owned

    def record_links(self) -> None:
        """Tell what the links are."""
        lines = [ideal_rounds.of_node(node) for node in self._plan.nodes]
        links = {"facts": self._network.facts, "lines": lines, **self._network.record}
        self._ledger.record(SUPERVISOR, msgspec.convert(msgspec.to_builtins(links), events.Links))

    def prepare_capture(
        self, pcap: bool, server: bool = False, of_hosts: Hosts | None = None
    ) -> Callable[[], None]:
        """Ready the capturing process, where one is asked for; what is returned starts it.

        ``server``: of the server's interface too, beside the clients'. ``of_hosts``: those that
        have the nodes, where they are several.
        """
        if not pcap:
            return lambda: None
        nodes = self._plan.nodes if server else self._plan.clients
        folder = self._ledger.recorder.folder
        capture: Capture | HostsCapture
        if of_hosts is None:
            capture = Capture(nodes, self._network, in_folder(unused(folder)))
        else:
            capture = HostsCapture(of_hosts, self._plan, self._network, folder, server=server)
        self._owned.callback(capture.close)

        def finish(kind: object, error: BaseException | None, trace: object) -> None:
            if of_hosts is not None and isinstance(error, OSError):
                # On a full disk, say: nobody waits for what the other hosts have, to drop it.
                return
            captured = msgspec.convert(capture.stop(), events.Captured, from_attributes=True)
            if server:
                captured.nodes = [node.name for node in nodes]
            self._ledger.record(SUPERVISOR, captured)

        def start() -> None:
            capture.start()
            self._owned.push(finish)

        return start

    def probe_links(
        self, calibrate: bool, strict: bool, of_hosts: Callable[[], Certificate] | None = None
    ) -> Callable[[], None]:
        """Start probing; what is returned waits for its end and records the certificate.

        ``of_hosts`` probes links of several hosts, once that is waited for.
        """
        prober = None
        if calibrate and of_hosts is None:
            prober = Prober(self._plan, self._network, clock.dilation())
            self._owned.callback(prober.close)
            clock.follow(prober.streams)  # Nodes that load keep a relay from its work.
        began_s = clock.monotonic()

        def finish() -> None:
            certificate, seconds = checks.skipped("not asked for (--no-calibrate)"), 0.0
            if prober is not None:
                certificate, seconds = prober.certificate(), clock.monotonic() - began_s
                prober.close()
                clock.follow(False)
            elif calibrate and of_hosts is not None:
                since_s = clock.monotonic()
                certificate, seconds = of_hosts(), clock.monotonic() - since_s
            if not all(check.ok for check in certificate.checks) or (prober and prober.broken):
                streams = prober is not None and prober.streams
                still_s = settling.still_s(self._plan, streams, clock.dilation())
                settling.await_stillness(self._network, still_s)
            event = events.Certified(
                seconds=round(seconds, 3),
                fidelity=msgspec.convert(certificate, events.Fidelity, from_attributes=True),
                counters=msgspec.to_builtins(self._network.counters()),
                held_s=round(clock.held_s(), 6),
            )
            self._ledger.record(SUPERVISOR, event)
            fails = certificate.verdict == "fail" or (prober is not None and prober.broken)
            if strict and fails:
                raise RunFailed(f"--strict: {certificate.reason}")

        return finish

    def record_wire(self, number: int | None) -> None:
        """Record the counters as they are, after round ``number`` or in none."""
        counters = msgspec.to_builtins(self._network.counters())
        held_s = round(clock.held_s(), 6)
        self._ledger.record(SUPERVISOR, events.Wire(round=number, counters=counters, held_s=held_s))
