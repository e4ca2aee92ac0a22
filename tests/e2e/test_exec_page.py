"""The first examples of docs/exec.md, as the page has them, in a folder with a file called FILE."""

import re
import shlex
import shutil

import pytest
from running import ROOT

DOCS = ROOT / "docs"
PAGE = (DOCS / "exec.md").read_text()
SIZE = 100_000

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "FILE").write_bytes(bytes(SIZE))
    return tmp_path


def test_folders_of_nodes_may_have_spaces_in_every_example():
    lines = [line for page in DOCS.glob("*.md") for line in page.read_text().splitlines()]
    told = [line for line in lines if line.startswith("    ") and "$WIRETUNE_DIR" in line]
    # Within quotes, or the value of a variable, a shell splits nothing.
    assert len(told) >= 3
    assert [line for line in told if not re.search(r"[\"=]\$WIRETUNE_DIR", line)] == []


def fetched(run):
    return [row["bytes"]["wire"]["down"] > SIZE for row in run.summary["per_client"]]


def test_curl_fetches_a_file_in_one_command(launch, userspace_links, folder):
    command = re.search(r"^    python cli\.py exec ((?:.*\\\n)*.*)$", PAGE, re.M)
    words = shlex.split(command[1].replace("\\\n", ""))
    run = launch(*words, "--no-calibrate", command="exec", cwd=folder)
    assert run.finish() == 0, run.describe()
    assert len(re.findall(r"^client-[1-4]: 200 [0-9.]+$", run.stdout, re.M)) == 4
    assert fetched(run) == 4 * [True]


def test_curl_fetches_a_file_by_tables_of_nodes(launch, userspace_links, folder):
    (folder / "net.toml").write_text(PAGE.split("```toml\n")[1].partition("```")[0])
    run = launch("-f", "net.toml", "--no-calibrate", command="exec", cwd=folder)
    assert run.finish() == 0, run.describe()
    assert fetched(run) == 4 * [True]
    found = [run.folder / "nodes" / f"client-{number}" / "FILE" for number in range(1, 5)]
    assert [file.stat().st_size for file in found] == 4 * [SIZE]
    assert [row["profile"] for row in run.summary["per_client"]] == ["4g", "4g", "4g", "3g"]
