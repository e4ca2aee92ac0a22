"""Kernel modules: loaded, built in, to be had, or missing, by whatever a kernel tells."""

import gzip
import sys

import pytest

from testbed.links.netem import backend as netem
from testbed.machine import doctor, kernel_modules
from testbed.network.direction import Direction
from testbed.network.profiles import LinkProfile
from testbed.network.topology import plan

RELEASE = "6.1.0-test"
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="modules are Linux's")


@LINUX
def test_each_state_is_told_from_the_others(tmp_path):
    (tmp_path / "sys/module/sch_netem").mkdir(parents=True)
    folder = tmp_path / "lib/modules" / RELEASE
    folder.mkdir(parents=True)
    (folder / "modules.builtin").write_text("kernel/drivers/net/tun.ko\n")
    dependencies = "kernel/net/sched/act_mirred.ko.xz:\nkernel/drivers/net/nifb.ko.xz: a/ifb.c\n"
    (folder / "modules.dep").write_text(dependencies)
    assert kernel_modules.states(tmp_path, RELEASE) == {
        "sch_netem": "loaded",
        "ifb": "missing",
        "act_mirred": "not loaded",
        "tun": "built in",
    }


@LINUX
def test_a_kernel_without_modules_tells_by_its_configuration(tmp_path):
    (tmp_path / "proc").mkdir()
    text = "# A comment\n# CONFIG_NET_SCH_NETEM is not set\nCONFIG_IFB=y\nCONFIG_TUN=m\n"
    (tmp_path / "proc/config.gz").write_bytes(gzip.compress(text.encode()))
    states = kernel_modules.states(tmp_path, RELEASE)
    assert [name for name, state in states.items() if state == "built in"] == ["ifb"]


def test_doctor_says_how_to_get_what_is_missing(monkeypatch):
    states = {"sch_netem": "missing", "ifb": "loaded"}
    monkeypatch.setattr(kernel_modules, "states", lambda: states)
    (finding,) = doctor._modules()
    assert not finding.ok
    assert finding.found == "sch_netem missing, ifb loaded"
    assert "linux-modules-extra-$(uname -r)" in finding.cure
    assert "CONFIG_NET_SCH_NETEM=m" in finding.cure and "CONFIG_IFB" not in finding.cure
    monkeypatch.setattr(kernel_modules, "states", lambda: {**states, "sch_netem": "built in"})
    assert doctor._modules()[0].ok


def test_a_link_that_netem_cannot_hold_is_refused_before_anything_starts():
    fine = LinkProfile(name="fine", up=Direction(rate_kbit=1000))
    slow = LinkProfile(name="slow", down=Direction(rate_kbit=0.02))
    assert netem.unsupported(plan([fine])) is None
    assert netem.unsupported(plan([fine, slow])).startswith("profile 'slow': rate_kbit = 0.02: ")
