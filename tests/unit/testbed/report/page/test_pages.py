"""The pages: well-formed, whole in themselves, escaped, small, and saying what came of a run."""

import itertools
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from checked_page import check, parsed
from click.testing import CliRunner
from made_run import HOSTILE, S, events, folder, lines

import cli
from testbed.config_error import ConfigError
from testbed.metrics import Target
from testbed.network.topology import client_address
from testbed.record.reading import read
from testbed.report import listing
from testbed.report.compare import comparability, comparison, comparison_page
from testbed.report.page import html, rounds_section, run_page
from testbed.report.read import gather

SECTIONS = ["accuracy", "timeline", "bytes", "links", "failures", "host", "run", "repeat"]
MEGABYTE = 1_000_000


def report(found: list[dict[str, Any]]) -> str:
    return run_page.page(gather(read(lines(found))), Path("results/RUN"))


def words(element: ElementTree.Element, name: str) -> str:
    (own,) = [each for each in element.iter("section") if each.get("id") == name]
    return " ".join(" ".join(own.itertext()).split())


@pytest.fixture(scope="module")
def page() -> str:
    return report(events())


def test_a_report_has_every_section_and_is_whole_in_itself(page: str) -> None:
    root = check(page)
    assert [each.get("id") for each in root.iter("section")] == SECTIONS
    assert "http" not in page.replace("http-equiv", "")


def test_the_result_is_one_sentence(page: str) -> None:
    assert (
        "fedpeft with 2 clients on 4g went from accuracy 0.100 to 0.750 in 2 rounds and "
        "0.2 minutes (12 s), with 4 MB on the wire (2 up, 2 down)."
    ) in page


def test_the_timeline_says_shares_and_means(page: str) -> None:
    said = words(parsed(page), "timeline")
    # 3 s of 6 computing, and one each of the others.
    assert "spends 50 % computing, 17 % sending, 17 % receiving and 17 % waiting" in said
    assert "client-1 1.000 3.000 1.000 1.000" in said


def test_bytes_stand_by_level_kind_and_direction(page: str) -> None:
    said = words(parsed(page), "bytes")
    # Two clients and two rounds of 0.4 MB of payload each way.
    assert "payload tensors 1.600 1.600 3.200" in said
    assert "adapter 1.6 + 1.6" in said


def test_what_tcp_sent_again_stands_with_its_share_of_the_wire() -> None:
    assert "How much TCP sent again is not known" in words(parsed(report(events())), "bytes")
    found = events()
    again = {
        "client-1": {"10.77.0.1": [3, 30_000]},
        "client-2": {"10.77.0.1": [1, 10_000]},
        "server": None,
    }
    for node, figures in again.items():
        usage = {"pid": 7, "private_mb": 20.0, "cpu_s": 1.0, "run_delay_s": 1.0}
        event = {"t": 60, "node": node, "event": "usage", **usage, "retransmitted": figures}
        found.insert(-1, event)
    said = words(parsed(report(found)), "bytes")
    # 40 kB of two clients' 2 MB.
    assert "up: by clients 4 0.04 2 0.03 (client-1)" in said
    assert "down is not known" in said and "down: by the server" not in said
    found[-2]["retransmitted"] = {client_address(2): [7, 70_000]}
    said = words(parsed(report(found)), "bytes")
    assert "down: by the server 7 0.07 3.5 0.07 (client-2)" in said


def test_captures_are_told_and_what_they_lack_is_a_failure() -> None:
    found = events()
    event = {"t": 60, "node": "supervisor", "event": "captured", "failure": None}
    found.insert(-1, {**event, "packets": [1000, 234], "dropped": [0, 0]})
    root = check(report(found))
    assert "The 1,234 packets at the clients' interfaces are in captures/" in words(root, "bytes")
    assert "Nothing failed" in words(root, "failures")
    found[-2] |= {"dropped": [0, 9], "failure": "no space left"}
    root = check(report(found))
    assert "9 more came faster than they could be written, of client-2." in words(root, "bytes")
    assert "capture incomplete packets came too fast 1 client-2" in words(root, "failures")
    assert "captures ended early no space left 1 all clients" in words(root, "failures")


