"""Places of runs: task, network and devices, which two must share for one to be held against the
other."""

from collections.abc import Mapping, Sequence
from typing import Any

from testbed import naming
from testbed.record.run_summary import Summary
from testbed.report.compare import different_networks
from testbed.report.text import shortened

Config = Mapping[str, Any]
"""A run's config.toml; empty where there is none."""
MOST_LETTERS = 60
"""Of a field's value, such as a file's path."""
_FIELDS = {
    **{"partition": "partition", "alpha": "alpha", "classes_per_client": "classes a client"},
    **{"train_samples": "training samples", "eval_samples": "evaluated samples"},
    **{"local_test": "local test", "data_path": "data", "sequence_length": "tokens a sequence"},
    **{"template": "template", "pack": "packed", "availability": "availability"},
    **{"schedule": "schedule", "server_device_class": "server device"},
}
"""Those of a configuration that a summary lacks, in words."""
_OF_PARTITION = {"alpha": "dirichlet", "classes_per_client": "pathological"}
"""Fields that count in one partition alone."""


def told(runs: Sequence[Summary], configs: Sequence[Config]) -> list[str]:
    """The place of each run; what no summary has of it is said where runs differ in that."""
    backends = {run.links for run in runs if run.links}
    modes = {run.compute.mode for run in runs}
    devices = {run.compute.device_class for run in runs if run.compute.mode == "real"}
    networks = different_networks.told_apart(runs)
    values = {
        name: naming.short(str(_value(name, config)) for config in configs)
        for name in _FIELDS
        if _differs(name, configs)
    }
    found = []
    for run, config, network in zip(runs, configs, networks, strict=True):
        tell = (len(backends) > 1, len(modes) > 1, len(devices) > 1)
        fields = "".join(_said(name, config, short) for name, short in values.items())
        found.append(_place(run, *tell) + fields + network)
    return found


def _place(summary: Summary, tell_backend: bool, tell_mode: bool, tell_device: bool) -> str:
    server = f", server on {summary.server_profile}" if summary.server_profile else ""
    clients = f"{summary.clients} client{'' if summary.clients == 1 else 's'}"
    compute = summary.compute
    device = f", modelled {compute.device_class}" if compute.mode == "modelled" else ""
    if compute.mode == "real":
        device = ", real compute" if tell_mode else ""
        device += f", on {compute.device_class or 'cores of this machine'}" if tell_device else ""
    backend = f", over {summary.links or 'no'} links" if tell_backend else ""
    split = "" if summary.evaluated.split == "test" else f", its {summary.evaluated.split} split"
    data = f", {summary.dataset}{split}" if summary.dataset else ""
    return f"{summary.profile} with {clients}{server}{data}{device}{backend}"


def _differs(name: str, configs: Sequence[Config]) -> bool:
    values = {str(_value(name, config)) for config in configs if config}
    return len(values) > 1


def _value(name: str, config: Config) -> Any:
    """A field's value where it counts, or None."""
    partition = _OF_PARTITION.get(name)
    return None if partition and config.get("partition") != partition else config.get(name)


def _said(name: str, config: Config, short: Mapping[str, str]) -> str:
    value = _value(name, config)
    if value is None:
        return ""
    return f", {_FIELDS[name]} {shortened(short[str(value)], MOST_LETTERS)}"
