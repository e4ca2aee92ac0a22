"""Agents on the hosts of a Ray cluster: one actor a host starts one and ends it with itself.

`ray start` has been run on each host (`wiretune[hosts]`). Actors are spread over different hosts by
a placement group (STRICT_SPREAD). Ray brings threads into processes that have to fork, so who
speaks to it is a process of its own, and so is an agent, which ends as its input does: with its
actor, and that with the driver.
"""

import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from testbed import extras
from testbed.config_error import ConfigError
from testbed.processes.channel import Channel
from testbed.processes.environment import TOKEN
from testbed.processes.worker import NoAnswer, Refusal, Result, Worker

AUTO = "auto"
"""In place of addresses: those of the cluster that this host belongs to."""
LIMIT_S = 60.0
"""For all agents to listen."""
END_LIMIT_S = 10.0
_COMMAND = [sys.executable, str(Path(sys.argv[0]).absolute())]
_LISTENS = "agent: listening at "


class Found(msgspec.Struct, tag="found"):
    """Hosts of a cluster whose agents listen."""

    addresses: str
    """As of `--hosts`, the driver's own first."""
    token: str


class Starter:
    """The agent of the host that this is on; an actor's class."""

    def __init__(self, command: list[str], token: str) -> None:
        import ray

        self._address = str(ray.util.get_node_ip_address())
        words = [*command, "agent", f"--listen={self._address}:0", "--until-input-ends"]
        # A pipe that nobody reads would stop nodes which say much.
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._agent = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | {TOKEN: token},
        )

    def listens(self) -> str:
        """The address and port where it does; or what it said instead, which has no such."""
        assert self._agent.stdout is not None
        said = self._agent.stdout.readline().strip()
        if said.startswith(_LISTENS):
            return said.removeprefix(_LISTENS)
        self._errors.seek(0)
        lines = [said, *self._errors.read().strip().splitlines()]
        return f"{self._address}: {lines[-1] or 'the agent ended without a word'}"

    def end(self) -> None:
        """End it as its input's end does, and by force where that does not help."""
        assert self._agent.stdin is not None and self._agent.stdout is not None
        self._agent.stdin.close()
        try:
            self._agent.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._agent.kill()
            self._agent.wait()
        self._agent.stdout.close()
        self._errors.close()


@contextlib.contextmanager
def agents() -> Iterator[Found]:
    """Agents on all other hosts of the cluster, as long as the context is.

    Raises:
        ConfigError: Ray is missing, there is no cluster, or it has one host; or an agent does not
            listen, with what it said.
    """
    extras.require(f"--hosts={AUTO}", "hosts")

    def hold(channel: Channel) -> None:
        with listening() as found:
            channel.send(found)
            channel.receive()

    worker = Worker("client of Ray", hold, ConfigError, answers=Found | Result | Refusal)
    try:
        try:
            found = worker.receive(Found, 3 * LIMIT_S)
        except NoAnswer as error:
            raise ConfigError(str(error)) from error
        yield found
        with contextlib.suppress(NoAnswer):
            worker.stop(3 * END_LIMIT_S)
    finally:
        worker.close()


@contextlib.contextmanager
def listening() -> Iterator[Found]:
    """The same in a process that need not fork any more."""
    import ray

    try:
        ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
    except ConnectionError as error:
        raise ConfigError(
            f"--hosts={AUTO}: there is no Ray cluster here; on each host: ray start --head, or "
            "ray start --address=HEAD:6379"
        ) from error
    with contextlib.ExitStack() as owned:
        owned.callback(ray.shutdown)
        own = str(ray.util.get_node_ip_address())
        others = [
            node for node in ray.nodes() if node["Alive"] and node["NodeManagerAddress"] != own
        ]
        if not others:
            raise ConfigError(
                f"--hosts={AUTO}: the Ray cluster has this host alone; on another one: "
                "ray start --address=HEAD:6379"
            )
        token = secrets.token_hex(32)
        yield Found(",".join([own, *_started(ray, others, token, owned)]), token)


def _started(
    ray: Any, others: list[dict[str, Any]], token: str, owned: contextlib.ExitStack
) -> list[str]:
    """Addresses at which agents listen, once all do."""
    bundles = [{f"node:{node['NodeManagerAddress']}": 0.001} for node in others]
    group = ray.util.placement_group(bundles, strategy="STRICT_SPREAD")
    owned.callback(ray.util.remove_placement_group, group)
    if not group.wait(LIMIT_S):
        raise ConfigError(f"--hosts={AUTO}: Ray places nothing on {len(others)} other hosts")
    remote = ray.remote(Starter)
    starters = []
    for place in range(len(others)):
        strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(
            placement_group=group, placement_group_bundle_index=place
        )
        options = {"num_cpus": 0, "scheduling_strategy": strategy}
        starters.append(remote.options(**options).remote(_COMMAND, token))
    owned.callback(_end, ray, starters)
    try:
        found = ray.get([each.listens.remote() for each in starters], timeout=LIMIT_S)
    except ray.exceptions.RayError as error:
        raise ConfigError(f"--hosts={AUTO}: start agents: {error}") from error
    for said in found:
        if not said.rpartition(":")[2].isdigit():
            raise ConfigError(f"--hosts={AUTO}: no agent listens at {said}")
    return [str(each) for each in found]


def _end(ray: Any, starters: list[Any]) -> None:
    with contextlib.suppress(ray.exceptions.RayError):
        ray.get([each.end.remote() for each in starters], timeout=2 * END_LIMIT_S)
