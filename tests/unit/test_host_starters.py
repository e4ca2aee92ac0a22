"""Starters of a run on several hosts, in examples/hosts: what they start, and what they ask."""

import os
import stat
import subprocess
from pathlib import Path
from typing import Literal

import msgspec
import pytest
from talking import free_port

ROOT = Path(__file__).parents[2]
SLURM = ROOT / "examples" / "hosts" / "slurm.sh"
KUBERNETES = ROOT / "examples" / "hosts" / "kubernetes.yaml"
AGENT = """#!/bin/bash
echo "wiretune $* token:${#WIRETUNE_TOKEN}" >> "$SAID"
case $1 in
    agent) exec python3 -c '
import socket, sys, time
host, port = sys.argv[1].partition("=")[2].split(":")
with socket.create_server((host, int(port))): time.sleep(60)
' "$2" ;;
    *) exit 7 ;;
esac
"""
SRUN = """#!/bin/bash
words=("$@")
echo "srun ${words[*]:0:5}" >> "$SAID"
while [[ $1 == --* ]]; do shift; done
SLURMD_NODENAME=127.0.0.2 exec "$@"
"""


def programs(folder: Path, nodes: str) -> dict[str, str]:
    """An environment with stand-ins for Slurm's commands and for wiretune."""
    texts = {"wiretune": AGENT, "srun": SRUN, "scontrol": f"#!/bin/bash\nprintf '{nodes}'\n"}
    for name, text in texts.items():
        path = folder / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    said = folder / "said"
    said.touch()
    return {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SAID": str(said),
    }


def test_a_slurm_job_has_an_agent_on_each_node_but_the_first_which_drives(
    tmp_path: Path,
) -> None:
    port = free_port()
    environ = programs(tmp_path, "127.0.0.1\\n127.0.0.2\\n") | {"PORT": str(port)}
    words = ["bash", str(SLURM), "--clients=400", "--profile=4g"]
    done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=60)
    # The status is that of the run, and the agents have ended with it.
    assert done.returncode == 7, done.stderr
    assert (tmp_path / "said").read_text().splitlines() == [
        "srun --nodes=1 --ntasks=1 --ntasks-per-node=1 --kill-on-bad-exit=1 --nodelist=127.0.0.2",
        f"wiretune agent --listen=127.0.0.2:{port} token:64",
        f"wiretune launch --hosts=127.0.0.1,127.0.0.2:{port} --clients=400 --profile=4g token:64",
    ]


def test_a_slurm_job_of_one_node_is_refused(tmp_path: Path) -> None:
    environ = programs(tmp_path, "n1\\n")
    done = subprocess.run(["bash", str(SLURM)], env=environ, capture_output=True, text=True)
    assert done.returncode == 2 and "takes two: sbatch --nodes=2" in done.stderr


class Strict(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    """Of Kubernetes' API what the manifest has, each field by its name and type there."""


class Named(Strict):
    name: str


class Port(Strict):
    name: str
    port: int


class ServiceSpec(Strict):
    cluster_ip: Literal["None"] = msgspec.field(name="clusterIP")
    publish_not_ready_addresses: bool
    selector: dict[str, str]
    ports: list[Port]


class Service(Strict, tag_field="kind", tag="Service"):
    api_version: Literal["v1"]
    metadata: Named
    spec: ServiceSpec


class Rule(Strict):
    succeeded_indexes: str


class SuccessPolicy(Strict):
    rules: list[Rule]


class Seccomp(Strict):
    type: Literal["Unconfined", "RuntimeDefault"]


class PodSecurity(Strict):
    run_as_non_root: bool
    run_as_user: int
    run_as_group: int
    fs_group: int
    seccomp_profile: Seccomp


class Selector(Strict):
    match_labels: dict[str, str]


class Spread(Strict):
    max_skew: int
    topology_key: str
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"]
    label_selector: Selector


class HostPath(Strict):
    path: str
    type: Literal["CharDevice"]


class Volume(Strict):
    name: str
    host_path: HostPath | None = None
    empty_dir: dict[str, str] | None = None


class Field(Strict):
    field_path: str


class SecretKey(Strict):
    name: str
    key: str


class Source(Strict):
    field_ref: Field | None = None
    secret_key_ref: SecretKey | None = None


class Variable(Strict):
    name: str
    value_from: Source


class Resources(Strict):
    requests: dict[str, str]


class Capabilities(Strict):
    drop: list[str]
    add: list[str] = []


class Security(Strict):
    privileged: bool
    allow_privilege_escalation: bool
    capabilities: Capabilities


class Mount(Strict):
    name: str
    mount_path: str


class Container(Strict):
    name: str
    image: str
    command: list[str]
    args: list[str]
    env: list[Variable]
    resources: Resources
    security_context: Security
    volume_mounts: list[Mount]


class PodSpec(Strict):
    subdomain: str
    restart_policy: Literal["Never", "OnFailure"]
    host_users: bool
    automount_service_account_token: bool
    security_context: PodSecurity
    topology_spread_constraints: list[Spread]
    volumes: list[Volume]
    containers: list[Container]


class Pod(Strict):
    spec: PodSpec


class JobSpec(Strict):
    completions: int
    parallelism: int
    completion_mode: Literal["Indexed", "NonIndexed"]
    backoff_limit: int
    success_policy: SuccessPolicy
    template: Pod


class Job(Strict, tag_field="kind", tag="Job"):
    api_version: Literal["batch/v1"]
    metadata: Named
    spec: JobSpec


@pytest.fixture
def manifest() -> tuple[Service, Job]:
    yaml = pytest.importorskip("yaml")
    service, job = (
        msgspec.convert(each, Service | Job) for each in yaml.safe_load_all(KUBERNETES.read_text())
    )
    assert isinstance(service, Service) and isinstance(job, Job)
    return service, job


def test_the_manifest_is_one_indexed_job_whose_pods_find_one_another(
    manifest: tuple[Service, Job],
) -> None:
    service, job = manifest
    spec, pod = job.spec, job.spec.template.spec
    assert spec.completion_mode == "Indexed" and spec.completions == spec.parallelism
    assert [rule.succeeded_indexes for rule in spec.success_policy.rules] == ["0"]
    labels = {"job-name": job.metadata.name}
    assert pod.subdomain == service.metadata.name and service.spec.selector == labels
    assert [each.label_selector.match_labels for each in pod.topology_spread_constraints] == [
        labels
    ]
    (container,) = pod.containers
    (script,) = container.args
    others = " ".join(str(index) for index in range(1, spec.completions))
    assert f"for index in {others}; do" in script
    assert f"{job.metadata.name}-$index.{service.metadata.name}" in script
    assert {each.name for each in container.volume_mounts} == {each.name for each in pod.volumes}


def test_its_pods_have_user_namespaces_and_no_privilege(manifest: tuple[Service, Job]) -> None:
    pod = manifest[1].spec.template.spec
    own = pod.containers[0].security_context
    assert not pod.host_users and pod.security_context.run_as_non_root
    assert not own.privileged and not own.allow_privilege_escalation
    assert own.capabilities.drop == ["ALL"] and own.capabilities.add == []
    assert not pod.automount_service_account_token


def test_what_a_pod_runs_is_a_program_of_bash(manifest: tuple[Service, Job]) -> None:
    (script,) = manifest[1].spec.template.spec.containers[0].args
    subprocess.run(["bash", "-n", "-c", script], check=True)
