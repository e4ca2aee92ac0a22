"""Runs with fewer rights than root has: what still works, and what is said where it does not."""

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
    assert "links: loopback (not netem: " in run.stdout
    assert "; not userspace: make a user namespace" in run.stdout
    assert run.summary["links"] == "loopback"
