"""The preset `flowertune`: what FlowerTune's evaluators set, and what it comes to by arithmetic."""

import math
import re
from io import StringIO

import made_run
import msgspec
import pytest
from rich.console import Console

import methods
from experiments import by_links
from experiments.compare import Group, figures, medians
from experiments.plan import Cell, cells, load
from nodes.device_classes import flops_per_s
from nodes.program import FineTuning
from nodes.workload import models

RANK, ALPHA, CLIENTS, A_ROUND, STEPS, ROUNDS = 32, 64, 20, 2, 10, 200
MISTRAL = 13_631_488
"""Of its adapters: 32 layers, queries 4096 x 4096, values 4096 x 1024."""
BUDGET = 200_000
"""FlowerTune's, in units of 2^20 bytes."""
PLAIN = ("Mistral 7B, LoRA", "Llama 2 7B, LoRA")


def runs() -> list[Cell]:
    return cells(load("flowertune"))


def one(row: str) -> Cell:
    return next(cell for cell in runs() if cell.row.name == row)


def test_each_row_is_run_on_4g_starlink_and_fibre() -> None:
    rows = [row.name for row in load("flowertune").rows]
    found = [(cell.row.name, cell.config.profile) for cell in runs()]
    assert sorted(found) == sorted((r, p) for r in rows for p in ("4g", "starlink", "wpt-fios"))
    assert len(rows) == 4


@pytest.mark.parametrize("cell", runs(), ids=lambda cell: cell.id)
def test_settings_are_the_benchmarks(cell: Cell) -> None:
    config = cell.config
    assert (config.clients, config.clients_per_round, config.rounds) == (CLIENTS, A_ROUND, ROUNDS)
    assert config.compute == "modelled" and flops_per_s(config.device_class or "") == 1e14
    assert (config.train_samples, config.sequence_length) == (52_002, 512)
    assert config.budget_mb == pytest.approx(BUDGET * 2**20 / 1e6)
    program = FineTuning(config, CLIENTS)
    own = program.options
    assert (own["rank"], own["lora_alpha"], own["local_steps"]) == (RANK, ALPHA, STEPS)
    assert (own["batch_size"], own["optimizer"]) == (16, "adamw")
    method = methods.load(config.method)
    options = msgspec.convert(own, method.Config)
    for number in (1, 51, 101, ROUNDS, ROUNDS + 1):
        cosine = (1 + math.cos(math.pi * (number - 1) / ROUNDS)) / 2
        assert options.round_rate(number) == pytest.approx(1e-6 + (5e-5 - 1e-6) * cosine)


@pytest.mark.parametrize(("row", "parameters"), [(PLAIN[0], MISTRAL), (PLAIN[1], 16_777_216)])
def test_a_message_is_the_adapters_of_query_and_value(row: str, parameters: int) -> None:
    cell = one(row)
    method = methods.load(cell.config.method)
    config = msgspec.convert(FineTuning(cell.config, CLIENTS).options, method.Config)
    adapted = method.adapt(config, models.skeleton(cell.config.model, 1))
    trained = [name for name, each in adapted.named_parameters() if each.requires_grad]
    assert {name.split(".")[-2] for name in trained} == {"query", "value"}
    assert method.traffic(config, adapted) == (4 * parameters, 4 * parameters)
    assert cell.row.formula_mb == pytest.approx(4 * parameters / 1e6)


def test_200_rounds_of_mistrals_are_41600_of_the_budgets_200000() -> None:
    message_mb = one(PLAIN[0]).row.formula_mb
    assert message_mb == pytest.approx(54.5, abs=0.05)
    whole = message_mb * 1e6 * 2 * A_ROUND * ROUNDS / 2**20
    assert whole == 41_600
    assert whole / BUDGET == pytest.approx(0.208)


def test_the_smaller_messages_are_what_their_rows_say() -> None:
    halved = one("Mistral 7B, FFA-LoRA")
    # B alone: 32 layers, rank 32, 4096 and 1024 outputs.
    assert halved.row.formula_mb == pytest.approx(4 * 32 * RANK * (4096 + 1024) / 1e6)
    assert FineTuning(halved.config, CLIENTS).options["variant"] == "ffalora"
    assert one("Mistral 7B, LoRA, int8 up").config.stage == ("int8",)


def test_its_minutes_stand_in_a_column_for_each_links_beside_what_it_used_of_its_budget() -> None:
    groups = []
    for place, cell in enumerate(runs()):
        found = made_run.summary(made_run.events(clients=2, rounds=2))
        found.budget_mb = cell.config.budget_mb
        for entry in found.rounds:
            entry.seconds = 60.0 * (place + 1)
            entry.bytes.payload.up = entry.bytes.payload.down = 109_051_904
        groups.append(Group(cell.where, cell.row, *medians([figures(found, None)])))
    made = by_links.table(groups)
    assert made is not None
    console = Console(file=StringIO(), width=140)
    console.print(made)
    printed = str(console.file.getvalue())  # type: ignore[attr-defined]
    head, first = (line for line in printed.splitlines() if "4g" in line or PLAIN[0] + " " in line)
    for column in ("of its budget", "4g, 20 clients", "starlink, 20 clients", "wpt-fios, 20"):
        assert column in head
    # Every row is run on 4g before the first is on starlink.
    assert re.findall(r"[\d.]+%|\d+\.\d\d", first) == ["0.21%", "1.00", "5.00", "9.00"]
    assert by_links.table(groups[:1]) is None and by_links.table(groups[:4]) is None
