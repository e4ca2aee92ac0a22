"""A run's configuration: joined as promised, and refused in words that say what would be right."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

import methods
from experiments.aftermath import mix_label
from nodes.program import FineTuning
from nodes.workload import models
from testbed.config_error import ConfigError
from testbed.network.profiles import parse_mix
from testbed.run.config import RunConfig, choose, convert, load, write


def file_of(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text)
    return path


def refusal(file: Path | None, **flags: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(file, flags)
    return str(caught.value)


# Joining a file and flags


def test_without_anything_all_is_at_its_default() -> None:
    assert load(None, {}) == RunConfig()


def test_flags_override_the_file_field_by_field(tmp_path: Path) -> None:
    file = file_of(tmp_path, 'profile = "3g"\nrounds = 7\nseed = 3\n')
    config = load(file, {"rounds": 9, "seed": None})
    assert (config.profile, config.rounds, config.seed) == ("3g", 9, 3)
    assert config.method == RunConfig().method


@pytest.mark.parametrize(
    ("written", "flags", "expected"),
    [
        ('profile = "3g"', {"positions": "p.toml"}, (None, "p.toml")),
        ('positions = "p.toml"', {"profile": "3g"}, ("3g", None)),
        ('positions = "p.toml"', {"profile": None}, (None, "p.toml")),
        ('positions = "p.toml"', {"profile": "3g", "positions": "q.toml"}, ("3g", "q.toml")),
    ],
)
def test_a_flag_replaces_the_other_way_to_say_where_links_come_from(
    tmp_path: Path, written: str, flags: dict[str, Any], expected: tuple[str | None, str | None]
) -> None:
    config = load(file_of(tmp_path, written), flags)
    assert (config.profile, config.positions) == expected


def test_a_flag_of_nought_is_still_a_flag(tmp_path: Path) -> None:
    assert load(file_of(tmp_path, "seed = 3"), {"seed": 0}).seed == 0


def test_options_are_merged_key_by_key(tmp_path: Path) -> None:
    file = file_of(tmp_path, '[options]\nrank = 4\noptimizer = "sgd"\n')
    config = load(file, {"options": {"rank": 16, "batch_size": 2}})
    assert config.options == {"rank": 16, "optimizer": "sgd", "batch_size": 2}


def test_options_of_the_file_stand_where_no_flag_gives_any(tmp_path: Path) -> None:
    file = file_of(tmp_path, "[options]\nrank = 4\n")
    assert load(file, {}).options == load(file, {"options": {}}).options == {"rank": 4}


def test_a_whole_number_will_do_for_seconds(tmp_path: Path) -> None:
    assert load(file_of(tmp_path, "time_limit_s = 60"), {}).time_limit_s == 60.0


@pytest.mark.parametrize(
    "config",
    [
        RunConfig(),
        RunConfig(clients=3, seed=2**32 - 1, out='a "b"\\c ä'),
        RunConfig(positions="/a/walk.toml", schedule="/a/s.toml"),
        RunConfig(
            profile="4g:12,wifi:5",
            links="loopback",
            alpha=0.1,
            round_timeout_s=1e-3,
            options={"rank": 4, "learning_rate": 1e-5, "nested.key": True, "optimizer": "sgd"},
        ),
    ],
    ids=["defaults", "some", "paths", "many"],
)
def test_what_is_written_loads_back_equal(tmp_path: Path, config: RunConfig) -> None:
    write(config, tmp_path / "config.toml")
    assert load(tmp_path / "config.toml", {}) == config


# Refusals


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("round", "rounds"), ("clint", "clients"), ("time_limit", "time_limit_s"), ("mode", "model")],
)
def test_an_unknown_field_is_told_the_closest(tmp_path: Path, wrong: str, meant: str) -> None:
    file = file_of(tmp_path, f"{wrong} = 1")
    text = refusal(file)
    assert text.startswith(f"{file}: unknown field {wrong!r}: did you mean ")
    assert meant in text
    assert refusal(None, **{wrong: 1}).startswith("the flags: unknown field")


def test_an_unknown_field_like_no_other_is_only_named() -> None:
    assert refusal(None, zzz=1) == "the flags: unknown field 'zzz'."


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("clients = 0", "clients = 0: Expected `int` >= 1"),
        ("clients = 5000", "clients = 5000: Expected `int` <= 4096"),
        ("clients = 2.5", "clients = 2.5: Expected `int | null`, got `float`"),
        ('clients = "many"', "clients = 'many': Expected `int | null`, got `str`"),
        ("clients = true", "clients = True: Expected `int | null`, got `bool`"),
        ("rounds = 0", "rounds = 0: Expected `int` >= 1"),
        ("rounds = 100001", "rounds = 100001: Expected `int` <= 100000"),
        ("seed = -1", "seed = -1: Expected `int` >= 0"),
        ("seed = 4294967296", "seed = 4294967296: Expected `int` <= 4294967295"),
        ("alpha = 0", "alpha = 0: Expected `float` > 0.0"),
        ("alpha = nan", "alpha = nan: must be a finite number"),
        ("alpha = inf", "alpha = inf: must be a finite number"),
        ("round_timeout_s = -1", "round_timeout_s = -1: Expected `float` > 0.0"),
        ("time_limit_s = inf", "time_limit_s = inf: must be a finite number"),
        ("join_timeout_s = 1e300", "join_timeout_s = 1e+300: Expected `float` <= 1000000.0"),
        ("profile = 4", "profile = 4: Expected `str | null`, got `int`"),
        ("schedule = 4", "schedule = 4: Expected `str | null`, got `int`"),
        ('links = "netns"', "links = 'netns': must be one of auto, netem, userspace, loopback"),
        ("links = 1", "links = 1: must be one of auto, netem, userspace, loopback"),
        (
            'partition = "skew"',
            "partition = 'skew': must be one of dirichlet, iid, natural, pathological",
        ),
        ("options = 3", "options = 3: Expected `object`, got `int`"),
        ("options.rank = [1]", "options = {'rank': [1]}: Expected `bool | int | float | str`"),
    ],
)
def test_a_wrong_value_names_file_field_and_value(tmp_path: Path, line: str, expected: str) -> None:
    file = file_of(tmp_path, line)
    assert refusal(file).startswith(f"{file}: {expected}")


def test_a_wrong_flag_names_field_and_value() -> None:
    assert refusal(None, rounds=-5) == "the flags: rounds = -5: Expected `int` >= 1"


@pytest.mark.parametrize(
    "text", ["rounds = ", "[options", "rounds = 1\nrounds = 2", "rounds: 5"], ids=repr
)
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, text: str) -> None:
    file = file_of(tmp_path, text)
    assert refusal(file).startswith(f"{file}: is not TOML: ")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_bytes(b"\xff\xfe\0")
    assert refusal(file) == f"--config {file}: is UTF-16; save it as UTF-8"


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    absent = tmp_path / "absent.toml"
    assert refusal(absent) == f"--config {absent}: cannot read it: No such file or directory"
    assert refusal(tmp_path) == f"--config {tmp_path}: cannot read it: Is a directory"


def test_a_missing_field_without_a_default_is_named() -> None:
    class Needy(msgspec.Struct):
        epochs: int

    with pytest.raises(ConfigError, match=r"here: .*missing required field `epochs`"):
        convert({}, Needy, "here")


def test_choosing_what_is_known() -> None:
    assert choose("method", "fedavg", ["fedpeft", "fedavg"]) == "fedavg"


# What a program refuses


@pytest.fixture(autouse=True)
def one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped model by its name alone; its weights are not read here."""
    monkeypatch.setattr(models, "names", lambda: ["vit-glyphs"])


