"""Classes of devices: operations a second and memory, with where each is from.

A class's rate is a peak in float32 that somebody states or measured, times the share of it that
training reaches. Only the first has a source. The share is assumed, and the largest uncertainty of
all that a device's time says: give a rate of your own where you have measured one.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from testbed.config_error import ConfigError, closest
from testbed.units import decimal, whole

ASSUMED_SHARE = 0.3
"""Of a peak, by training in float32 with batches of tens. Assumed for every class."""
MIN_GFLOPS, MAX_GFLOPS = 1e-6, 1e9


class DeviceClass(msgspec.Struct, frozen=True):
    name: str
    device: str
    peak_gflops: float
    """10^9 operations a second, float32, a multiplication with addition being two."""
    source: str
    memory_mb: float
    """10^6 bytes, that a training process can have of it."""
    memory_source: str

    @property
    def flops_per_s(self) -> float:
        """The rate that training on it is taken to reach."""
        return self.peak_gflops * ASSUMED_SHARE * 1e9


CLASSES = {
    each.name: each
    for each in (
        DeviceClass(
            "phone",
            "Snapdragon 8 Gen 2, Adreno 740 GPU",
            3_700.0,
            "sourced: 3.7 TFLOPS in float32 at 719 MHz, primua.com/adreno-740",
            4_000.0,
            "assumed: half of the 8 GB that phones with it have at least; Android gives no number, "
            "and ends what takes too much",
        ),
        DeviceClass(
            "pi",
            "Raspberry Pi 5, four Cortex-A76 of 2.4 GHz",
            60.5,
            "derived: 30.249 GFLOPS by High-Performance Linpack, which counts float64, twice that "
            "in float32; github.com/geerlingguy/top500-benchmark/issues/18",
            7_000.0,
            "assumed: of the model with 8 GB, all but 1 GB for the system",
        ),
        DeviceClass(
            "jetson",
            "NVIDIA Jetson Orin Nano 8 GB",
            1_280.0,
            "derived: 1024 CUDA cores of 625 MHz, two operations each; NVIDIA's data sheet",
            6_000.0,
            "assumed: of 8 GB that CPU and GPU share, all but 2 GB for the system and CUDA",
        ),
        DeviceClass(
            "laptop",
            "Apple M2, ten-core GPU",
            3_600.0,
            "sourced: 3.6 TFLOPS, Apple, June 2022",
            5_300.0,
            "assumed: two thirds of 8 GB, about what Metal recommends a GPU to use at most",
        ),
        DeviceClass(
            "server",
            "NVIDIA A100",
            19_500.0,
            "sourced: 19.5 TFLOPS in float32, NVIDIA's data sheet of the A100",
            40_000.0,
            "sourced: the smaller A100's own memory, NVIDIA's data sheet",
        ),
    )
}


def flops_per_s(name: str) -> float:
    """The rate of a class, or of a number of GFLOP/s as text.

    Raises:
        ConfigError: neither, or a number that is no rate.
    """
    if name in CLASSES:
        return CLASSES[name].flops_per_s
    if (gflops := decimal(name)) is None:
        near = closest(name, CLASSES) or "."
        raise ConfigError(
            f"device_class {name!r}: unknown{near} Known: {', '.join(CLASSES)}, or a number of "
            "GFLOP/s."
        )
    if not MIN_GFLOPS <= gflops <= MAX_GFLOPS:
        raise ConfigError(
            f"device_class {name!r}: GFLOP/s must be from {MIN_GFLOPS:g} to {MAX_GFLOPS:g}"
        )
    return gflops * 1e9


def memory_mb(name: str) -> float | None:
    """Memory that a training process can have on a class; None for a rate of one's own."""
    return CLASSES[name].memory_mb if name in CLASSES else None


def of_clients(text: str, clients: int) -> list[str]:
    """The class of each client: of one for all, or of a mix such as "phone:12,pi:8".

    Raises:
        ConfigError: naming the part and what would be right.
    """
    return mixed("device_class", text, clients, flops_per_s, "phone:12")


def mixed(
    field: str, text: str, clients: int, check: Callable[[str], object], example: str
) -> list[str]:
    """The name that each client has: one for all, or of a mix such as "phone:12,pi:8".

    ``check`` raises ConfigError where a name is none.

    Raises:
        ConfigError: naming the part and what would be right, such as ``example``.
    """
    if ":" not in text and "," not in text:
        check(text)
        return [text] * clients
    counts: list[tuple[str, int]] = []
    for part in text.split(","):
        name, colon, count = part.strip().partition(":")
        number = whole(count)
        if not colon or not number:
            what = "a class" if field == "device_class" else "cpu or cuda"
            raise ConfigError(
                f"{field} {text!r}: {part!r} must be {what} and how many clients, as {example}"
            )
        check(name)
        counts.append((name, number))
    total = sum(count for _, count in counts)
    if total != clients:
        raise ConfigError(f"{field} {text!r}: is for {total} clients, the run has {clients}")
    return [name for name, count in counts for _ in range(count)]
