"""Payload bytes of launched runs against methods' formulae, with real and modelled compute."""

import pytest

ROUNDS = 2
PARAMETERS = 303_658
WHOLE = 4 * PARAMETERS
IMAGE = 16 * 16
SMALL = (
    *("--profile=ethernet", "--no-calibrate", "--no-checkpoints", "--clients=2", "--rounds=2"),
    *("--partition=iid", "--time-limit=120"),
)
DIGITS = ("--dataset=digits", "--train-samples=80")
DOCS = ("--model=llama-docs", "--dataset=docs", "--train-samples=32")
REAL = ("--eval-samples=20",)
MODELLED = ("--compute=modelled", "--device-class=server")
BLOCK_OF_TEXT = 4 * 128**2 + 3 * 128 * 344 + 2 * 128
STUDENT = 2 * (4 * 2 * 193 + 2 * 2 * 289 + 11 * 96) + 2 * 107 + 2 * 96 + 10
"""Values of FedKD's update at K = 2: of two blocks, of the classifier, and the norm before it."""


def batches(samples):
    full, rest = divmod(samples, 16)
    return [16] * full + [rest] * (rest > 0)


def activations(samples):
    """FedLite's of an epoch, up and down: codebooks, codes of 3 bits, labels; dense gradients."""
    sizes = batches(samples)
    up = sum(4 * 8 * 8 + -(-size * 204 * 3 // 8) + 8 * size for size in sizes)
    return up, sum(4 * 1632 * size for size in sizes)


def each(up, down=None):
    """Of every client in every round."""
    return {"up": 2 * ROUNDS * up, "down": 2 * ROUNDS * (up if down is None else down)}


def once(up=0, down=0):
    """Of every client in one round."""
    return {"up": 2 * up, "down": 2 * down}


CASES = {
    "fedcompress": (
        (
            *("--set=adaptive=false", "--set=public_samples=16", "--set=distill_epochs=1"),
            *("--set=local_epochs=1", "--set=cluster_epochs=1"),
        ),
        {"clustered": each(137_360)},
    ),
    "fedptr": (
        ("--set=variant=head", "--set=match_steps=2"),
        {"head": each(4 * 970), "synthetic": once(down=10 * (4 * IMAGE + 4 * 10) + 4)},
    ),
    "fedsp": (
        (
            *("--set=prefix_length=5", "--set=local_steps=1", "--set=align_steps=1"),
            "--set=server_samples=16",
        ),
        {
            "prefix": each(5 * 4 * 2 * 128 * 4),
            "auxiliary": once(down=4 * (1024 * 128 + BLOCK_OF_TEXT + 128)),
        },
    ),
    "salientgrads": (
        ("--set=local_epochs=1",),
        {"saliency": once(up=1_189_632), "mask": once(down=37_176), "model": each(381_888)},
    ),
    "fedpruning": (
        ("--set=schedule=constant", "--set=local_epochs=1"),
        {"model": {"up": each(918_184)["up"], "down": each(918_184)["down"] + 2 * 96}},
    ),
    "feddm": (
        ("--train-samples=200", "--set=iterations=2", "--set=server_epochs=1"),
        {"model": each(0, WHOLE), "synthetic": each(10 * 2 * (4 * IMAGE + 1), 0)},
    ),
    "dispfl": (("--set=local_epochs=1",), {"sparse": each(645_262)}),
    "fedlite": (("--set=local_epochs=1",), {}),
    "fedkd": (
        ("--set=rank=2", "--set=local_epochs=1"),
        {"update": {"up": each(4 * STUDENT)["up"], "down": 2 * 4 * STUDENT}},
    ),
    "fedavg": (
        ("--stage=cossgd:bits=2", "--stage-down=cossgd:weights=true", "--set=local_epochs=1"),
        {"model": each(76_491, 152_405)},
    ),
}
"""By method (CosSGD is averaging's stage): options, and bytes by kind of message."""
LONG = {"fedcompress", "fedsp"}


def case(method, compute):
    """Thorough but for each method's with real compute, where that is quick, and one modelled."""
    real = compute is REAL
    marks = [] if method == "fedavg" or (real and method not in LONG) else [pytest.mark.thorough]
    return pytest.param(method, compute, marks=marks, id=f"{method}-{('modelled', 'real')[real]}")


@pytest.mark.parametrize(
    ("method", "compute"),
    [case(method, compute) for method in CASES for compute in (REAL, MODELLED)],
)
def test_what_crosses_the_links_is_the_formulas_to_the_byte(launch, method, compute, request):
    options, expected = CASES[method]
    links = "loopback"
    if method == "dispfl":
        request.getfixturevalue("userspace_links")
        links = "userspace"
    data = DOCS if method == "fedsp" else DIGITS
    run = launch(*SMALL, *data, f"--links={links}", f"--method={method}", *options, *compute)
    assert run.finish() == 0, run.describe()
    summary = run.summary
    kinds = summary["bytes"]["by_kind"]
    if method == "fedlite":
        found = [activations(client["samples"]) for client in summary["per_client"]]
        up, down = (ROUNDS * sum(way) for way in zip(*found, strict=True))
        expected = {"smashed": {"up": up, "down": 0}, "gradient": {"up": 0, "down": down}}
    assert {kind: kinds[kind] for kind in expected} == expected
    for way in ("up", "down"):
        assert summary["bytes"]["wire"][way] > sum(own[way] for own in expected.values())