def program_refusal(clients: int = 2, **fields: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        FineTuning(RunConfig(**fields), clients)
    return str(caught.value)


@pytest.mark.parametrize(
    ("field", "wrong", "closest"),
    [
        ("method", "fedpft", "fedpeft"),
        ("method", "FedAvg", "fedavg"),
        ("model", "vit-glyph", "vit-glyphs"),
        ("dataset", "digit", "digits"),
    ],
)
def test_an_unknown_name_is_told_the_closest_and_all(field: str, wrong: str, closest: str) -> None:
    text = program_refusal(**{field: wrong})
    assert text.startswith(f"unknown {field} {wrong!r}: did you mean ")
    assert closest in text.partition("?")[0] and " Known: " in text


def test_a_name_like_nothing_is_told_only_what_is_known() -> None:
    text = program_refusal(method="zzzzzz")
    assert text == f"unknown method 'zzzzzz'. Known: {', '.join(methods.names())}."


@pytest.mark.parametrize("name", ["__init__", "local", "averaging", "../methods/fedavg", ""])
def test_what_is_no_method_cannot_be_loaded_as_one(name: str) -> None:
    assert program_refusal(method=name).startswith(f"unknown method {name!r}")


def test_too_many_clients_for_the_digits_are_told_the_arithmetic() -> None:
    text = program_refusal(clients=180)
    assert text.startswith(
        "clients = 180: digits has 1437 training images, enough for 179 clients of 8; "
    )
    assert "--dataset=glyphs" in text


def test_as_many_clients_as_the_digits_can_feed_are_taken() -> None:
    FineTuning(RunConfig(), 179)


def test_the_glyphs_feed_any_number_of_clients() -> None:
    FineTuning(RunConfig(dataset="glyphs"), 4096)


def test_an_unknown_option_is_told_the_closest() -> None:
    text = program_refusal(options={"ranks": 4})
    assert text.startswith("options of method fedpeft: unknown field 'ranks': did you mean rank")


def test_an_option_of_another_method_is_unknown() -> None:
    text = program_refusal(method="fedavg", options={"rank": 4})
    assert text.startswith("options of method fedavg: unknown field 'rank'")


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("rank", 0, "rank = 0: Expected `int` >= 1"),
        ("rank", 2.5, "rank = 2.5: Expected `int`, got `float`"),
        ("rank", "high", "rank = 'high': Expected `int`, got `str`"),
        ("learning_rate", 0, "learning_rate = 0: Expected `float` > 0.0"),
        ("optimizer", "adam", "optimizer = 'adam': must be one of adamw, sgd"),
    ],
)
def test_an_option_out_of_range_is_refused(option: str, value: object, expected: str) -> None:
    text = program_refusal(options={option: value})
    assert text.startswith(f"options of method fedpeft: {expected}")


