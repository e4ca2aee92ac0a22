"""Options of `launch` out of RunConfig's fields: a new field is an option by that alone."""

from typing import Any

import click
import pytest
from click.testing import CliRunner

from experiments.commands import options
from experiments.commands.launch import launch
from testbed.config_error import ConfigError
from testbed.run.config import RunConfig

MANY = "9" * 5000
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


@pytest.mark.parametrize("flag", ["--clients", "--time-limit", "--alpha", "--target-accuracy"])
@pytest.mark.parametrize("value", ["1_0", "٣", "１"])
def test_numbers_have_ascii_digits(flag: str, value: str) -> None:
    result = CliRunner().invoke(launch, [f"{flag}={value}"])
    assert result.exit_code == 2 and f"{value!r} is no " in result.output


@pytest.mark.parametrize("value", ["9" * 20, "-" + "9" * 30, "1e3"])
def test_a_number_too_long_is_told_how_long_one_may_be(value: str) -> None:
    result = CliRunner().invoke(launch, [f"--clients={value}"])
    assert result.exit_code == 2
    assert f"{value!r} is no whole number of at most 18 digits" in " ".join(result.output.split())


def test_an_option_of_words_or_a_number_takes_no_other_digits() -> None:
    assert given("--dilation=4") == {"dilation": 4.0}
    assert given("--dilation=1_0") == {"dilation": "1_0"}


def test_a_comma_before_an_option_parts_no_stages() -> None:
    given = "none,int8,topk:k=0.01,feedback=true+deflate,qsgd:levels=7"
    found = benched(f"--stages={given}")["stages"]
    assert found == ["none", "int8", "topk:k=0.01,feedback=true+deflate", "qsgd:levels=7"]


def test_lists_of_a_bench_are_lists_however_often_they_are_given() -> None:
    found = benched("--seeds=0,1", "--seeds=7", "--profiles=4g", "--profiles=wifi,3g")
    assert (found["seeds"], found["profiles"]) == ([0, 1, 7], ["4g", "wifi", "3g"])
    assert benched() == {name: [] for name in ("profiles", "stages", "clients", "seeds")} | {
        **{"vary": {}, "grid": {}, "grid_seeds": []}
    }


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("--profiles=", "--profiles '': has no value; leave it out"),
        ("--seeds=,", "--seeds ',': has no value; leave it out"),
        ("--grid-seeds=1,x", "--grid-seeds '1,x': 'x' is no whole number of at most 18 digits"),
        (
            f"--clients={MANY}",
            f"--clients '{MANY}': '{MANY}' is no whole number of at most 18 digits",
        ),
        ("--seeds=1,-2", "--seeds '1,-2': '-2' is no whole number of at most 18 digits"),
        ("--seeds=٣", "--seeds '٣': '٣' is no whole number of at most 18 digits"),
        ("--budget=nan", "--budget nan: must be minutes, 0 to 1e+06"),
        ("--budget=-1", "--budget -1: must be minutes, 0 to 1e+06"),
        ("--budget=inf", "--budget inf: must be minutes, 0 to 1e+06"),
        ("--out=", "--out '': must be some text; leave it out for the default"),
    ],
)
def test_what_a_bench_cannot_have_is_refused(flag: str, reason: str) -> None:
    with pytest.raises(ConfigError) as refused:
        benched(flag)
    assert str(refused.value) == reason


def test_a_field_that_is_varied_is_not_given_too() -> None:
    from experiments import bench as benching

    axes = {**benched(), "vary": {"rounds": [1, 2]}}
    with pytest.raises(ConfigError, match="--vary rounds and rounds = 3: leave one out"):
        benching._asked(None, ("fedavg",), (), axes, None, {"rounds": 3})


@pytest.mark.parametrize("words", [["--out=", "x"], [""]])
def test_an_empty_path_is_not_the_present_folder(words: list[str]) -> None:
    from experiments.commands.results import export

    with pytest.raises(ConfigError, match="'': must be some text"):
        CliRunner().invoke(export, words, catch_exceptions=False)


def benched(*flags: str) -> dict[str, Any]:
    """The axes that `bench` makes of its flags."""
    from experiments import bench as benching
    from experiments.commands.bench import bench

    seen: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benching, "bench", lambda *given: seen.append(given[3]) or 0)
        CliRunner().invoke(bench, ["--methods=fedavg", *flags], catch_exceptions=False)
    return seen[0]


def test_stages_are_several_and_none_leaves_what_a_file_says() -> None:
    taken: list[Any] = []

    @click.command()
    @options.of_a_run("stage", "stage_down")
    def command(stage: Any, stage_down: Any) -> None:
        taken.append((stage, stage_down))

    CliRunner().invoke(command, ["--stage=topk:k=0.1", "--stage=int8"])
    assert taken == [(("topk:k=0.1", "int8"), None)]
