"""Language models: the default runs, and tokens a second of a client against transformers alone.

    python benchmarks/language.py [--repeat=3] [--steps=8]

1. `launch --model=llama-docs --dataset=docs`: seconds, bytes, memory of a client, and what
   perplexity fell by, by LoRA and by full averaging.
2. The same with `--dataset=instructions`: answers right to the last token, before and after.
3. A client's training with LoRA against peft's LoRA on transformers' own LlamaForCausalLM of the
   same shape, in one process of one thread, both on the same batches, in turns; tokens of CPU time.

--repeat is of the first run; the others, which are asked for their metrics alone, are made once.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import table
import torch

from methods import Shard
from methods.fedpeft import Client, Config, adapt
from methods.shared.local_training import trainable_state
from nodes import products
from nodes.workload import models
from nodes.workload.text.model import LanguageSpec

CLI = Path(__file__).parent.parent / "cli.py"
MODEL = "llama-docs"
TOTAL_LIMIT_S = 75.0
CLIENT_MEMORY_LIMIT_MB = 25.0
LEAST_FALL_PERCENT = 5.0
LEAST_EXACT_GAIN = 0.2
LIMIT_S = 1800.0
"""Of a run, on a machine with much else to do."""
LEAST_RATE_RATIO = 0.9
PAYLOAD_BYTES = 4 * 2 * 4 * 8 * (128 + 128)
"""Of one message: float32, two layers of each of four blocks, A and B of rank 8."""
ROWS, LENGTH, BATCH = 16, 128, 8


def one_run(dataset: str = "docs", method: str = "fedpeft") -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as out:
        flags = [f"--model={MODEL}", f"--dataset={dataset}", f"--method={method}"]
        flags += ["--profile=4g", "--clients=20"]
        command = [sys.executable, str(CLI), "launch", f"--out={out}", *flags]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=LIMIT_S)
        (summary,) = Path(out).glob("*/summary.json")
        found: dict[str, Any] = json.loads(summary.read_text())
        return found


def by_round(summary: dict[str, Any], metric: str, digits: int) -> list[float]:
    """A metric before training, and after each round."""
    after = [entry["metrics"][metric] for entry in summary["rounds"]]
    return [round(each, digits) for each in (summary["metrics"]["initial"][metric], *after)]


def fall_percent(summary: dict[str, Any]) -> float:
    first, last = (summary["metrics"][when]["perplexity"] for when in ("initial", "final"))
    return float(100 * (1 - last / first))


def default_run(repeat: int) -> None:
    summaries = [one_run() for _ in range(repeat)]
    middle = statistics.median
    memory = middle(
        max(row["private_mb"] for row in each["processes"] if row["node"] != "server")
        for each in summaries
    )
    total_s = middle(each["seconds"]["total"] for each in summaries)
    fall = middle(map(fall_percent, summaries))
    (up,) = {each["bytes"]["payload"]["up"] for each in summaries}
    messages = summaries[0]["clients"] * len(summaries[0]["rounds"])
    perplexities = by_round(summaries[0], "perplexity", 2)
    click.echo(f"docs, LoRA: perplexity before and by round {perplexities}: {fall:.1f} % less")
    click.echo(f"{total_s:.1f} s in all, {memory:.1f} MB private of a client at most")
    click.echo(f"{up / messages:,.0f} bytes of payload a message, by formula {PAYLOAD_BYTES:,}")
    name = "language model, default run"
    table.add(f"{name}: all", "s", total_s, "limit", TOTAL_LIMIT_S, most=1.0)
    table.add(f"{name}: a client", "MB", memory, "limit", CLIENT_MEMORY_LIMIT_MB, most=1.0)
    table.add(f"{name}: perplexity less", "%", fall, "limit", LEAST_FALL_PERCENT, least=1.0)
    given = {"least": 1.0, "most": 1.0}
    table.add(f"{name}: a message", "bytes", up / messages, "formula", PAYLOAD_BYTES, **given)


def full_averaging() -> None:
    summary = one_run(method="fedavg")
    fall = fall_percent(summary)
    perplexities = by_round(summary, "perplexity", 2)
    click.echo(f"docs, all weights: perplexity {perplexities}: {fall:.1f} % less")
    name = "language model, full averaging: perplexity less"
    table.add(name, "%", fall, "limit", LEAST_FALL_PERCENT, least=1.0)


def answers() -> None:
    """Exact match of instructions, before and after."""
    for method, words in (("fedpeft", "LoRA"), ("fedavg", "all weights")):
        found = by_round(one_run("instructions", method), "exact_match", 3)
        click.echo(f"instructions, {words}: exact match before and by round {found}")
        name = f"language model, instructions, {words}: exact match more"
        table.add(name, "", found[-1] - found[0], "limit", LEAST_EXACT_GAIN, least=1.0)


def ours(inputs: torch.Tensor, targets: torch.Tensor) -> Callable[[], None]:
    """A client's part in a round, without the network."""
    config = Config(batch_size=BATCH, local_epochs=1)
    model = adapt(config, models.build(MODEL, 1, seed=0))
    client = Client(config, model, Shard(inputs, targets, inputs[:0], 1), seed=0)
    start = trainable_state(model)

    def round_() -> None:
        with products.by_onednn():
            client.update(start)

    return round_


def plain(inputs: torch.Tensor, targets: torch.Tensor) -> Callable[[], None]:
    """The usual loop over batches with transformers' and peft's own classes."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    spec = models.read_spec(MODEL)
    assert isinstance(spec, LanguageSpec)
    config = LlamaConfig(
        vocab_size=spec.vocabulary,
        hidden_size=spec.width,
        num_hidden_layers=spec.depth,
        num_attention_heads=spec.heads,
        intermediate_size=spec.mlp_width,
        max_position_embeddings=spec.context,
        tie_word_embeddings=True,
    )
    lora = LoraConfig(r=8, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(LlamaForCausalLM(config), lora)
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def round_() -> None:
        optimizer = torch.optim.AdamW(wanted, lr=1e-2)
        for batch in torch.randperm(len(inputs)).split(BATCH):
            optimizer.zero_grad(set_to_none=True)
            logits = model(input_ids=inputs[batch], use_cache=False).logits
            found = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), targets[batch].flatten()
            )
            found.backward()
            optimizer.step()

    return round_


def rates(steps: int) -> tuple[float, float]:
    """Tokens a second of CPU, ours and plain, each the best of its turns."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 1024, (ROWS, LENGTH + 1), generator=generator)
    rounds = [make(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()) for make in (ours, plain)]
    least = [float("inf")] * 2
    for _ in range(1 + steps):
        for number, round_ in enumerate(rounds):
            began = time.process_time()
            round_()
            least[number] = min(least[number], time.process_time() - began)
    own, other = (ROWS * LENGTH / seconds for seconds in least)
    return own, other


@click.command()
@click.option("--repeat", default=3, show_default=True, type=click.IntRange(0, 20))
@click.option("--steps", default=8, show_default=True, type=click.IntRange(1, 1000))
def main(repeat: int, steps: int) -> None:
    if repeat:
        default_run(repeat)
        full_averaging()
        answers()
    own, other = rates(steps)
    click.echo(f"{own:,.0f} tokens a second of a client, {other:,.0f} of transformers alone")
    name = "language model: a client trains"
    table.add(name, "tokens/s", own, "transformers", other, least=LEAST_RATE_RATIO)


if __name__ == "__main__":
    main()
