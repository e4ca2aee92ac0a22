"""Which value a row is tuned to, by made runs on the validation split."""

from pathlib import Path

import made_run
import msgspec
import pytest

from experiments import tuning
from experiments.bench import _check_trials
from experiments.plan import Bench, Cell, Outcome, Row, cells
from experiments.tuning import Tried
from testbed.config_error import ConfigError
from testbed.record.run_summary import Summary

GRID = {"learning_rate": [0.1, 0.01, 0.001]}
ROWS = [Row("one", {"method": "fedavg"}), Row("other", {"method": "kdfft"})]


def bench(**fields: object) -> Bench:
    return msgspec.convert({"rows": msgspec.to_builtins(ROWS), "grid": GRID, **fields}, Bench)


def summary(*accuracies: float) -> Summary:
    return made_run.summary(made_run.events(rounds=len(accuracies), accuracies=accuracies))


def outcomes(asked: Bench, results: dict[float, list[Summary | None]]) -> list[Outcome]:
    """Of the first row's trials: a summary a seed, by rate."""
    own = [cell for cell in tuning.trials(asked) if cell.row.name == "one"]
    left = {rate: iter(found) for rate, found in results.items()}
    return [Outcome(cell, next(left[float(cell.point["learning_rate"])]), None) for cell in own]


def tuned(asked: Bench, results: dict[float, list[Summary | None]]) -> Cell | str:
    return tuning.settled(asked, cells(asked)[0], outcomes(asked, results))


def test_every_row_is_tried_at_every_point_on_the_validation_split() -> None:
    asked = bench(seeds=[0, 1], repeat=3)
    found = tuning.trials(asked)
    assert len(found) == len({cell.id for cell in found}) == 2 * 2 * 3
    assert {cell.config.eval_on for cell in found} == {"validation"} and found[0].trial
    assert {cell.config.options["learning_rate"] for cell in found} == {0.1, 0.01, 0.001}
    assert found[0].id == "tuning/one-seed0-learning_rate=0.1"
    # Those of the table are on the test images, and each trial is of one of their settings.
    assert {cell.config.eval_on for cell in cells(asked)} == {"test"}
    assert {cell.setting for cell in found} == {cell.setting for cell in cells(asked)}


def test_a_row_can_have_another_name_for_what_is_tuned() -> None:
    row = Row("one", {"method": "feddm"}, named={"learning_rate": "server_learning_rate"})
    asked = Bench(rows=[row], grid=GRID)
    tuning.check(asked)
    _check_trials(tuning.trials(asked))
    found = tuned(asked, {0.1: [summary(0.5)], 0.01: [summary(0.9)], 0.001: [summary(0.8)]})
    assert isinstance(found, Cell) and found.point == {"learning_rate": 0.01}
    assert found.config.options == {"server_learning_rate": 0.01}
    fixed = {"method": "feddm", "options": {"server_learning_rate": 1.0}}
    with pytest.raises(ConfigError, match=r"server_learning_rate = 1\.0 is what the grid"):
        tuning.check(Bench(rows=[Row("one", fixed, named=row.named)], grid=GRID))


@pytest.mark.parametrize(
    ("run", "quick"),
    [
        ({}, True),
        ({"device_class": "pi", "secure": True, "dilation": 2.0}, True),
        ({"congestion": "reno", "pcap": True}, True),
        ({"method": "fedbuff"}, False),
        ({"deadline_s": 5.0}, False),
        ({"availability": "on:20,off:5"}, False),
        ({"compute": "modelled"}, False),
    ],
    ids=str,
)
def test_trials_go_over_shaped_links_where_time_decides_what_is_learnt(
    run: dict[str, object], quick: bool
) -> None:
    rows = [{"name": "one", "run": run}]
    asked = bench(rows=rows, profiles=["3g"], run={"rounds": 7})
    (cell,) = cells(asked)
    for trial in tuning.trials(asked):
        over = (trial.config.links, trial.config.profile, trial.config.dilation)
        assert over == (
            ("loopback", "ethernet", 1.0) if quick else ("auto", "3g", cell.config.dilation)
        )
        assert trial.config.rounds == 7 and trial.config.method == cell.config.method
        # Loopback links take neither.
        assert not quick or (trial.config.congestion, trial.config.pcap) == (None, False)
    # Those of the table are timed as they were asked.
    best = outcomes(asked, {rate: [summary(0.5)] for rate in GRID["learning_rate"]})
    settled = tuning.settled(asked, cell, best)
    assert isinstance(settled, Cell)
    assert settled.config.profile == "3g" and settled.config.links == "auto"


@pytest.mark.parametrize("run", [{"method": "dispfl"}, {"transport": "gloo"}], ids=str)
def test_trials_of_clients_that_speak_to_one_another_have_links_for_it(
    run: dict[str, object],
) -> None:
    asked = bench(rows=[{"name": "one", "run": run}], profiles=["3g"])
    for trial in tuning.trials(asked):
        assert (trial.config.links, trial.config.profile) == ("auto", "ethernet")