def test_the_certificate_is_said_in_words_and_figures(page: str) -> None:
    said = words(parsed(page), "links")
    assert "some were not as their profiles say: 1 check does not hold." in said
    assert "4g rate up, kbit/s 6,300 ± 126 6,000 6,150 6,300 1 of 2" in said


def test_waiting_for_a_core_is_said_aloud(page: str) -> None:
    # A second of each four: 25 %.
    assert "waited for a free core for 25 %" in words(parsed(page), "host")
    assert "The machine and not the network" in page


def test_the_command_repeats_the_run() -> None:
    story = gather(read(lines(events())))
    said = words(parsed(run_page.page(story, Path("results/a run"))), "repeat")
    assert "python cli.py launch --config='results/a run/config.toml'" in said
    assert "python cli.py launch --profile=4g" in said


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("cli.py launch; rm -r x", "python cli.py 'launch;' rm -r x"),
        ("cli.py $(rm -r x)", "python cli.py '$(rm' -r 'x)'"),
        ("cli.py\nrm -r x", "python cli.py rm -r x"),
        ("cli.py 'a", "python 'cli.py '\"'\"'a'"),
    ],
)
def test_the_command_of_a_record_is_one(typed: str, shown: str) -> None:
    found = events()
    found[0]["command"] = typed
    story = gather(read(lines(found)))
    assert shown in words(parsed(run_page.page(story, Path("results/run"))), "repeat")


def test_nothing_of_a_run_is_html() -> None:
    hostile = events(method=HOSTILE, profile=HOSTILE, options={HOSTILE: HOSTILE + '"\x00\ud800'})
    hostile[-1] |= {"status": "failed", "reason": HOSTILE}
    others = [
        {"event": "lost", "peer": "client-1", "reason": HOSTILE},
        {"event": "missed", "peer": "client-1", "round": 1, "reason": HOSTILE},
        {"event": "dropped", "node": "server", "peer": HOSTILE, "bytes": 1, "reason": HOSTILE},
        {"event": "failed", "node": "server", "traceback": HOSTILE},
        {"event": "ended", "node": "client-1", "pid": 1, "how": HOSTILE},
        {"event": "overtaken", "node": "client-1", "reason": HOSTILE},
    ]
    hostile[-1:-1] = [{"t": 50, "node": "server", **event} for event in others]
    text = json.dumps(hostile).replace("\\ud800", "?")
    made = report(json.loads(text))
    root = check(made)
    assert HOSTILE not in made
    failures = words(root, "failures")
    assert failures.count(HOSTILE) >= 7
    assert all(
        what in failures
        for what in ("client lost", "update missed", "message dropped", "overtaken")
    )


def test_attributes_are_escaped_too() -> None:
    made = html.tag("p", "a", title='"><script>', class_=None)
    assert made == '<p title="&quot;&gt;&lt;script&gt;">a</p>'
    assert html.escaped("a\x00b\ud800") == r"a\x00b\ud800"


@pytest.mark.thorough
def test_a_report_is_small_also_of_a_thousand_clients() -> None:
    text = report(events(clients=1000, rounds=5))
    check(text)
    assert len(text.encode()) < MEGABYTE / 4
    assert "24 of 1000 clients" in text


def test_a_run_that_was_killed_at_any_event_has_a_report() -> None:
    whole = lines(events())
    for count, torn in enumerate(whole):
        check(run_page.page(gather(read([*whole[:count], torn[:30]])), Path("RUN")))


