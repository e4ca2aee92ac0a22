"""The environment: what a caller has, and the token that nobody else is to get."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.processes.environment import TOKEN, for_others

ROOT = Path(__file__).parents[4]
LOOK = """
import os, subprocess, sys
from pathlib import Path
from testbed.processes import environment
shown = Path("/proc/self/environ")
told = [b"s3cret" in shown.read_bytes(), environment.take_token(), environment.take_token()]
reading, writing = os.pipe()
if os.fork() == 0:
    os.write(writing, b"%d" % (b"s3cret" in shown.read_bytes()))
    os._exit(0)
told += [int(os.read(reading, 1)), "s3cret" in subprocess.check_output(["env"], text=True)]
left = environment.original_environment()
print(told, "WIRETUNE_TOKEN" in left, left["BEFORE"], left["AFTER"], os.environ["AFTER"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux's /proc")
def test_the_token_is_taken_out_of_what_the_kernel_shows() -> None:
    environment = {"BEFORE": "1", TOKEN: "s3cret", "AFTER": "2", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", LOOK]
    said = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert said.stdout == "[True, 's3cret', '', 0, False] False 1 2 2\n"


def test_others_get_all_but_the_token() -> None:
    assert for_others({"A": "1", TOKEN: "s3cret"}) == {"A": "1"}
    assert TOKEN not in for_others({**os.environ, TOKEN: "s3cret"})