def test_two_options_are_every_combination() -> None:
    grid = {"learning_rate": [0.1, 0.2], "local_epochs": [1, 2]}
    assert [list(point.values()) for point in tuning.points(bench(grid=grid))] == [
        *([0.1, 1], [0.1, 2], [0.2, 1], [0.2, 2])
    ]


def test_the_fewest_rounds_to_the_target_are_chosen_and_not_the_best_accuracy() -> None:
    """A run ends where it reaches the target: what it has then says nothing of its speed."""
    asked = bench(run={"target_accuracy": 0.8})
    slow, quick, never = summary(0.5, 0.99), summary(0.81), summary(0.7, 0.79)
    found = tuned(asked, {0.1: [slow], 0.01: [quick], 0.001: [never]})
    assert isinstance(found, Cell)
    assert found.config.options == {"learning_rate": 0.01} == found.point
    assert found.config.eval_on == "test" and not found.trial
    assert found.id == "one-seed0-learning_rate=0.01"


def test_within_a_round_the_earlier_moment_is_chosen() -> None:
    asked = bench(run={"target_accuracy": 0.8})
    early, late = summary(0.79, 0.9), summary(0.2, 0.99)
    found = tuned(asked, {0.1: [late], 0.01: [early], 0.001: [summary(0.5, 0.85)]})
    assert isinstance(found, Cell) and found.point == {"learning_rate": 0.01}
    # Where nobody evaluated the model before the first round it is that round's end.
    first = summary(0.9)
    first.metrics.initial = {}
    found = tuned(asked, {0.1: [late], 0.01: [early], 0.001: [first]})
    assert isinstance(found, Cell) and found.point == {"learning_rate": 0.001}


def test_where_no_value_is_enough_for_all_seeds_it_is_that_for_most() -> None:
    asked = bench(run={"target_accuracy": 0.8}, seeds=[0, 1, 2])
    results = {0.1: [0.795, 0.795, 0.795], 0.01: [0.81, 0.7, 0.7], 0.001: [0.799, 0.799, 0.7]}
    made = {rate: [summary(accuracy) for accuracy in each] for rate, each in results.items()}
    found = tuned(asked, made)
    assert isinstance(found, Cell) and found.point == {"learning_rate": 0.01}


def test_more_seeds_that_reach_the_target_outweigh_fewer_rounds() -> None:
    asked = bench(run={"target_accuracy": 0.8}, seeds=[0, 1])
    lucky = [summary(0.9), summary(0.7)]
    sure = [summary(0.5, 0.8), summary(0.5, 0.8)]
    failed = [summary(0.9), None]
    found = tuned(asked, {0.1: lucky, 0.01: sure, 0.001: failed})
    assert isinstance(found, Cell) and found.point == {"learning_rate": 0.01}
    # A run that failed is one that never reached it.
    found = tuned(asked, {0.1: failed, 0.01: lucky, 0.001: [None, None]})
    assert tuning.tried(asked, cells(asked)[0], outcomes(asked, {0.1: failed, **EMPTY}))[0] == (
        Tried({"learning_rate": 0.1}, runs=1, reached=1, rounds=None, best=0.9)
    )


EMPTY: dict[float, list[Summary | None]] = {0.01: [None, None], 0.001: [None, None]}


def test_without_a_target_the_best_accuracy_is_chosen() -> None:
    found = tuned(bench(), {0.1: [summary(0.5)], 0.01: [summary(0.9, 0.6)], 0.001: [summary(0.8)]})
    assert isinstance(found, Cell) and found.point == {"learning_rate": 0.01}


def test_less_of_a_perplexity_is_chosen() -> None:
    def text(perplexity: float) -> Summary:
        found = summary(0.5)
        found.metrics.initial = {}
        found.rounds[0].metrics = {"accuracy": 0.5, "perplexity": perplexity}
        return found

    found = tuned(bench(), {0.1: [text(30.0)], 0.01: [text(12.0)], 0.001: [text(20.0)]})
    assert isinstance(found, Cell) and found.point == {"learning_rate": 0.01}


def test_a_row_of_which_nothing_was_learnt_has_no_choice() -> None:
    results: dict[float, list[Summary | None]] = {0.1: [None], 0.01: [None], 0.001: [None]}
    assert tuned(bench(), results) == "no run of its tuning has a result"


def test_without_a_grid_a_cell_is_what_it_was() -> None:
    asked = bench(grid={})
    (first, _) = cells(asked)
    assert tuning.trials(asked) == [] and tuning.settled(asked, first, []) is first