def test_a_new_start_takes_no_room_of_the_timeline() -> None:
    found = events(rounds=3)
    place = 1 + next(n for n, e in enumerate(found) if e["event"] == "wire" and e["round"] == 1)
    lost = {"seconds": 1.0, "payload": {"up": 0, "down": 0}, "message": {"up": 0, "down": 0}}
    again = {"t": 16.0, "node": "supervisor", "event": "resumed"}
    again |= {"round": 1, "at_s": 16.0, "lost": lost, "environment": {}}
    # The second round then begins 1000 s later.
    for each in found[place:]:
        for name in ("t", "sent_ns", "received_ns"):
            if name in each:
                each[name] += 1000 * (1 if name == "t" else S)
    story = gather(read(lines([*found[:place], again, *found[place:]])))
    placed = rounds_section.without_starts(story)
    assert [each.number for each in placed] == [1, 2, 3]
    for one, other in itertools.pairwise(placed):
        assert one.ended_ns == other.began_ns
        assert other.began_ns <= other.spans["client-1"][0].began_ns <= other.ended_ns
    assert "the time of new starts is left out" in run_page.page(story, Path("RUN"))


def test_of_a_round_that_is_not_over_no_figure_is_made_up() -> None:
    found = events(rounds=2)
    ended = next(n for n, each in enumerate(found) if each.get("event") == "round" and n)
    later = [n for n, each in enumerate(found) if each.get("event") == "message"][-1]
    assert ended < later
    story = gather(read(lines(found[: later + 1])))
    last = story.summary.rounds[-1]
    assert (last.finished, last.seconds) == (False, None)
    assert (last.compute_s, last.transfer_s, last.wait_s) == (None, None, None)
    row = run_page.page(story, Path("RUN")).partition("2, not finished</th>")[2]
    figures = row.partition("</tr>")[0]
    assert "0.000" not in figures and figures.count(">-<") >= 6


def test_a_run_of_modelled_computing_says_that_nothing_was_learnt() -> None:
    found = events()
    found[0]["compute"] = "modelled"
    for event in found:
        if "metrics" in event:
            event["metrics"] = {}
    text = report(found)
    check(text)
    assert "2 rounds of fedpeft with 2 clients on 4g took 0.2 minutes" in text
    assert "nothing was learnt" in text


def test_an_accuracy_of_clients_own_models_is_named_so() -> None:
    found = events()
    for event in found:
        if event["event"] == "evaluated":
            event["metrics"] = {}
        elif "metrics" in event:
            event["metrics"] = {"client_accuracy": 0.6}
    assert "reached accuracy (mean of clients) 0.600 in 2 rounds" in report(found)


def test_a_report_says_what_of_its_budget_a_run_used() -> None:
    found = events()
    found[0]["config"]["budget_mb"] = 2.0
    done = {"t": 98, "node": "server", "event": "done", "because": "budget"}
    text = report([*found[:-1], done, found[-1]])
    check(text)
    # 2 rounds of 2 clients, 0.4 MB each way.
    assert "both ways, it used 3.2 MB, 160.0%." in text
    assert "It ended there, for its budget was spent." in text
    assert "budget" not in report(events())


def of_text(*perplexities: float, target: str | None = None) -> list[dict[str, Any]]:
    found = events(method="flora", rounds=len(perplexities))
    if target is not None:
        found[0]["config"]["target"] = target
    told = iter([100.0, *perplexities])
    for event in found:
        if "metrics" in event:
            event["metrics"] = {"accuracy": 0.3, "loss": 3.5, "perplexity": next(told)}
    return found


def test_a_run_on_text_is_shown_by_its_perplexity() -> None:
    text = report(of_text(60.0, 20.0))
    check(text)
    assert "went from perplexity 100.000 to 20.000 in 2 rounds" in text
    for part in ("best perplexity", "Perplexity against minutes and bytes", "<dd>20.000</dd>"):
        assert part in text
    assert "went from loss 3.500 to 3.500" in report(of_text(60.0, 20.0, target="loss=1.5"))


