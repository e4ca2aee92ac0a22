"""Partition of samples over clients."""

import time

import numpy as np
import pytest

from nodes.workload.partition import partition

GROUPS = np.random.default_rng(0).integers(0, 10, 3000)


def split(kind: str, clients: int = 20, **options: float) -> list[np.ndarray]:
    return partition(GROUPS, clients, kind=kind, **{"seed": 0, **options})  # type: ignore[arg-type]


def skew(shards: list[np.ndarray], groups: np.ndarray = GROUPS) -> float:
    """Mean share of a client's most frequent class: 0.1 with ten even classes, 1 with one."""
    return float(np.mean([np.bincount(groups[each]).max() / len(each) for each in shards]))


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "pathological", "natural"])
@pytest.mark.parametrize("clients", [1, 7, 20, 300])
def test_every_sample_has_one_client(kind: str, clients: int) -> None:
    shards = split(kind, clients, alpha=0.3, classes_per_client=10 if clients == 1 else 2)
    assert len(shards) == clients
    assert np.array_equal(np.sort(np.concatenate(shards)), np.arange(len(GROUPS)))
    assert all((np.diff(each) > 0).all() for each in shards)


@pytest.mark.parametrize("alpha", [1e-4, 0.05, 0.5, 1000.0])
@pytest.mark.parametrize("minimum", [0, 8, 30])
def test_every_client_has_its_minimum(alpha: float, minimum: int) -> None:
    sizes = [len(each) for each in split("dirichlet", 100, alpha=alpha, minimum=minimum)]
    assert min(sizes) >= minimum
    assert sum(sizes) == len(GROUPS)


def test_iid_is_even_and_dirichlet_is_as_skewed_as_alpha_says() -> None:
    even = split("iid")
    assert {len(each) for each in even} == {150}
    skews = [skew(even), *(skew(split("dirichlet", alpha=alpha)) for alpha in (100, 0.5, 0.05))]
    assert skews[0] < 0.2
    assert abs(skews[1] - skews[0]) < 0.05
    assert skews[2] > skews[0] + 0.15
    assert skews[3] > skews[2] + 0.15


def test_the_minimum_leaves_rich_clients_as_they_were() -> None:
    free = split("dirichlet", alpha=0.1, minimum=0)
    held = split("dirichlet", alpha=0.1, minimum=40)
    assert min(len(each) for each in free) < 40
    moved = sum(len(np.setdiff1d(new, old)) for old, new in zip(free, held, strict=True))
    assert moved == sum(max(0, 40 - len(each)) for each in free)


@pytest.mark.parametrize("clients", [10, 20, 100, 300])
@pytest.mark.parametrize("classes", [1, 2, 3])
def test_a_pathological_client_has_few_classes_and_its_share(clients: int, classes: int) -> None:
    shards = split("pathological", clients, classes_per_client=classes)
    there = [len(np.unique(GROUPS[each])) for each in shards]
    assert max(there) == classes
    # Some are dealt two shards of one class.
    assert np.mean(there) > 0.8 * classes
    sizes = [len(each) for each in shards]
    assert min(sizes) >= 8 and max(sizes) < 1.3 * len(GROUPS) / clients + 2


def test_a_pathological_client_is_topped_up_with_its_own_classes() -> None:
    free = split("pathological", 60, classes_per_client=3, minimum=0)
    held = split("pathological", 60, classes_per_client=3, minimum=49)
    assert min(len(each) for each in free) < min(len(each) for each in held) == 49
    for old, new in zip(free, held, strict=True):
        assert set(GROUPS[new]) <= set(GROUPS[old])
    moved = sum(len(np.setdiff1d(new, old)) for old, new in zip(free, held, strict=True))
    assert moved == sum(max(0, 49 - len(each)) for each in free)


@pytest.mark.parametrize("kind", ["dirichlet", "pathological", "natural"])
def test_a_partition_is_its_seed(kind: str) -> None:
    def flat(seed: int) -> list[list[int]]:
        return [each.tolist() for each in split(kind, seed=seed)]

    assert flat(1) == flat(1)
    assert flat(1) != flat(2)


@pytest.mark.parametrize("kind", ["dirichlet", "pathological", "natural"])
def test_partition_is_fast(kind: str) -> None:
    groups = np.random.default_rng(0).integers(0, 10, 60_000)
    started = time.process_time()
    partition(groups, 1000, kind=kind, alpha=0.1, seed=0)
    assert time.process_time() - started < 1


def test_partition_refuses_what_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"need 3200 samples, and there are 3000: take fewer"):
        split("iid", 400)
    with pytest.raises(ValueError, match="known: dirichlet, iid, natural, pathological"):
        split("skewed")
    for classes in (0, 11):
        with pytest.raises(ValueError, match=f"classes_per_client = {classes}: must be 1 to 10"):
            split("pathological", classes_per_client=classes)
    with pytest.raises(ValueError, match="leave out some of the 10 classes; take at least 3,"):
        split("pathological", 4, classes_per_client=2)
    with pytest.raises(ValueError, match=r"client \d+ cannot have 8 samples of its classes: take"):
        split("pathological", 375)
    for alpha in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="alpha"):
            split("dirichlet", alpha=alpha)
    with pytest.raises(ValueError, match="clients"):
        split("iid", 0)


@pytest.mark.parametrize("clients", [4, 10])
def test_a_natural_client_has_whole_groups(clients: int) -> None:
    shards = split("natural", clients)
    owners = [set(GROUPS[each]) for each in shards]
    assert sum(map(len, owners)) == len(set().union(*owners)) == 10
    assert max(map(len, owners)) - min(map(len, owners)) <= 1


def test_natural_groups_fewer_than_clients_are_shared_by_neighbours() -> None:
    groups = np.repeat([0, 1, 2], [600, 300, 100])
    shards = partition(groups, 10, kind="natural", seed=0)
    assert [len(np.unique(groups[each])) for each in shards] == [1] * 10
    assert sorted(len(each) for each in shards) == [100] * 10
    assert all(np.ptp(each) == len(each) - 1 for each in shards)