def test_trials_on_several_hosts_have_links_that_these_can_carry() -> None:
    run = {"hosts": "127.0.0.1,127.0.0.2", "profile": "3g", "device_class": "pi", "dilation": 2.0}
    found = tuning.trials(bench(run=run))
    _check_trials(found)
    for trial in found:
        config = trial.config
        assert config.hosts == run["hosts"] and config.device_class is None
        assert (config.links, config.profile, config.dilation) == ("auto", "3g", 2.0)


def test_a_choice_at_the_grids_edge_is_told() -> None:
    assert tuning.at_edge(bench(), {"learning_rate": 0.1}) == ["learning_rate"]
    assert tuning.at_edge(bench(), {"learning_rate": 0.01}) == []
    assert tuning.at_edge(bench(grid={"variant": ["v1", "v2"]}), {"variant": "v1"}) == []
    assert tuning.at_edge(bench(grid={"rank": [4]}), {"rank": 4}) == []


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"grid": {"learning_rate": [0.1, 0.01, 0.1]}}, "learning_rate: 0.1 is there twice"),
        ({"run": {"options": {"learning_rate": 1}}}, "all rows: learning_rate = 1 is what the gr"),
        ({"rows": [{"name": "a", "run": {"options": {"learning_rate": 1}}}]}, "row 'a': learning"),
        ({"run": {"eval_on": "test"}}, "all rows: eval_on = 'test': with a grid"),
    ],
)
def test_a_grid_that_does_not_fit_its_rows_is_refused(
    fields: dict[str, object], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        tuning.check(bench(**fields))


@pytest.mark.parametrize(
    ("grid", "reason"),
    [
        ({"learning_rat": [1]}, "row 'one': .*'learning_rat': did you mean learning_rate"),
        ({"learning_rate": [0.1, -1]}, "row 'one': .*learning_rate = -1: .*> 0"),
        ({"learning_rate": [float("inf")]}, "row 'one': .*must be a finite number"),
        # What the second row's method lacks.
        ({"weight_decay": [0.1]}, "row 'other': options of method kdfft: unknown field 'weight_d"),
    ],
)
def test_a_point_that_a_method_does_not_take_is_refused(
    grid: dict[str, list[float]], reason: str
) -> None:
    with pytest.raises(ConfigError, match=f"grid, {reason}"):
        _check_trials(tuning.trials(bench(grid=grid)))


def test_a_grid_of_no_values_is_refused(tmp_path: Path) -> None:
    from experiments import plan

    path = tmp_path / "bench.toml"
    path.write_text("[grid]\nlearning_rate = []\n[[rows]]\nname = 'a'")
    with pytest.raises(ConfigError, match=r"grid = .*length >= 1"):
        plan.load(str(path))


def test_trials_count_among_a_benchs_runs() -> None:
    with pytest.raises(ConfigError, match="these are 12000 runs"):
        cells(bench(seeds=list(range(1500))))


def test_rows_may_be_tuned_by_fewer_seeds_than_they_are_measured_by() -> None:
    asked = bench(seeds=[3, 4, 5], grid_seeds=[3])
    assert [trial.config.seed for trial in tuning.trials(asked)] == [3] * 2 * 3
    assert {cell.config.seed for cell in cells(asked)} == {3, 4, 5}
    # The choice is for each of them.
    best = outcomes(asked, {rate: [summary(rate)] for rate in GRID["learning_rate"]})
    chosen = [tuning.settled(asked, cell, best) for cell in cells(asked) if cell.row.name == "one"]
    assert [isinstance(each, Cell) and each.point for each in chosen] == 3 * [
        {"learning_rate": 0.1}
    ]
    with pytest.raises(ConfigError, match=r"grid_seeds = \[3\]: there is no grid"):
        tuning.check(bench(grid={}, grid_seeds=[3]))


def test_a_trial_is_given_up_on_after_twice_the_rounds_of_another() -> None:
    asked = bench(seeds=[0, 1], run={"target_accuracy": 0.8, "rounds": 20})
    trials = [cell for cell in tuning.trials(asked) if cell.row.name == "one"]
    of = {(cell.config.seed, cell.point["learning_rate"]): cell for cell in trials}
    before: list[Outcome] = []

    def rounds(seed: int, rate: float) -> int:
        settled = tuning.settled(asked, of[seed, rate], before)
        assert isinstance(settled, Cell) and settled.id == of[seed, rate].id
        return settled.config.rounds

    assert rounds(0, 0.1) == 20
    before.append(Outcome(of[0, 0.1], summary(0.2, 0.5, 0.7), None))
    assert rounds(0, 0.01) == 20
    before.append(Outcome(of[0, 0.01], summary(0.2, 0.5, 0.9), None))
    before.append(Outcome(of[0, 0.1], None, "it failed"))
    assert rounds(0, 0.001) == 6
    # What another seed or another row took says nothing of it.
    assert rounds(1, 0.1) == 20
    other = next(cell for cell in tuning.trials(asked) if cell.row.name == "other")
    assert tuning.settled(asked, other, before) == other