def test_runs_on_text_are_compared_by_perplexity(tmp_path: Path) -> None:
    one = folder(tmp_path / "20261121-100000-a", of_text(60.0, 20.0))
    two = folder(tmp_path / "20261121-100001-b", of_text(50.0, 30.0))
    found = comparison.runs([one, two])
    rows, target = comparison.compare(found, None)
    assert target == Target("perplexity", 30.0) and comparability.notes(found) != []
    assert comparison.cells(rows, target)[0][1:3] == ["best perplexity", "rounds to perplexity 30"]
    assert [row.rounds_to_target for row in rows] == [2, 2]
    assert [row.front_rounds for row in rows] == [[2], [1]]
    assert "reached perplexity 30 in 0.2 min" in comparison.sentence(rows[0], target)
    page = check(comparison_page.page(rows, target))
    assert "Perplexity against minutes" in "".join(page.itertext())
    data = comparison.data(rows, target)
    assert (data["target"], data["target_accuracy"]) == ("perplexity=30", None)
    assert [(run["metric"], run["best"], run["accuracy"]) for run in data["runs"]] == [
        ("perplexity", 20.0, None),
        ("perplexity", 30.0, None),
    ]
    assert "perplexity to 25" not in output("compare", one, two, "--target=25")
    assert "rounds to perplexity 25" in output("compare", one, two, "--target=25")
    assert "rounds to loss 3.6" in output("compare", one, two, "--target=loss=3.6")
    listed = json.loads(output("results", f"--out={tmp_path}", "--json"))
    assert [(row["metric"], row["best"]) for row in listed] == [
        ("perplexity", 30.0),
        ("perplexity", 20.0),
    ]
    assert "best perplexity" in output("results", f"--out={tmp_path}")


def test_runs_of_different_metrics_are_not_compared_at_one_target(tmp_path: Path) -> None:
    text = folder(tmp_path / "20261121-100000-a", of_text(60.0, 20.0))
    images = folder(tmp_path / "20261121-100001-b", events())
    found = comparison.runs([text, images])
    rows, target = comparison.compare(found, None)
    assert target is None
    (said,) = [note for note in comparability.notes(found) if "different metrics" in note]
    assert "perplexity in flora; accuracy in fedpeft" in said
    assert [row.where.rpartition(", ")[2] for row in rows] == ["by perplexity", "by accuracy"]
    assert comparison.sentence(rows[0], None).endswith("its best perplexity was 20.000.")
    assert comparison.cells(rows, None)[1][2] == "perplexity 20.000"
    check(comparison_page.page(rows, None, comparability.notes(found)))
    with pytest.raises(ConfigError, match="shown by accuracy and perplexity; write METRIC=VALUE"):
        comparison.aimed("0.5", found)
    # By one that both have they are.
    rows, target = comparison.compare(found, comparison.aimed("accuracy=0.3", found))
    assert [row.rounds_to_target for row in rows] == [1, 1]
    assert "perplexity 20.000" in output("results", f"--out={tmp_path}")


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [
        folder(tmp_path / "20261121-100000-a", events(options={"rank": 4})),
        folder(tmp_path / "20261121-100001-b", events(options={"rank": 8}, round_s=12)),
        folder(
            tmp_path / "20261121-100002-c",
            events(method="sfprompt", accuracies=[0.6, 0.9], wire=5_000_000),
        ),
    ]


def test_runs_are_compared_at_what_all_reached(runs: list[Path]) -> None:
    rows, target = comparison.compare(comparison.runs(runs), None)
    assert target == Target("accuracy", 0.75)
    assert [comparison.sentence(row, target) for row in rows] == [
        "On 4g with 2 clients, digits: fedpeft rank=4 reached 0.75 in 0.2 min with 4 MB.",
        "On 4g with 2 clients, digits: fedpeft rank=8 reached 0.75 in 0.4 min with 4 MB.",
        "On 4g with 2 clients, digits: sfprompt reached 0.75 in 0.2 min with 40 MB.",
    ]
    # rank=8 is as rank=4, and slower.
    assert [row.front_rounds for row in rows] == [[1, 2], [], [1, 2]]
    # From 0.6 in 0.1 min to 0.9 in 0.2: half of the second round.
    moment = (rows[2].minutes_interpolated, rows[2].wire_mb_interpolated)
    assert moment == pytest.approx((0.15, 30))
    assert comparison.cells(rows, target)[3][5:7] == ["0.15", "30"]
    assert comparison.data(rows, target)["runs"][2]["wire_mb_interpolated"] == moment[1]
    higher = Target("accuracy", 0.8)
    rows, _ = comparison.compare(comparison.runs(runs), higher)
    assert comparison.cells(rows, higher)[1][3:7] == ["never", "never", "-", "-"]
    assert comparison.sentence(rows[0], higher).endswith(
        "did not reach 0.80; its best was 0.750, in 0.2 min with 4 MB."
    )


