"""Samples that models are evaluated on: all of a small set, and of a large one a bounded part.

The bound is of operations, which are the same on every machine, and not of time: two runs of one
seed must give equal metrics.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

import methods
from nodes.workload import splits
from nodes.workload.tasks import Task
from testbed.config_error import ConfigError, closest
from testbed.metrics import OWN
from testbed.run.config import RunConfig
from testbed.seeds import derive

MOST_FLOPS = 1e11
"""Of all evaluations after a round; some 2 to 5 s of one core."""


def check(config: RunConfig, task: Task) -> None:
    """Raises ConfigError where there are no samples as asked for, or not so many."""
    validation = config.eval_on == "validation"
    if validation and config.compute == "modelled":
        raise ConfigError(
            "eval_on = 'validation': where compute is modelled nothing is learnt, and so nothing "
            "can be tuned; take --compute=real, or leave it out"
        )
    if config.eval_samples is not None and config.compute == "modelled":
        raise ConfigError(
            f"eval_samples = {config.eval_samples}: where compute is modelled nothing is learnt, "
            "and so nothing evaluated; leave it out"
        )
    there = task.test_size
    if config.eval_samples is not None and config.eval_samples > there:
        raise ConfigError(
            f"eval_samples = {config.eval_samples}: must be at most {there}, the {config.eval_on} "
            f"{task.sample}s of {config.dataset}; leave it out for the default"
        )


def check_local(config: RunConfig, method: methods.Method) -> None:
    """Raises ConfigError where no model of a client's own could be tested on its own samples."""
    if config.local_test is None:
        return
    asked = f"local_test = {config.local_test:g}"
    if config.compute == "modelled":
        raise ConfigError(f"{asked}: where compute is modelled nothing is learnt; leave it out")
    if not hasattr(method.Client, "evaluate"):
        able = [n for n in methods.names() if hasattr(methods.load(n).Client, "evaluate")]
        raise ConfigError(
            f"{asked}: clients of method {config.method} have no models of their own to evaluate; "
            f"those of {', '.join(able)} have"
        )


def check_target(config: RunConfig, task: Task, method: methods.Method, options: Any) -> None:
    """Raises ConfigError where the run has no metric of its target's name, as far as is known."""
    if config.aim is None:
        return
    asked, name = f"target = {config.target!r}", config.aim.metric
    if config.compute == "modelled":
        raise ConfigError(
            f"{asked}: where compute is modelled nothing is learnt, and so it is never reached; "
            "leave it out, or take --compute=real"
        )
    own = [OWN] * hasattr(method.Client, "evaluate")
    own += [f"{OWN}local_"] * (config.local_test is not None)
    private = ("epsilon",) * (getattr(options, "dp", "none") != "none")
    others = (*private, *method.other_metrics(options))
    there = [*task.metrics, *others, *(f"{whose}{each}" for whose in own for each in task.metrics)]
    if name not in there and not any(name == f"{whose}{each}" for whose in own for each in others):
        raise ConfigError(
            f"{asked}: a run of method {config.method} on {config.dataset} has no metric "
            f"{name}, and so never reaches it{closest(name, there) or '.'} Known: "
            f"{', '.join(there)}."
        )


def count(
    asked: int | None, there: int, least: int, sample_flops: Callable[[], float], models: int
) -> int:
    """How many of ``there`` samples are taken.

    ``least``: in any case. ``sample_flops``: operations of one model on one sample; called where
    they matter. ``models``: how many are evaluated after a round.
    """
    if asked is not None or there <= least:
        return there if asked is None else min(asked, there)
    affordable = int(MOST_FLOPS / max(1.0, models * sample_flops()))
    return min(there, max(least, affordable))


def chosen(count: int, there: int) -> NDArray[np.int64]:
    """Sorted indices (n,) of the samples: the first ones of an order that no run's seed changes."""
    order = np.random.default_rng(derive(splits.TEST_SEED, "evaluated images")).permutation(there)
    return np.sort(order[:count])
