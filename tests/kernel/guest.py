"""The program that runs inside: measures both backends and writes what it found as JSON."""

import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "net"), str(HERE.parent.parent)]

import gates  # noqa: E402
import modules  # noqa: E402

from testbed.links.netem import backend as netem  # noqa: E402
from testbed.links.userspace import backend as userspace  # noqa: E402

TRY_UNTIL_S = 200.0
"""No measure is repeated after this time."""


class Results:
    """Written after every step, so that a kernel that is killed has told what it knew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, Any] = {}
        self._began = time.monotonic()

    def take(
        self,
        backend: str,
        name: str,
        measure: Callable[[], Any],
        bare: Callable[[], Any] | None = None,
    ) -> None:
        """Measure; again where a gate is missed, since a busy host stops this kernel for a while.

        A link that is wrong is wrong every time, and on a kernel that is fit to carry it: ``bare``
        says after each miss what the same network does without any shape.
        """
        began, misses = time.monotonic(), []
        while len(misses) < gates.TRIES:
            try:
                found = {"found": measure()}
                problems = gates.problems(backend, name, found["found"])
            except Exception:
                found = {"error": traceback.format_exc()}
                problems = ["error"]
            if not problems:
                break
            misses.append({"problems": problems, "bare": bare() if bare else None})
            if time.monotonic() - self._began > TRY_UNTIL_S:
                break
        found["misses"] = misses
        found["seconds"] = round(time.monotonic() - began, 2)
        print(f"{backend} {name}: {found}", flush=True)
        self._found.setdefault(backend, {})[name] = found
        self._path.write_text(json.dumps(self._found))


def main(path: Path) -> None:
    results = Results(path)
    results.take("netem", "probe_without_netem", netem.probe)
    modules.load("sch_netem")
    results.take("netem", "probe_without_veth", netem.probe)
    modules.load("veth", "sch_ingress", "cls_u32", "act_mirred", "sch_htb", "tun")
    results.take("netem", "probe_without_ifb", netem.probe)
    modules.load("ifb")
    Path("/dev/net/tun").chmod(0o666)
    # Every link process is forked from here: without this each would read it anew.
    import life
    import measures
    import pyroute2  # noqa: F401

    results.take("netem", "probe", netem.probe)
    for backend in (netem, userspace):
        bench = measures.Bench(backend, path.parent)
        results.take(backend.name, "bare", bench.bare)
        for name in gates.GATES:
            measure = getattr(measures, name)
            results.take(backend.name, name, lambda m=measure, b=bench: m(b), bench.bare)
        results.take(backend.name, "failure", bench.network.failure)
        results.take(backend.name, "closing", bench.network.down)
        results.take(backend.name, "rootless", lambda b=backend: life.rootless(b))
    results.take("netem", "after_sigkill", lambda: life.after_sigkill(netem))
    results.take("netem", "mismatches", life.mismatches)
    results.take("netem", "aggregating_features", life.aggregating_features)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