def test_runs_on_other_networks_are_no_rivals(runs: list[Path], tmp_path: Path) -> None:
    slow = folder(tmp_path / "d", events(profile="3g", round_s=60, accuracies=[0.2, 0.3]))
    rows, _ = comparison.compare(comparison.runs([*runs, slow]), None)
    assert rows[-1].front_rounds == [1, 2]
    assert "wifi" not in rows[-1].where and rows[-1].where.startswith("3g with 2 clients")


def test_a_run_on_the_validation_split_is_no_rival_of_one_on_the_test(tmp_path: Path) -> None:
    tuned = events(accuracies=[0.9, 0.99])
    for event in tuned:
        event |= {"split": "validation"} if event["event"] == "evaluated" else {}
    paths = [folder(tmp_path / "a", events()), folder(tmp_path / "b", tuned)]
    rows, _ = comparison.compare(comparison.runs(paths), None)
    assert [row.where for row in rows] == [
        "4g with 2 clients, digits",
        "4g with 2 clients, digits, its validation split",
    ]
    assert [row.front_rounds for row in rows] == [[1, 2], [1, 2]]


def test_what_no_probe_can_judge_is_listed_with_the_reason() -> None:
    found = events(clients=3)
    (certified,) = [event for event in found if event["event"] == "certified"]
    names = [f"client-{number}" for number in (1, 2, 3)]
    left = {"name": "round trip", "direction": "both", "reason": f"too many {HOSTILE} skip"}
    certified["fidelity"]["not_probed"] = [{**left, "link": name} for name in names]
    said = words(check(report(found)), "links")
    assert "What no probe can judge here, and was not probed 3 rows" in said or (
        f"4g round trip too many {HOSTILE} skip 3" in said
    )
    assert "What no probe can judge" not in words(check(report(events())), "links")


def on_other_terms(place: Path) -> list[Path]:
    """The same run over two backends, with two computes, on two machines, with a good link."""
    found = {"userspace": events(), "loopback": events(), "modelled": events()}
    found["loopback"][1]["facts"] = {"backend": "loopback"}
    found["modelled"][0] |= {"compute": "modelled", "device_class": "phone"}
    found["loopback"][0]["environment"] = {"cores": 64, "memory_mb": 9, "kernel": "Linux"}
    for event in found["userspace"]:
        if event["event"] == "certified":
            event["fidelity"] = {"verdict": "pass", "reason": "all hold", "checks": []}
    return [folder(place / name, own) for name, own in found.items()]


def test_what_is_not_comparable_is_told_apart_and_said(tmp_path: Path) -> None:
    found = comparison.runs(on_other_terms(tmp_path))
    rows, target = comparison.compare(found, None)
    assert [row.where.split("digits, ")[1] for row in rows] == [
        "real compute, over userspace links",
        "real compute, over loopback links",
        "modelled phone, over userspace links",
    ]
    assert "where" in comparison.cells(rows, target)[0]
    # None is a rival of another.
    assert all(row.front_rounds == [1, 2] for row in rows)
    notes = comparability.notes(found)
    for note, word in zip(notes, ("estimate", "modelled", "2 different machines"), strict=False):
        assert word in note
    assert notes[3].startswith("Links were not as their profiles say in fedpeft")
    assert comparison.data(rows, target, notes)["notes"] == notes
    root = check(comparison_page.page(rows, target, notes))
    assert all(note in words_of(root) for note in notes)


