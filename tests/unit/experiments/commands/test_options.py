"""Options of `launch` out of RunConfig's fields: a new field is an option by that alone."""

from typing import Any

import click
import pytest
from click.testing import CliRunner

from experiments.commands import options
from experiments.commands.launch import launch
from testbed.run.config import RunConfig

BY_HAND = {
    "target_accuracy",
    "config",
    "options",
    "tensorboard",
    "token_file",
    "resume",
    "as_json",
    "plain",
    "quiet",
}


def given(*words: str) -> dict[str, Any]:
    """What a command with a run's options is called with."""
    found: dict[str, Any] = {}

    @click.command()
    @options.of_a_run()
    def command(**values: Any) -> None:
        found.update(values)

    result = CliRunner().invoke(command, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert found.keys() == {*RunConfig.__struct_fields__, "target_accuracy"} - {"options"}
    return {name: value for name, value in found.items() if value is not None}


def test_every_field_is_an_option_of_launch_and_nothing_else_is() -> None:
    names = {own.name for own in launch.params}
    assert names - BY_HAND == set(RunConfig.__struct_fields__) - {"options"}


def test_what_is_not_given_is_left_to_the_configuration() -> None:
    assert given() == {}


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["--clients=3", "--alpha=0.25", "--profile=4g:2,wifi:1"],
         {"clients": 3, "alpha": 0.25, "profile": "4g:2,wifi:1"}),
        (["--deadline=2.5", "--time-limit", "9"], {"deadline_s": 2.5, "time_limit_s": 9.0}),
        (["--no-calibrate", "--pcap"], {"calibrate": False, "pcap": True}),
        (["--calibrate", "--no-checkpoints"], {"calibrate": True, "checkpoints": False}),
        (["--dilation=4"], {"dilation": 4.0}),
        (["--target=loss=1.5"], {"target": "loss=1.5"}),
        (["--target-accuracy=0.9"], {"target_accuracy": 0.9}),
        (["--dilation=auto"], {"dilation": "auto"}),
        (["--links=netem", "--client-memory-mb=64"],
         {"links": "netem", "client_memory_mb": 64.0}),
    ],
)  # fmt: skip
def test_a_value_has_its_fields_type(words: list[str], values: dict[str, Any]) -> None:
    assert given(*words) == values


def test_help_says_what_is_taken_and_what_stands_where_nothing_is_given() -> None:
    text = " ".join(CliRunner().invoke(launch, ["--help"]).output.split())
    for told in (
        "--transport zmq|gloo ",
        "--rounds N How many there are. [default: 5]",
        "--round-timeout SECONDS Limit of every wait",
        "[default: the mix's sum, or 20]",
        "--checkpoints / --no-checkpoints",
        "[default: checkpoints]",
        "--dilation elastic|K|auto",
        "[default: 86400]",
    ):
        assert told in text, told


def test_other_words_may_stand_for_a_fields_own() -> None:
    @click.command()
    @options.of_a_run("rounds", "secure", help_="Of each run.")
    def command(rounds: int | None, secure: bool | None) -> None:
        pass

    text = CliRunner().invoke(command, ["--help"]).output
    assert text.count("Of each run.") == 2 and "default" not in text and "--clients" not in text


@pytest.mark.parametrize(
    ("flag", "run"), [("--secure", {"secure": True}), ("--no-secure", {"secure": False}), ("", {})]
)
def test_a_bench_hands_on_whether_its_runs_are_secure(
    flag: str, run: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments import bench as benching
    from experiments.commands.bench import bench

    seen: list[Any] = []

    def benched(*arguments: Any) -> int:
        seen.append(arguments[5])
        return 0

    monkeypatch.setattr(benching, "bench", benched)
    found = CliRunner().invoke(bench, ["--methods=fedavg", *filter(None, [flag])])
    assert (found.exit_code, seen) == (0, [run])


def test_a_comma_before_an_option_parts_no_stages() -> None:
    from experiments.commands.bench import _stages

    given = "none,int8,topk:k=0.01,feedback=true+deflate,qsgd:levels=7"
    found = _stages(None, None, given)  # type: ignore[arg-type]
    assert found == ["none", "int8", "topk:k=0.01,feedback=true+deflate", "qsgd:levels=7"]
    assert _stages(None, None, None) == []  # type: ignore[arg-type]


def test_stages_are_several_and_none_leaves_what_a_file_says() -> None:
    taken: list[Any] = []

    @click.command()
    @options.of_a_run("stage", "stage_down")
    def command(stage: Any, stage_down: Any) -> None:
        taken.append((stage, stage_down))

    CliRunner().invoke(command, ["--stage=topk:k=0.1", "--stage=int8"])
    assert taken == [(("topk:k=0.1", "int8"), None)]
