"""Accounts of a run, against sums by hand."""

import math

import made_run
import pytest

from experiments import accounts
from experiments.compare import figures
from experiments.plan import PRESETS, load
from testbed.config_error import ConfigError
from testbed.metrics import Target
from testbed.record.events import UpDown
from testbed.record.run_summary import Summary


def run(target: float | None = None) -> tuple[Summary, accounts.Accounts]:
    """Three rounds of two clients; each message has 400,000 bytes of payload."""
    summary = made_run.summary(made_run.events(clients=2, rounds=3))
    for client, flops in zip(summary.per_client, (2e9, 4e9), strict=True):
        client.round_flops = flops
    summary.per_client[1].bytes.payload = UpDown(5, 7_000_000)
    return summary, accounts.of(
        summary, figures(summary, None if target is None else Target("accuracy", target))
    )


def test_figures_of_a_run_by_name() -> None:
    summary, found = run()
    assert (found["up"], found["down"], found["both"]) == (2.4e6, 2.4e6, 4.8e6)
    assert found["wire"] == summary.bytes.wire.both == found["wire_up"] + found["wire_down"]
    (kind,) = summary.bytes.by_kind
    assert found[f"up.{kind}"] == found[f"down.{kind}"] == 2.4e6
    # Of the client that has the most: the first up, the second down and in all.
    assert (found["most_up"], found["most_down"], found["most"]) == (1.2e6, 7e6, 7_000_005)
    assert (found["rounds"], found["client_rounds"], found["clients"]) == (3, 6, 2)
    assert (found["flops"], found["parameters"]) == (3e9, 100)
    assert found["metric.accuracy"] == found["accuracy"] == 0.875
    assert found["seconds"] == pytest.approx(18.0) == 60 * found["minutes"]


def test_a_target_that_was_never_reached_took_for_ever() -> None:
    assert run(0.8)[1]["rounds_to_target"] == 3
    assert run(0.9)[1]["rounds_to_target"] == math.inf


@pytest.mark.parametrize(
    ("account", "comes_to"),
    [
        ("up / rounds / MiB", 2.4e6 / 3 / 2**20),
        ("100 * (base.both - both) / base.both", 20.0),
        ("2 * up - 1.5", 4.8e6 - 1.5),
        ("up / (up - up)", math.nan),
    ],
)
def test_an_account_is_arithmetic(account: str, comes_to: float) -> None:
    accounts.check(account, "here")
    own = {"up": 2.4e6, "rounds": 3.0, "both": 4.8e6}
    found = accounts.value(account, own, {"both": 6e6})
    assert found == pytest.approx(comes_to, nan_ok=True)


def test_a_figure_that_no_run_has_is_missing() -> None:
    with pytest.raises(KeyError, match=r"base\.up"):
        accounts.value("up / base.up", {"up": 1.0})


@pytest.mark.parametrize(
    ("account", "reason"),
    [
        ("__import__('os').system('true')", "is no figure and no number"),
        ("up ** 9 ** 9", "is no figure and no number"),
        ("up if up else down", "is no figure and no number"),
        ("True * up", "is no figure and no number"),
        ("up /", "write names of a run's figures"),
        ("up\x00", "write names of a run's figures"),
        ("44.7 / 2.27", "names no figure of a run"),
        ("3 * MiB", "names no figure of a run"),
        ("-" * 50_000 + "up", "write names of a run's figures"),
        ("1e400 * up", "is larger than any float"),
        ("9" * 400 + " * up", "is larger than any float"),
    ],
)
def test_what_is_no_account_of_a_run_is_refused(account: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        accounts.check(account, "here")


def test_medians_are_of_what_all_runs_have() -> None:
    runs = [{"a": 1.0, "b": 1.0}, {"a": math.inf}, {"a": 3.0, "b": 2.0}]
    assert accounts.medians(runs) == {"a": 3.0}


@pytest.mark.parametrize("name", sorted(path.stem for path in PRESETS.glob("*.toml")))
def test_presets_name_figures_that_runs_have(name: str) -> None:
    """But for kinds of messages and metrics, which only a run has."""
    known = {*accounts.UNITS, *run(0.5)[1]}
    for row in load(name).rows:
        for claim in row.claims:
            named = {
                each.removeprefix(accounts.BASE) for each in accounts.names(claim.account or "up")
            }
            assert {each for each in named if "." not in each} <= known, claim