def test_where_runs_differ_in_their_keys_names_and_a_note_say_so(tmp_path: Path) -> None:
    made = []
    for number, secure in enumerate(["curve", None, None]):
        found = events()
        found[0] |= {"secure": secure}
        made.append(folder(tmp_path / str(number), found))
    runs = comparison.runs(made)
    assert [run.summary.secure for run in runs] == ["curve", None, None]
    curve, one, other = comparison.names(runs)
    assert curve.endswith("secure=curve") and "secure=none" in one and one != other
    wanted = (
        "Connections had keys of different kinds, which cost bytes and time: "
        f"curve in {curve}; none in {one}, {other}."
    )
    assert wanted in comparability.notes(runs)
    rows, _ = comparison.compare(runs, None)
    assert len({row.where for row in rows}) == 1
    assert not any("keys" in note for note in comparability.notes(runs[1:]))


def test_a_machine_without_time_for_all_is_not_blamed_on_the_links(tmp_path: Path) -> None:
    found = events()
    for event in found:
        if event["event"] == "certified":
            event["fidelity"] = {"verdict": "pass", "reason": "all hold", "checks": []}
    late = {"latest": "client-1", "late_share": 0.7, "links_late_ms": 0.1, "dilation_needed": 16.0}
    judged = {"t": 98, "node": "supervisor", "event": "host", "verdict": "fail", "reason": "late"}
    found.insert(-1, judged | late | {"busy_cores": 2.0})
    notes = comparability.notes(comparison.runs([folder(tmp_path / "a", found)]))
    assert notes == ["The machine had no time for all nodes in fedpeft."]


def test_runs_on_the_same_terms_have_no_notes(runs: list[Path], tmp_path: Path) -> None:
    good = on_other_terms(tmp_path / "more")[0]
    assert comparability.notes(comparison.runs([good])) == []
    shown = output("compare", *runs, f"--out={tmp_path / 'own.html'}")
    assert "comparable" not in shown and "over userspace" not in shown


def test_equal_runs_get_names_of_their_own(tmp_path: Path) -> None:
    made = [
        folder(tmp_path / "a", events(seed=1)),
        folder(tmp_path / "b", events(seed=2)),
        folder(tmp_path / "c", events(seed=2)),
    ]
    assert comparison.names(comparison.runs(made)) == [
        "fedpeft seed=1",
        "fedpeft seed=2 #1",
        "fedpeft seed=2 #2",
    ]


def test_runs_that_differ_in_their_stages_are_named_by_them(tmp_path: Path) -> None:
    made = [folder(tmp_path / name, events()) for name in "abc"]
    for path, text in zip(
        made, ('stage = ["topk:k=0.1", "int8"]', "stage = []", "stage = 3"), strict=True
    ):
        (path / "config.toml").write_text(text)
    assert comparison.names(comparison.runs(made)) == [
        "fedpeft stage=topk:k=0.1+int8",
        "fedpeft stage=none #1",
        "fedpeft stage=none #2",
    ]


def test_a_comparisons_page(runs: list[Path], tmp_path: Path) -> None:
    hostile = folder(tmp_path / "d", events(profile=HOSTILE, method="{x}[red]"))
    rows, target = comparison.compare(comparison.runs([*runs, hostile]), None)
    text = comparison_page.page(rows, target)
    root = check(text)
    assert HOSTILE not in text
    assert "sfprompt reached 0.75" in words_of(root)
    assert "[red]" in json.dumps(
        [str(cell) for cell in comparison.table(rows, target).columns[0].cells]
    )


def words_of(root: ElementTree.Element) -> str:
    return " ".join(" ".join(root.itertext()).split())


def test_a_comparison_of_many_runs_is_small() -> None:
    points = [comparison.curves.Point(n, n / 101, n, n) for n in range(101)]
    row = comparison.Row("x", "a", "4g", "ok", points, [True] * 101, 0.99, 1, 1.0, 1.0)
    rows = [row._replace(name=f"run {n}", where=f"4g-{n % 10}") for n in range(300)]
    text = comparison_page.page(rows, Target("accuracy", 0.9))
    check(text)
    assert len(text.encode()) < MEGABYTE


