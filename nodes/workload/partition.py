"""Partition of samples over clients: by chance, by their groups, or as they are found."""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from testbed.seeds import derive


def partition(
    groups: NDArray[np.int64],
    clients: int,
    *,
    kind: str,
    alpha: float = 0.5,
    classes_per_client: int = 2,
    seed: int,
    minimum: int = 8,
) -> list[NDArray[np.int64]]:
    """Sorted indices of each client's samples; every sample goes to exactly one client.

    `kind` "iid" deals samples out at random, evenly. "dirichlet" splits each class by shares drawn
    from Dirichlet(`alpha`) over the clients (Hsu et al., 2019; a smaller alpha is more skewed).
    A client left with fewer than `minimum` samples is then given random ones of whichever client
    has most, one at a time, so heavy skew over many clients is softened rather than redrawn.
    "pathological" deals every client as many shards of one class as `classes_per_client` (McMahan
    et al., 2017, whose shards, cut from samples in order of class, may hold two); where samples
    move to reach the minimum, they are of classes that the client has.
    "natural" leaves groups whole, such as writers of texts: they are dealt out at random, and where
    there are fewer groups than clients some clients share one, each with its own part of it.
    ValueError for a bad argument, or if the samples do not suffice for the minimum.
    """
    if clients < 1:
        raise ValueError(f"clients must be at least 1, not {clients}")
    if clients * minimum > len(groups):
        raise ValueError(
            f"{clients} clients with at least {minimum} samples each need {clients * minimum} "
            f"samples, and there are {len(groups)}: take fewer clients, or a smaller minimum"
        )
    rng = np.random.default_rng(derive(seed, "partition", clients))
    if kind == "iid":
        owners = rng.permutation(np.arange(len(groups)) % clients)
    elif kind == "dirichlet":
        owners = _dirichlet_owners(groups, clients, alpha, rng)
    elif kind == "pathological":
        owners = _pathological_owners(groups, clients, classes_per_client, rng)
        _top_up_within_classes(owners, groups, clients, minimum)
    elif kind == "natural":
        owners = _natural_owners(groups, clients, rng)
    else:
        raise ValueError(
            f"unknown partition {kind!r}; known: dirichlet, iid, natural, pathological"
        )
    _top_up(owners, clients, minimum, rng)
    ends = np.cumsum(np.bincount(owners, minlength=clients))[:-1]
    return np.split(np.argsort(owners, kind="stable"), ends)


def _dirichlet_owners(
    groups: NDArray[np.int64], clients: int, alpha: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """The client of each sample, (n,): every class split by its own draw of Dirichlet(alpha)."""
    if not 0 < alpha < np.inf:
        raise ValueError(f"alpha must be above 0 and finite, not {alpha}")
    owners = np.empty(len(groups), dtype=np.int64)
    for group in np.unique(groups):
        members = rng.permutation(np.flatnonzero(groups == group))
        shares = np.cumsum(rng.dirichlet(np.full(clients, alpha)))
        ends = np.round(shares * len(members)).astype(np.int64)
        # The shares add up to one only to rounding, and every sample needs an owner.
        ends[-1] = len(members)
        owners[members] = np.repeat(np.arange(clients), np.diff(ends, prepend=0))
    return owners


def _natural_owners(
    groups: NDArray[np.int64], clients: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """The client of each sample, (n,): groups dealt out whole, or the pieces of those shared."""
    members = [np.flatnonzero(groups == group) for group in rng.permutation(np.unique(groups))]
    pieces = np.ones(len(members), dtype=np.int64)
    for _ in range(clients - len(members)):
        pieces[np.argmax([len(each) / n for each, n in zip(members, pieces, strict=True)])] += 1
    owners = np.empty(len(groups), dtype=np.int64)
    shares = [
        piece
        for own, count in zip(members, pieces, strict=True)
        for piece in np.array_split(own, count)
    ]
    for number, piece in enumerate(shares):
        owners[piece] = number % clients
    return owners


def check_classes(classes_per_client: int, *, classes: int, clients: int) -> None:
    """ValueError where no client can have so many classes, or some class would have no client."""
    if not 1 <= classes_per_client <= classes:
        raise ValueError(
            f"classes_per_client = {classes_per_client}: must be 1 to {classes}, "
            "the number of classes"
        )
    if clients * classes_per_client < classes:
        raise ValueError(
            f"classes_per_client = {classes_per_client}: {clients} clients would leave out some of "
            f"the {classes} classes; take at least {-(-classes // clients)}, or more clients"
        )


def _pathological_owners(
    groups: NDArray[np.int64], clients: int, classes_per_client: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """The client of each sample, (n,): shards of one class each, dealt out at random."""
    classes, sizes = np.unique(groups, return_counts=True)
    check_classes(classes_per_client, classes=len(classes), clients=clients)
    dealt = rng.permutation(np.arange(clients * classes_per_client) % clients)
    shards = np.ones(len(classes), dtype=np.int64)
    for _ in range(len(dealt) - len(classes)):
        shards[np.argmax(sizes / shards)] += 1
    owners = np.empty(len(groups), dtype=np.int64)
    first = 0
    for group, count in zip(classes, shards, strict=True):
        members = rng.permutation(np.flatnonzero(groups == group))
        for piece, owner in zip(
            np.array_split(members, count), dealt[first : first + count], strict=True
        ):
            owners[piece] = owner
        first += int(count)
    return owners


def _top_up_within_classes(
    owners: NDArray[np.int64], groups: NDArray[np.int64], clients: int, minimum: int
) -> None:
    """Give each poor client, in place, samples of its own classes from whoever has most of all."""
    for poor in np.flatnonzero(np.bincount(owners, minlength=clients) < minimum):
        own = np.isin(groups, groups[owners == poor])
        while (sizes := np.bincount(owners, minlength=clients))[poor] < minimum:
            spare = np.flatnonzero(own & (sizes[owners] > minimum))
            if not len(spare):
                raise ValueError(
                    f"client {poor + 1} cannot have {minimum} samples of its classes: take fewer "
                    "clients, or more classes per client"
                )
            owners[spare[np.argmax(sizes[owners[spare]])]] = poor


def _top_up(
    owners: NDArray[np.int64], clients: int, minimum: int, rng: np.random.Generator
) -> None:
    """Move random samples, in place, from the largest clients until each has `minimum`."""
    sizes = np.bincount(owners, minlength=clients)
    if sizes.min() >= minimum:
        return
    order = rng.permutation(len(owners))
    order = order[np.argsort(owners[order], kind="stable")]
    piles = [pile.tolist() for pile in np.split(order, np.cumsum(sizes)[:-1])]
    largest = [(-len(pile), client) for client, pile in enumerate(piles)]
    heapq.heapify(largest)
    for poor in np.flatnonzero(sizes < minimum):
        for _ in range(minimum - sizes[poor]):
            size, rich = largest[0]
            owners[piles[rich].pop()] = poor
            heapq.heapreplace(largest, (size + 1, rich))
