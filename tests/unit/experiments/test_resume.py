"""What is told or refused where a run is to go on as another than it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import made_run
import msgspec
import pytest

from experiments.resume import Resumption
from nodes.server import Resumed, check_alike
from nodes.workload import models
from testbed.config_error import ConfigError
from testbed.record.recovery import Killed
from testbed.run.config import RunConfig

CONFIG = RunConfig(rounds=2, clients=2, options={"rank": 4})
SOFTWARE = {"python": "3.11", "git": "abc", "packages": {"torch": "2.13.0", "peft": None}}


def killed(folder: Path, **facts: Any) -> Killed:
    """A run of two rounds, killed in the first."""
    record = made_run.events()[:8]
    config = msgspec.to_builtins(CONFIG)
    record[0] |= {"config": config, "environment": SOFTWARE, "weights": "12ab", **facts}
    (folder / "events.jsonl").write_bytes(b"".join(made_run.lines(record)))
    return Killed(folder)


def test_the_same_goes_on_without_a_word(tmp_path: Path) -> None:
    run = killed(tmp_path)
    again = Resumption(run, CONFIG, ["client-1", "client-2"])
    assert again.differences({"environment": SOFTWARE, "weights": "12ab"}) == []
    facts = again.facts({"command": "cli.py launch --resume=x", "environment": SOFTWARE})
    assert (facts["round"], facts["at_s"]) == (0, run.last_t)
    assert next(event.event for event in again.past()) == "run"
    run.close()


def test_other_software_and_weights_are_told(tmp_path: Path) -> None:
    run = killed(tmp_path)
    packages = {"torch": "2.14.0", "peft": None}
    now = {"environment": {**SOFTWARE, "git": "def", "packages": packages}, "weights": "34cd"}
    told = Resumption(run, CONFIG, ["client-1"]).differences(now)
    assert told == [
        "torch was 2.13.0 and is 2.14.0 now: the result may be another",
        "source was abc and is def now: the result may be another",
        "file of weights was 12ab and is 34cd now: the result may be another",
    ]
    run.close()


def test_other_data_are_refused(tmp_path: Path) -> None:
    run = killed(tmp_path, data="12ab")
    again = Resumption(run, CONFIG, ["client-1"])
    again.check_data({"dataset": "cifar10", "data": "12ab"})
    for now in ("34cd", None):
        with pytest.raises(ConfigError, match=r"files of dataset cifar10 .*SHA-256 12ab, now"):
            again.check_data({"dataset": "cifar10", "data": now})
    run.close()


def test_a_run_that_did_not_say_which_data_it_had_goes_on(tmp_path: Path) -> None:
    run = killed(tmp_path)
    Resumption(run, CONFIG, ["client-1"]).check_data({"dataset": "digits", "data": "34cd"})
    run.close()


def test_what_is_read_outside_the_folder_is_told(tmp_path: Path) -> None:
    run = killed(tmp_path)
    again = Resumption(run, CONFIG, ["client-1", "client-2"])
    assert again.read(CONFIG, {"files": {"profile 4g": "12"}}) == []
    other = msgspec.structs.replace(CONFIG, model="somebody/vit", data_path="~/pictures")
    named = {"/x/own.toml": "12", "/x/a.trace": "34"}
    assert again.read(other, {"files": named}) == [
        *("/x/a.trace", "/x/own.toml", "model somebody/vit", "data ~/pictures")
    ]
    run.close()


def test_edited_links_are_refused(tmp_path: Path) -> None:
    began = {"own.toml": "12", "x.trace": "34"}
    run = killed(tmp_path, files=began)
    again = Resumption(run, CONFIG, ["client-1"])
    again.check_files({"files": dict(began)})
    for now in (began | {"x.trace": "56"}, {"own.toml": "12"}):
        with pytest.raises(ConfigError, match=r"x\.trace is not what it was, when the run began"):
            again.check_files({"files": now})
    run.close()


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("rounds", 3, "rounds = 3 in its config.toml is not the run's own, 2"),
        ("options", {"rank": 8}, "options = {'rank': 8}"),
    ],
)
def test_another_configuration_is_refused(
    tmp_path: Path, field: str, value: object, words: str
) -> None:
    run = killed(tmp_path)
    changed = msgspec.structs.replace(CONFIG, **{field: value})
    with pytest.raises(ConfigError) as caught:
        Resumption(run, changed, ["client-1"])
    assert words in str(caught.value)
    run.close()


def test_a_field_that_the_run_did_not_know_is_none_of_its_own(tmp_path: Path) -> None:
    older = {k: v for k, v in msgspec.to_builtins(CONFIG).items() if k != "checkpoints"}
    run = killed(tmp_path, config=older)
    Resumption(run, CONFIG, ["client-1"])
    run.close()


def test_a_model_that_is_another_is_refused() -> None:
    past = Resumed(3, {}, {"accuracy": 0.9, "loss": 0.5}, over=False)
    check_alike({"accuracy": 0.9, "loss": 0.5000001}, past)
    check_alike({}, Resumed(3, {}, {}, over=False))
    for found in ({"accuracy": 0.9, "loss": 0.6}, {"accuracy": 0.9}):
        with pytest.raises(RuntimeError, match=r"loss after round 3 was 0\.5 and is"):
            check_alike(found, past)


def test_weights_have_a_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = models.fingerprint("vit-glyphs")
    assert own is not None and len(own) == 64
    assert models.fingerprint("vit-b16") is None
    other = tmp_path / "vit-glyphs.safetensors"
    other.write_bytes(models.path_of("vit-glyphs").read_bytes() + b" ")
    monkeypatch.setattr(models, "WEIGHTS", tmp_path)
    assert models.fingerprint("vit-glyphs") != own
