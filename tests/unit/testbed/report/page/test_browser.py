"""The pages in a real browser: they open from disk without an error, and fit a phone."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import made_programs
import pytest
from made_run import HOSTILE, events, folder

from testbed.report.compare import comparison, comparison_page, program_comparison
from testbed.report.page import run_page

REQUIRE = "WIRETUNE_REQUIRE_CHROMIUM"
NAMES = ("chromium", "google-chrome", "chromium-browser")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--enable-logging=stderr", "--dump-dom", "--hide-scrollbars", "--virtual-time-budget=3000"),
)
LIMIT_S = 60.0
PHONE_PX = 360

# The page's frame has this document's origin, so that its widths can be read.
_FRAME = """<!DOCTYPE html><body><script>
for (const [name, page] of Object.entries(PAGES)) {
  const frame = document.createElement("iframe");
  frame.style = "width: WIDTHpx; height: 800px; border: 0";
  frame.onload = () => {
    const root = frame.contentDocument.documentElement;
    const found = document.createElement("p");
    const scheme = getComputedStyle(frame.contentDocument.body).backgroundColor;
    found.textContent = `${name} is ${root.scrollWidth} in ${root.clientWidth} on ${scheme}`;
    document.body.append(found);
  };
  frame.srcdoc = page;
  document.body.append(frame);
}
</script></body>"""


@pytest.fixture(scope="module")
def chromium() -> str:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        reason = "needs a browser: apt-get install chromium"
        if os.environ.get(REQUIRE) == "1":
            pytest.fail(f"{reason} ({REQUIRE} is set)")
        pytest.skip(reason)
    return found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of a hostile run and a long one, and comparisons of runs and of programs."""
    place = tmp_path_factory.mktemp("pages")
    long = {"a_very_long_option_" * 3: HOSTILE * 5}
    runs = [
        folder(place / "a", events(profile=HOSTILE, method=HOSTILE * 4, options=long)),
        folder(place / "b", events(clients=40, rounds=30)),
        folder(place / "c", events(method="sfprompt", wire=90_000_000)),
    ]
    rows, target = comparison.compare(comparison.runs(runs), None)
    compared = place / "comparison.html"
    compared.write_text(comparison_page.page(rows, target))
    ran = [
        folder(place / name, made_programs.events(client=HOSTILE * times))
        for name, times in (("d", 5), ("e", 9))
    ]
    programs = place / "programs.html"
    others = program_comparison.ran(comparison.runs(ran))
    programs.write_text(comparison_page.page([], None, (), (), others))
    return {
        "hostile": run_page.write(runs[0]),
        "long": run_page.write(runs[1]),
        "many": compared,
        "programs": programs,
    }


def opened(chromium: str, path: Path, tmp_path: Path, *flags: str) -> str:
    """The document as it stands once loaded; fails where the console has a word to say."""
    command = [chromium, *FLAGS, *flags, f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    return done.stdout


@pytest.mark.thorough
def test_a_report_opens_without_an_error_and_has_every_section(
    chromium: str, pages: dict[str, Path], tmp_path: Path
) -> None:
    shown = opened(chromium, pages["hostile"], tmp_path)
    wanted = ["accuracy", "timeline", "bytes", "links", "failures", "host", "run", "repeat"]
    assert re.findall('<section id="([a-z]+)">', shown) == wanted
    assert "<script" not in shown and shown.count('role="img"') >= 6
    assert "</main>" in shown


@pytest.mark.thorough
@pytest.mark.parametrize("dark", [False, True])
def test_no_page_is_wider_than_a_phone_and_each_follows_the_scheme(
    chromium: str, pages: dict[str, Path], tmp_path: Path, dark: bool
) -> None:
    texts = {name: path.read_text() for name, path in pages.items()}
    script = json.dumps(texts).replace("<", "\\u003c")
    wrapper = tmp_path / "phone.html"
    wrapper.write_text(_FRAME.replace("PAGES", script).replace("WIDTH", str(PHONE_PX)))
    shown = opened(chromium, wrapper, tmp_path, f"--blink-settings=preferredColorScheme={1 - dark}")
    found = re.findall(r"<p>(\w+) is (\d+) in (\d+) on (rgb\([\d, ]+\))</p>", shown)
    paper = "rgb(20, 23, 27)" if dark else "rgb(251, 251, 250)"
    widths = (str(PHONE_PX),) * 2
    assert sorted(found) == sorted((name, *widths, paper) for name in pages)
