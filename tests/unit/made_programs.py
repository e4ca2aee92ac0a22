"""Events of a run of programs made up: a server and clients, of which some may fail."""

from typing import Any

from made_run import Event, _at, _certified

RATE = 100_000
"""Bytes a second that each client receives while it runs."""
SECONDS = 4


def events(
    clients: int = 2,
    *,
    profile: str = "4g",
    client: str = "fetch",
    codes: dict[str, int] | None = None,
    env: dict[str, str] | None = None,
) -> list[Event]:
    """``codes``: exit statuses of nodes that do not end with 0; the server is asked to end."""
    names = [f"client-{n}" for n in range(1, clients + 1)]
    failed = {"server": 143, **dict.fromkeys(names, 0)} | (codes or {})
    config = {"options": {}, "env": env or {}}
    run = _at(
        *(0, "supervisor", "run"),
        run_id="20261121-100000-exec",
        command="cli.py exec",
        method="exec",
        profile=profile,
        client_names=names,
        client_profiles=[profile] * clients,
        programs={"server": "serve", **dict.fromkeys(names, client)},
        config=config,
        environment={"cores": 2, "memory_mb": 8000, "kernel": "Linux", "python": "3.11"},
    )
    checked = _certified(names)
    checked["fidelity"] = {"verdict": "pass", "reason": "all hold", "checks": []}
    found = [run, _at(0.1, "supervisor", "links", facts={"backend": "userspace"}), checked]
    for second in range(SECONDS + 1):
        link = [[second, 1000 * second, 0, 0], [second, RATE * second, 0, 0]]
        counters = [[[0, 0, 0, 0]] * 2, *[link] * clients]
        found.append(_at(1.0 + second, "supervisor", "wire", round=None, counters=counters))
    for node, code in failed.items():
        usage = {"pid": 0, "private_mb": 1.0, "peak_private_mb": 2.5}
        usage |= {"cpu_s": 0.5, "run_delay_s": 0.0}
        found.append(_at(6, node, "usage", **usage))
        how = "killed by SIGTERM" if code == 143 else f"exited with {code}"
        ended: dict[str, Any] = {"code": code, "how": how, "stopped": code == 143}
        found.append(_at(6, node, "exited", seconds=float(SECONDS), **ended))
        flow = {"peer": "10.0.0.1", "port": 80, "connections": 1, "sent": 900, "resent_segments": 3}
        flows = [] if node == "server" else [{**flow, "received": RATE * SECONDS}]
        found.append(_at(6, node, "carried", flows=flows))
    bad = [f"{node} exited with {code}" for node, code in failed.items() if code not in (0, 143)]
    status = {"status": "failed", "reason": bad[0]} if bad else {"status": "ok", "reason": ""}
    return [*found, _at(7, "supervisor", "closed", **status, links={})]
