"""Which runs a bench is, and what is refused."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

import methods
from experiments.plan import Bench, Claim, Row, cells, joined, load, presets, row, staged
from nodes.program import FineTuning
from testbed.config_error import ConfigError
from testbed.run import client_links

CLAIM = "[[rows]]\nname = 'a'\n[[rows.claims]]\ncounts = 'up'\n"
TWO = [Row("one", {"method": "fedavg"}), Row("other", {"options": {"rank": 2}})]


def test_rows_times_links_times_clients_times_seeds_times_repeats() -> None:
    bench = Bench(rows=TWO, profiles=["4g", "wifi"], clients=[2, 5], seeds=[0, 7], repeat=2)
    found = cells(bench)
    assert len(found) == len({cell.id for cell in found}) == 32
    first = found[0]
    assert (first.row.name, first.config.profile, first.config.clients) == ("one", "4g", 2)
    assert first.config.method == "fedavg"
    # Whole comparisons come first: every row before the next profile, all before the next seed.
    assert [cell.row.name for cell in found[:3]] == ["one", "other", "one"]
    assert [cell.config.seed for cell in found] == 8 * [0] + 8 * [7] + 8 * [0] + 8 * [7]


def test_a_rows_own_fields_and_options_win_over_the_common_ones() -> None:
    rows = [Row("a", {"rounds": 9, "options": {"rank": 2}})]
    (cell,) = cells(Bench(run={"rounds": 3, "options": {"rank": 4, "x": 1}}, rows=rows))
    assert (cell.config.rounds, cell.config.options) == (9, {"rank": 2, "x": 1})


@pytest.mark.parametrize(
    ("bench", "reason"),
    [
        (Bench(rows=[Row("a", {"ronds": 3})]), "row 'a': unknown field 'ronds': did you mean"),
        (Bench(rows=[Row("a", {"rounds": 0})]), "row 'a': rounds = 0: .*>= 1"),
        (Bench(rows=[Row("a", {"options": 3})]), "row 'a': options must be a table"),
        (Bench(rows=TWO, seeds=list(range(6000))), "12000 runs, at most 10000"),
    ],
)
def test_what_is_no_run_is_refused(bench: Bench, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        cells(bench)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("rows = 3", "rows = 3"),
        ("rows = []", "rows = "),
        ("[[rows]]\nname = 'a'\n[[rows]]\nname = 'a'", "two rows are called 'a'"),
        ("baseline = 'b'\n[[rows]]\nname = 'a'", "baseline = 'b': must be one of a"),
        ("tilte = 'x'\n[[rows]]\nname = 'a'", "unknown field 'tilte': did you mean title"),
        ("no toml", "is not TOML"),
        (CLAIM + "account = 'up'", "row 'a': claim 'up': an account needs the paper's figure"),
        (CLAIM + "figure = 2.0", "claim 'up': give an account, or say in because why"),
        (CLAIM + "figure = 0.0", "> 0"),
        (CLAIM + "figure = 2.0\ntolerance = 0.1\naccount = '1 + 1'", "names no figure of a run"),
        (CLAIM + "because = 'x'\nbase = 'b'", "baseline = 'b': must be one of a"),
    ],
)
def test_a_file_that_is_no_bench_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "bench.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=reason) as refused:
        load(str(path))
    assert str(path) in str(refused.value)


def test_an_unknown_preset_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'digit': did you mean digits.*fedpeft-table"):
        load("digit")
    with pytest.raises(ConfigError, match=r"unknown preset .x"):
        load("x" * 300)
    with pytest.raises(ConfigError, match=r"/nowhere/x\.toml: cannot read it: No such file"):
        load("/nowhere/x.toml")


@pytest.mark.thorough
@pytest.mark.parametrize("name", presets())
def test_every_preset_is_of_runs_that_launch_takes(name: str) -> None:
    bench = load(name)
    assert cells(joined(bench))
    for cell in cells(joined(bench)):
        assert cell.config.method in methods.names()
        FineTuning(cell.config, len(client_links.client_links(cell.config)))
    # What was written can be read again: the folder of a bench holds it so.
    assert msgspec.json.decode(msgspec.json.encode(bench), type=Bench) == bench


def test_a_row_from_a_flag() -> None:
    assert row("fedpeft:variant=bias:rank=4:flag=true") == Row(
        "fedpeft variant=bias rank=4 flag=true",
        {"method": "fedpeft", "options": {"variant": "bias", "rank": 4, "flag": True}},
    )
    with pytest.raises(ConfigError, match="write METHOD:OPTION=VALUE, not 'rank'"):
        row("fedpeft:rank")


def test_no_two_runs_have_one_folder() -> None:
    rows = [Row("lr 0.1"), Row("lr_0.1"), Row("LR_0.1")]
    places = ["lab 1.toml", "lab_1.toml", "a/lab_1.toml", "a_lab_1.toml", "ü" * 120 + ".toml"]
    found = [cell.id for cell in cells(Bench(rows=rows, profiles=places))]
    assert len({name.casefold() for name in found}) == len(found) == 15
    assert all(len(name.encode()) < 200 and "/" not in name for name in found)
    assert found == [cell.id for cell in cells(Bench(rows=rows, profiles=places))]


def test_no_two_runs_have_one_folder_where_hyphens_part_their_names_otherwise() -> None:
    own = [Row("a"), Row("a-4g")]
    found = [cell.id for cell in cells(Bench(rows=own, profiles=["x.toml", "4g-x.toml"]))]
    assert len(set(found)) == len(found) == 4
    varied = {"device_class": ["pi", "pi-pi"], "server_device_class": ["pi-pi", "pi"]}
    assert len({cell.id for cell in cells(Bench(rows=[Row("a")], vary=varied))}) == 4


@pytest.mark.parametrize(
    "axes",
    [
        {"seeds": [0, 1, 0]},
        {"clients": [2, 2]},
        {"profiles": ["4g", "wifi", "4g"]},
        {"vary": {"alpha": [0.5, 0.5]}},
        {"vary": {"alpha": [1, 1.0]}},
    ],
)
def test_a_value_that_is_twice_on_an_axis_is_refused(axes: dict[str, Any]) -> None:
    # Both would be one folder, and once there one run.
    with pytest.raises(ConfigError, match="is there twice; leave one out"):
        cells(Bench(rows=TWO, **axes))


def test_a_row_and_an_axis_do_not_both_give_a_field() -> None:
    row_ = [Row("a", {"alpha": 0.1, "stage": ["bf16"]})]
    with pytest.raises(ConfigError, match="vary: row 'a' has a alpha of its own"):
        cells(Bench(rows=row_, vary={"alpha": [0.5, 1.0]}))
    with pytest.raises(ConfigError, match=r"row 'a': stage = .'bf16'., and stages = "):
        staged(Bench(rows=row_, stages=["none", "int8"]))
    with pytest.raises(ConfigError, match=r"stage = .'bf16'., and stages = "):
        staged(Bench(rows=TWO, run={"stage": ["bf16"]}, stages=["none", "int8"]))
    with pytest.raises(ConfigError, match="row 'one': out = 'x': all runs stand in"):
        cells(Bench(rows=TWO, run={"out": "x"}))


def test_a_plain_name_is_its_folder() -> None:
    assert [cell.id for cell in cells(Bench(rows=[Row("a")], profiles=["4g"]))] == ["a-4g-seed0"]


def test_options_are_numbers_however_they_are_written() -> None:
    found = row("fedpeft:a=.01:b=1e-3:c=+1:d=True:e='5':f=bias:g=0x").run["options"]
    assert found == {"a": 0.01, "b": 0.001, "c": 1, "d": True, "e": "5", "f": "bias", "g": "0x"}


def test_each_row_has_each_chain_of_stages() -> None:
    chains = ["none", "int8", "topk:k=0.01,feedback=true+deflate"]
    bench = staged(Bench(rows=TWO, baseline="one", stages=chains))
    names = [row.name for row in bench.rows]
    assert names[:3] == ["one", "one int8", "one topk:k=0.01,feedback=true+deflate"]
    assert len(names) == 6 and bench.baseline == "one"
    chosen = [cell.config.stage for cell in cells(bench)[:3]]
    assert chosen == [(), ("int8",), ("topk:k=0.01,feedback=true", "deflate")]
    assert staged(Bench(rows=TWO, baseline="one", stages=["int8"])).baseline == "one int8"
    assert staged(Bench(rows=TWO)).rows == TWO
    claimed = Row("a", claims=[Claim(counts="up", because="x")])
    plain, coded = staged(Bench(rows=[claimed], stages=["none", "int8"])).rows
    assert plain.claims == claimed.claims and coded.claims == []


@pytest.mark.parametrize("chains", [["int8", "int8"], [""]])
def test_a_chain_that_is_none_or_twice_there_is_refused(chains: list[str]) -> None:
    with pytest.raises(ConfigError, match="give each chain once"):
        staged(Bench(rows=TWO, stages=chains))


def test_fields_of_a_run_vary_as_links_do() -> None:
    bench = Bench(rows=TWO, profiles=["4g"], vary={"device_class": ["pi", "250"], "rounds": [3, 4]})
    found = cells(bench)
    assert [(cell.config.device_class, cell.config.rounds) for cell in found[::2]] == [
        *(("pi", 3), ("pi", 4), ("250", 3), ("250", 4))
    ]
    assert len({cell.id for cell in found}) == len({cell.setting for cell in found}) == 8
    assert found[0].where == "4g, pi, 3" and found[0].varied == {"device_class": "pi", "rounds": 3}


@pytest.mark.parametrize(
    ("vary", "reason"),
    [
        ({"profile": ["4g"]}, "vary: profile has an option of its own: profiles"),
        ({"method": ["fedavg"]}, "vary: method has an option of its own: rows"),
        ({"device_clas": ["pi"]}, "unknown field 'device_clas': did you mean device_class"),
        ({"rounds": [0]}, "rounds = 0"),
    ],
)
def test_what_cannot_vary_is_refused(vary: dict[str, list[str]], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        cells(Bench(rows=TWO, vary=vary))


PART = """
clients = [3]
profiles = ["wifi"]
baseline = "full"
run = { rounds = 7, dataset = "glyphs", options = { batch_size = 8, local_epochs = 2 } }
[[rows]]
name = "full"
run = { rounds = 9 }
[[rows]]
name = "own"
baseline = "own"
run = { options = { local_epochs = 1 } }
"""


def test_a_bench_of_presets_has_their_rows_with_all_that_they_share(tmp_path: Path) -> None:
    path = tmp_path / "part.toml"
    path.write_text(PART)
    whole = Bench(presets=[str(path)], rows=TWO, run={"dataset": "digits", "options": {"x": 1}})
    full, own, *rest = cells(joined(whole))
    assert [cell.row.name for cell in (full, own, *rest)] == ["full", "own", "one", "other"]
    for cell in (full, own):
        assert (cell.config.profile, cell.config.clients) == ("wifi", 3)
        # What the whole says stands over what the part's rows share, and a row over both.
        assert cell.config.dataset == "digits" and cell.row.baseline == cell.row.name
    assert (full.config.rounds, own.config.rounds) == (9, 7)
    assert full.config.options == {"batch_size": 8, "local_epochs": 2, "x": 1}
    assert own.config.options == {"batch_size": 8, "local_epochs": 1, "x": 1}
    path.with_name("whole.toml").write_text(f"presets = ['{path}']\nbaseline = 'full'")
    assert joined(load(str(path.with_name("whole.toml")))).baseline == "full"
    elsewhere = cells(joined(msgspec.structs.replace(whole, profiles=["4g"], clients=[5])))
    assert {(cell.config.profile, cell.config.clients) for cell in elsewhere} == {("4g", 5)}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PART + "[vary]\nseed = [1]", "has vary = .*one setting"),
        (PART.replace('"wifi"', '"wifi", "4g"'), "has profiles = .*one setting"),
        ("repeat = 2\n" + PART, "has repeat = 2"),
        (PART.replace('"full"', '"one"'), "two rows are called 'one'"),
        (PART, "baseline = 'none': must be one of full, own, one, other"),
    ],
)
def test_a_preset_that_is_no_part_of_another_is_refused(
    tmp_path: Path, text: str, reason: str
) -> None:
    path = tmp_path / "part.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=reason):
        joined(Bench(presets=[str(path)], rows=TWO, baseline="none"))
