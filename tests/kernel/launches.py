"""The program that runs inside for whole launches: the command line as a user has it, on netem.

All share one boot. Each run's folder lies in memory while it goes on and is copied out after that.
"""

import contextlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(ROOT)]

import modules  # noqa: E402
import warm  # noqa: E402

LIMIT_S = 240.0
"""Of one launch."""
POLL_S = 0.05
BASE = (
    *("--profile=3g", "--clients=2", "--rounds=2", "--train-samples=100", "--eval-samples=60"),
    "--plain",
)
WITHOUT_RIGHTS = ("setpriv", "--bounding-set", "-all,+setfcap")
"""Without this one the kernel lets nobody map root into a user namespace."""
PORT = 8000
SIZE = 50_000
"""Bytes of a file that every client of the programs fetches."""
SCHEDULE = """
[[schedule]]
at_s = 1
clients = [2]
outage_s = 3
"""


class Launch:
    """One ``cli.py launch``, or another command, its folder in ``out``."""

    def __init__(
        self, out: Path, *flags: str, prefix: tuple[str, ...] = (), command: str = "launch"
    ) -> None:
        self._out = out
        self._deadline = time.monotonic() + LIMIT_S
        where = f"--out={out}" if not out.exists() else f"--resume={next(out.iterdir())}"
        start = warm.Popen if command == "launch" else subprocess.Popen
        self.process = start(
            [*prefix, sys.executable, str(ROOT / "cli.py"), command, where, *flags],
            stdin=subprocess.DEVNULL,
        )

    def wait_for(self, kind: str, **fields: Any) -> None:
        """Until that event is in the record, or it has ended without."""
        wanted = {"event": kind, **fields}
        while self.process.poll() is None and time.monotonic() < self._deadline:
            if any(wanted.items() <= event.items() for event in self._events()):
                break
            time.sleep(POLL_S)

    def _events(self) -> list[dict[str, Any]]:
        found = []
        for file in self._out.glob("*/events.jsonl"):
            for line in file.read_text().splitlines():
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line))
        return found

    def finish(self) -> int:
        return self.process.wait(max(0.0, self._deadline - time.monotonic()))


def in_tcs_words(run: Path) -> dict[str, Any]:
    """The qdiscs of a run that goes on, and what its commands for ``tc`` make elsewhere."""
    words = [sys.executable, str(ROOT / "cli.py"), "links", str(run), "--json"]
    said = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    commands = [line for lines in said["commands"].values() for line in lines]
    devices = dict.fromkeys(re.findall(r"\b(?:up|down|link)\d+\b", "\n".join(commands)))
    made = [f"ip link add {device} numtxqueues 1 type ifb" for device in devices]
    script = "\n".join(["set -e", *made, *commands, "tc -j qdisc show"])
    return {
        "enter": sorted(said["enter"]),
        "had": qdiscs([*said["enter"]["links"].split(), "tc", "-j", "qdisc", "show"]),
        "made": qdiscs(["unshare", "-n", "sh", "-c", script]),
        "client-1": subprocess.run(
            [*said["enter"]["client-1"].split(), "ip", "-br", "address"],
            capture_output=True,
            text=True,
        ).stdout,
    }


def qdiscs(command: list[str]) -> Any:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return done.stderr
    found = [
        {key: entry.get(key) for key in ("dev", "kind", "handle", "options")}
        for entry in json.loads(done.stdout)
        if entry["kind"] != "noqueue" and re.fullmatch(r"(up|down|link)\d+", entry["dev"])
    ]
    return sorted(found, key=lambda entry: (entry["dev"], entry["kind"]))


def main(results: Path) -> None:
    modules.load("sch_netem", "veth", "sch_ingress", "cls_u32", "act_mirred", "sch_htb", "tun")
    modules.load("ifb")
    Path("/dev/net/tun").chmod(0o666)
    memory = results.with_name("memory")
    memory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "runs", str(memory)], check=True)
    (memory / "schedule.toml").write_text(SCHEDULE)
    told: dict[str, Any] = {}

    def done(name: str, began_s: float, *codes: int) -> None:
        told[name] = {"exit": codes, "seconds": round(time.monotonic() - began_s, 1)}
        print(name, told[name], flush=True)
        shutil.copytree(memory / name, results / name)
        (results / "told.json").write_text(json.dumps(told))

    began_s = time.monotonic()
    # On one core an elastic clock would take userspace links for two clients.
    flags = ("--pcap", f"--schedule={memory / 'schedule.toml'}", "--no-calibrate", "--dilation=1")
    done("whole", began_s, Launch(memory / "whole", *BASE, *flags).finish())

    began_s = time.monotonic()
    flags = ("--no-calibrate", "--links=netem")
    first = Launch(memory / "killed", *BASE, *flags, prefix=WITHOUT_RIGHTS)
    first.wait_for("joined")
    told["tc"] = in_tcs_words(next((memory / "killed").iterdir()))
    first.wait_for("wire", round=1)
    first.process.kill()
    codes = [first.finish(), Launch(memory / "killed", "--plain", prefix=WITHOUT_RIGHTS).finish()]
    done("killed", began_s, *codes)

    began_s = time.monotonic()
    flags = ("--links=netem", "--transport=gloo", "--dilation=4", "--strict")
    done("reduced", began_s, Launch(memory / "reduced", *BASE, *flags).finish())

    began_s = time.monotonic()
    (memory / "file").write_bytes(bytes(SIZE))
    python = f"{shlex.quote(sys.executable)} -S"
    fetch = f"import urllib.request as r; print(len(r.urlopen('http://server:{PORT}/file').read()))"
    flags = (
        *("--profile=3g", "--clients=2", f"--wait-port={PORT}", "--until=clients", "--pcap"),
        f"--server=cd {memory}; exec {python} -m http.server {PORT}",
        f'--client={python} -c "{fetch}"',
    )
    done("programs", began_s, Launch(memory / "programs", *flags, command="exec").finish())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
