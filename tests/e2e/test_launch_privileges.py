"""Runs with fewer rights than root has: what still works, and what is said where it does not."""

import signal
from pathlib import Path

from running import FAST

PAIR = ("--profile=ethernet", "--clients=2", "--rounds=1", *FAST)


def test_userspace_links_need_no_root(userspace_links, launch, without_capabilities):
    run = launch("--links=userspace", *PAIR, prefix=without_capabilities)
    assert run.finish() == 0, run.describe()
    summary = run.summary
    assert (summary["status"], summary["links"]) == ("ok", "userspace")
    assert summary["link_facts"]["rootless"] is True
    payload = 2 * 4 * summary["trainable_parameters"]
    assert summary["bytes"]["payload"] == {"up": payload, "down": payload}
    # Also where the host allows it to root alone.
    assert summary["connections"] == {run.events("run")[0]["config"]["congestion"]: 4}
    assert summary["rounds"][0]["clients_ok"] == 2
    confined(run)


def test_links_that_cannot_work_are_refused(launch, without_user_namespaces):
    run = launch("--links=userspace", *PAIR, prefix=without_user_namespaces)
    assert run.finish() == 2, run.describe()
    assert run.stderr.startswith("error: --links=userspace does not work here: make a user names")
    assert "user.max_user_namespaces" in run.stderr
    assert run.stdout == ""
    assert not run.out.exists()


def test_auto_takes_the_links_that_work_and_says_why(launch, without_user_namespaces):
    run = launch(*PAIR, "--dilation=1", prefix=without_user_namespaces)
    assert run.finish() == 0, run.describe()
    assert "links: loopback (not " in run.stdout
    # The first of them where there are cores enough, else the second.
    assert "not netem: " in run.stdout
    assert "not userspace: make a user namespace" in run.stdout
    assert run.summary["links"] == "loopback"


def confined(run) -> None:
    """Holds every node of a finished run to what it said, and its processes to that."""
    said = run.events("confined")
    assert [each["node"] for each in said].count("server") == 1 and len(said) == 3
    for each in said:
        assert (each["capabilities"], each["no_new_privileges"]) == (0, True)
        assert each["landlock"] or any("landlock" in reason for reason in each["missing"])
    assert sum(run.summary["confined"].values()) == 3
    assert run.summary["link_facts"]["privileges"].startswith("no capability, no new privileges")


def held_by_the_kernel(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def test_nodes_of_root_hold_no_capability(root, best_links, launch):
    run = launch(best_links, "--profile=ethernet", "--clients=2", "--rounds=1000", *FAST)
    run.wait_for("round", round=1)
    for node in ("server", "client-1", "client-2"):
        held = held_by_the_kernel(run.pid_of(node))
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(held[name], 16) == 0, (node, name)
        assert (held["NoNewPrivs"], held["Seccomp"]) == ("1", "2")
    holders = [each for each in run.tree() if int(held_by_the_kernel(each.pid)["CapEff"], 16)]
    # The command itself and the zygote, which forks nodes into their namespaces.
    assert len(holders) == 2
    run.process.send_signal(signal.SIGINT)
    assert run.finish() == 130, run.describe()
    confined(run)


def test_loopback_links_as_root_and_without(root, launch, without_capabilities):
    for prefix in ((), without_capabilities):
        run = launch("--links=loopback", *PAIR, prefix=prefix)
        assert run.finish() == 0, run.describe()
        confined(run)


def test_results_of_sudo_are_the_callers(root, best_links, launch, tmp_path):
    """Its nodes, which are the caller, keep their states below folders that it may not enter."""
    tmp_path.chmod(0o700)
    environment = ["env", "SUDO_UID=65534", "SUDO_GID=65533"]
    flags = (best_links, "--profile=ethernet", "--clients=2", *FAST)
    run = launch(*flags, "--rounds=6", prefix=environment)
    run.wait_for("saved", node="client-1")
    assert held_by_the_kernel(run.pid_of("client-1"))["Uid"].split() == ["65534"] * 4
    run.process.kill()
    run.finish()
    assert run.events("unsaved") == []
    again = launch(resume=run.folder, prefix=environment)
    assert again.finish() == 0, again.describe()
    found = {path: path.lstat() for path in (again.folder, *again.folder.rglob("*"))}
    assert len(found) > 5
    assert {(each.st_uid, each.st_gid) for each in found.values()} == {(65534, 65533)}
