"""FedAvg of an array of float32, with the time at which each round ended."""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    times: list[float] = []

    def stamp(number: int, arrays: ArrayRecord) -> None:
        times.append(time.monotonic())
        Path(config["out"]).write_text(json.dumps(times))

    clients = config["clients"]
    strategy = FedAvg(fraction_evaluate=0, min_train_nodes=clients, min_available_nodes=clients)
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord([np.ones(int(config["bytes"]) // 4, np.float32)]),
        num_rounds=config["rounds"],
        evaluate_fn=stamp,
    )
