"""Dask with workers elsewhere: the first makes 1 MB, and each of the others takes it from there."""

from distributed import Client

SIZE = 1_000_000
LIMIT_S = 120


def main() -> None:
    with Client("server:8786", timeout=LIMIT_S) as client:
        client.wait_for_workers(2, timeout=LIMIT_S)
        first, *others = sorted(client.scheduler_info()["workers"])
        made = client.submit(bytes, SIZE, workers=[first])
        found = [client.submit(len, made, workers=[worker], pure=False) for worker in others]
        print(client.gather(found))


if __name__ == "__main__":
    main()
