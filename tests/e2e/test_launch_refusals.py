"""What cannot be run is refused: exit status 2, one line that helps, and nothing made."""

import contextlib
import os
import sys

import psutil
import pytest

CASES = {
    "profile": (["--profile=4gg"], ["'4gg'", "did you mean 4g"]),
    "profile in a mix": (["--profile=wifi:1,etherent:1"], ["'etherent'", "ethernet"]),
    "sum of a mix": (["--profile=4g:2,wifi:3", "--clients=4"], ["2 + 3 = 5", "clients = 4"]),
    "count of a mix": (["--profile=4g:x"], ["'4g:x'", "whole number"]),
    "own profile": (["--profile=/nowhere/my.toml"], ["/nowhere/my.toml"]),
    "method": (["--method=fedpft"], ["'fedpft'", "did you mean fedpeft"]),
    "model": (["--model=vit-glyph"], ["'vit-glyph'", "did you mean vit-glyphs"]),
    "dataset": (["--dataset=digit"], ["'digit'", "did you mean digits"]),
    "option": (["--set=rnk=4"], ["fedpeft", "rnk", "rank"]),
    "option without a value": (["--set=rank"], ["'rank'", "OPTION=VALUE"]),
    "value of an option": (["--set=rank=0"], ["rank = 0", ">= 1"]),
    "flag": (["--metod=fedavg"], ["--metod", "--method"]),
    "links": (["--links=loopbak"], ["links = 'loopbak'", "loopback"]),
    "transport": (["--transport=glo"], ["transport = 'glo'", "gloo"]),
    "links of an all-reduce": (
        ["--transport=gloo", "--links=loopback"],
        ["transport = 'gloo'", "namespaces"],
    ),
    "method of an all-reduce": (
        ["--transport=gloo", "--method=split"],
        ["method split", "fedavg, fedpeft"],
    ),
    "congestion control": (["--congestion=newest"], ["congestion = 'newest'"]),
    "partition": (["--partition=idd"], ["partition = 'idd'", "iid"]),
    "classes of a client": (
        ["--partition=pathological", "--classes-per-client=11"],
        ["= 11", "must be 1 to 10"],
    ),
    "stage": (["--stage=int9"], ["stage = 'int9'", "did you mean int8"]),
    "option of a stage": (
        ["--stage=topk:share=1"],
        ["stage topk", "share = 1", "feedback, decay, k"],
    ),
    "share of a stage": (["--stage-down=topk:k=1.5"], ["stage topk", "k = 1.5", "<= 1.0"]),
    "order of stages": (["--stage=deflate", "--stage=int8"], ["'int8' after 'deflate'", "round"]),
    "rank of a stage beyond every matrix": (
        ["--stage=powersgd:rank=100000"],
        ["stage = ['powersgd:rank=100000']", "rank = 100000", "take at most 4"],
    ),
    "rank beyond every layer": (["--set=rank=97"], ["rank = 97", "96 x 96", "at most 96"]),
    "rank of a variant without one": (
        ["--set=variant=head", "--set=rank=4"],
        ["rank = 4 goes with variant = 'lora' or 'ffalora' alone", "variant = 'head'"],
    ),
    "variant": (["--set=variant=lorra"], ["variant = 'lorra'", "lora"]),
    "no clients": (["--clients=0"], ["clients = 0", ">= 1"]),
    "clients beyond the data": (["--clients=180"], ["clients = 180", "1437", "179"]),
    "no images to evaluate": (["--eval-samples=0"], ["eval_samples = 0", ">= 1"]),
    "more images to evaluate than there are": (
        ["--eval-samples=361"],
        ["eval_samples = 361", "at most 360"],
    ),
    "other images to evaluate": (
        ["--eval-on=train"],
        ["eval_on = 'train'", "test, validation"],
    ),
    "images to tune on where nothing is learnt": (
        ["--eval-on=validation", "--compute=modelled"],
        ["eval_on = 'validation'", "nothing is learnt"],
    ),
    "images to evaluate where nothing is learnt": (
        ["--eval-samples=9", "--compute=modelled"],
        ["eval_samples = 9", "nothing is learnt"],
    ),
    "own test samples where clients have no models of their own": (
        ["--local-test=0.2"],
        ["local_test = 0.2", "dispfl, fedkd, fedmd, kdfft"],
    ),
    "no rounds": (["--rounds=0"], ["rounds = 0", ">= 1"]),
    "rounds that are no number": (["--rounds=many"], ["--rounds", "many"]),
    "negative seed": (["--seed=-1"], ["seed = -1", ">= 0"]),
    "time limit": (["--time-limit=0"], ["time_limit_s = 0", "> 0"]),
    "alpha": (["--alpha=nan"], ["alpha = nan"]),
    "alpha of no Dirichlet": (
        ["--partition=iid", "--alpha=0.1"],
        ["alpha = 0.1", "partition = 'dirichlet'", "'iid'"],
    ),
    "classes a client by Dirichlet": (
        ["--classes-per-client=3"],
        ["classes_per_client = 3", "partition = 'pathological'"],
    ),
    "compute": (["--compute=modeled"], ["compute = 'modeled'", "modelled"]),
    "device class": (
        ["--compute=modelled", "--device-class=fone"],
        ["device_class 'fone'", "did you mean phone"],
    ),
    "accelerator": (["--accelerator=cudda"], ["accelerator 'cudda'", "did you mean cuda"]),
    "accelerator of other clients": (
        ["--accelerator=cuda:3,cpu:4"],
        ["accelerator 'cuda:3,cpu:4'", "is for 7 clients, the run has 20"],
    ),
    "accelerator where compute is modelled": (
        ["--accelerator=cuda", "--compute=modelled"],
        ["accelerator = 'cuda'", "compute = 'modelled'"],
    ),
    "device classes of other clients": (
        ["--compute=modelled", "--device-class=phone:3,pi:4"],
        ["is for 7 clients, the run has 20"],
    ),
    "dilation": (["--dilation=slow"], ["dilation = 'slow'", "from 1 to 10000, elastic or auto"]),
    "dilation of less": (
        ["--dilation=0.5"],
        ["dilation = 0.5", "from 1 to 10000, elastic or auto"],
    ),
    "memory that no client trains in": (
        ["--client-memory-mb=1e-9"],
        ["client_memory_mb = 1e-09", "no client trains in less than 3 MB"],
    ),
    "memory of modelled clients": (
        ["--compute=modelled", "--client-memory-mb=50"],
        ["client_memory_mb = 50", "take no memory"],
    ),
    "results nowhere": (["--out="], ["out = ''", "must be some text"]),
    "results in a file": (["--out=cli.py"], ["--out cli.py", "name a folder you can write"]),
    "configuration that is not there": (["--config=/nowhere.toml"], ["/nowhere.toml"]),
    "configuration that is no TOML": (["--config=cli.py"], ["cli.py", "TOML"]),
}
SMALL_DISK = """
import ctypes, os, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, MS_REC_PRIVATE = 0x20000, 0x44000
folder, *command = sys.argv[1:]
assert libc.unshare(CLONE_NEWNS) == 0
assert libc.mount(b"none", b"/", None, MS_REC_PRIVATE, None) == 0
assert libc.mount(b"none", folder.encode(), b"tmpfs", 0, b"size=1m") == 0
status = subprocess.run(command).returncode
print(os.listdir(folder))
sys.exit(status)
"""