def output(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(cli.main, [str(each) for each in arguments])
    assert result.exit_code == code, result.output
    return result.stdout


def test_report_writes_where_it_says(runs: list[Path]) -> None:
    path = runs[0] / "report.html"
    assert output("report", runs[0]) == f"report: {path}\n"
    check(path.read_text())


def test_compare_takes_a_benchs_folder_and_its_last_good_runs(tmp_path: Path) -> None:
    bench = tmp_path / "bench-x"
    for stamp in ("20261121-100000", "20261121-110000"):
        folder(bench / "cell-1" / stamp, events())
    folder(bench / "cell-1" / "20261121-120000", events(closed=False))
    folder(bench / "cell-2" / "20261121-100000", events(method="fedavg"))
    found = json.loads(output("compare", bench, "--json"))
    assert [run["run"] for run in found["runs"]] == ["fedpeft", "fedavg"]
    assert found["runs"][0]["folder"].endswith("cell-1/20261121-110000")
    assert found["target_accuracy"] == 0.75
    check((bench / "comparison.html").read_text())


def test_compare_prints_a_table_and_sentences(runs: list[Path], tmp_path: Path) -> None:
    shown = output("compare", *runs, "--target=0.6", f"--out={tmp_path / 'own.html'}")
    assert "minutes to 0.60" in shown and "fedpeft rank=8" in shown
    assert "sfprompt reached 0.60 in 0.1 min with 20 MB." in shown
    assert (tmp_path / "own.html").is_file() and not (tmp_path / "comparison.html").exists()


def test_compare_has_the_busiest_node_where_clients_speak_to_one_another(
    runs: list[Path], tmp_path: Path
) -> None:
    star = json.loads(output("compare", *runs, "--json"))["runs"]
    # 2 rounds of 2 clients, 0.4 MB each way, all of it the server's.
    assert star[0]["busiest_mb"] == pytest.approx(3.2)
    assert "busiest node" not in output("compare", *runs)
    among = events()
    for event in among:
        if event["event"] == "message" and event["peer"] == "server":
            event["peer"] = "client-1" if event["node"] == "client-2" else "client-2"
    mesh = folder(tmp_path / "20261121-100009-mesh", among)
    shown = output("compare", *runs, mesh)
    assert "payload MB of the busiest node" in shown
    # Received 0.8, sent 0.8 to the other and as much to the server.
    assert json.loads(output("compare", mesh, "--json"))["runs"][0]["busiest_mb"] == 2.4


def test_results_are_listed_newest_first(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "20261121-100003-torn").mkdir()
    (tmp_path / "20261121-100003-torn" / "summary.json").write_text('{"schema"')
    folder(tmp_path / "20261121-100004-killed", events(closed=False))
    rows = json.loads(output("results", f"--out={tmp_path}", "--json"))
    assert [Path(row["folder"]).name[16:] for row in rows] == ["killed", "torn", "c", "b", "a"]
    assert rows[1]["status"] == "unreadable"
    assert rows[2]["wire_mb"] == 40 and rows[2]["accuracy"] == 0.9 and rows[2]["rounds"] == 2
    shown = output("results", f"--out={tmp_path}")
    assert "running or killed" in shown and "sfprompt" in shown


@pytest.mark.parametrize("command", ["report", "compare"])
def test_what_is_no_run_is_refused(command: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.main, [command, str(tmp_path)])
    assert isinstance(result.exception, ConfigError)
    assert str(tmp_path) in str(result.exception) and "cli.py results" in str(result.exception)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("none", "No such file"), ("file", "Not a directory"), ("x" * 300, "File name too long")],
)
def test_a_folder_that_cannot_be_listed_is_refused(name: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = f"is no folder to be listed: {reason}"
    with pytest.raises(ConfigError, match=words):
        listing.rows(tmp_path / name)
    with pytest.raises(ConfigError, match=words):
        comparison.runs([tmp_path / name])


def test_other_refusals(tmp_path: Path) -> None:
    newer = folder(tmp_path / "newer", events())
    (newer / "summary.json").write_text('{"schema": 2}')
    with pytest.raises(ConfigError, match="schema 2"):
        comparison.runs([newer])
    (newer / "events.jsonl").write_text('{"t": 1, "node": "x", "event": "run"}\n')
    with pytest.raises(ConfigError, match="not as this version writes it"):
        run_page.write(newer)
    assert not (newer / "report.html").exists()
