"""FedAvg of an array of 1 MB, submitted as a job: job.py KIT FILE."""

import sys

import numpy as np
from nvflare.app_common.np.recipes.fedavg import NumpyFedAvgRecipe
from nvflare.recipe.prod_env import ProdEnv

VALUES = 125_000
LIMIT_S = 300.0


def main() -> None:
    kit, file = sys.argv[1:]
    np.save(file, np.ones(VALUES))
    recipe = NumpyFedAvgRecipe(
        name="averaging",
        initial_ckpt=file,
        min_clients=2,
        num_rounds=2,
        train_script="examples/nvflare/client.py",
    )
    run = recipe.execute(ProdEnv(startup_kit_location=kit, login_timeout=60.0))
    print(f"results: {run.get_result(timeout=LIMIT_S)}")
    print(f"status: {run.get_status()}")


if __name__ == "__main__":
    main()