def in_session(session: int) -> list[int]:
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            if os.getsid(pid) == session and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
    return found


@pytest.mark.parametrize("case", list(CASES))
def test_a_wrong_word_is_refused_with_the_right_one(launch, case):
    flags, words = CASES[case]
    run = launch(*flags)
    assert run.finish() == 2, run.describe()
    assert "Traceback" not in run.stderr
    assert run.stdout == ""
    assert in_session(run.pid) == []
    assert not run.out.exists()
    assert [word for word in words if word not in run.stderr] == [], run.stderr
    if case not in ("flag", "rounds that are no number"):  # Those are click's own.
        assert run.stderr.startswith("error: ")
        assert run.stderr.count("\n") == 1


def test_a_command_of_its_own_is_refused_alike(launch):
    run = launch("--profile=4gg", anew=True)
    assert run.finish() == 2, run.describe()
    assert run.stderr.startswith("error: ") and "did you mean 4g" in run.stderr
    assert in_session(run.pid) == [] and not run.out.exists()


def test_a_full_disk_is_refused(root, launch, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    prefix = [sys.executable, "-c", SMALL_DISK, str(disk)]
    run = launch(f"--out={disk / 'results'}", "--clients=1", prefix=prefix)
    assert run.finish() == 2, run.describe()
    assert f"error: --out {disk / 'results'}: " in run.stderr
    assert "MB free on that disk, a run needs" in run.stderr
    assert "Traceback" not in run.stderr
    # What the disk held at the end.
    assert run.stdout == "[]\n"