def test_a_programs_options_are_complete() -> None:
    program = FineTuning(RunConfig(options={"rank": 4}), 2)
    config = methods.load("fedpeft").Config
    there = {k: v for k, v in msgspec.to_builtins(config(rank=4)).items() if v is not None}
    assert program.options == there
    without_default = {
        *("local_steps", "cosine_rounds", "adapter_width"),
        *("dp_noise", "dp_epsilon", "dp_rounds"),
    }
    assert program.options.keys() == set(config.__struct_fields__) - without_default


# The label of a mix


@pytest.mark.parametrize(
    ("mix", "clients", "label"),
    [
        ("4g", 3, "4g"),
        ("4g:3", None, "4g"),
        ("4g:2,4g:1", None, "4g"),
        ("4g:2,wifi:1", None, "4g:2,wifi:1"),
        ("wifi:1,4g:2", None, "wifi:1,4g:2"),
        ("4g:1,wifi:1,4g:2", None, "4g:3,wifi:1"),
    ],
)
def test_a_mix_is_labelled_by_its_counts(mix: str, clients: int | None, label: str) -> None:
    assert mix_label(parse_mix(mix, clients)) == label


def test_a_label_goes_by_the_profiles_own_names() -> None:
    profiles: list[Any] = [SimpleNamespace(name="mine")] * 2
    assert mix_label(profiles) == "mine"
