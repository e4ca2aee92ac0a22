"""Commands that the documents show, as far as parsing: every option of theirs is there."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import cli

ROOT = Path(__file__).parents[4]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
SHOWN = re.compile(r"^ +(?:sudo )?(?:python cli\.py|wiretune) ((?:.*\\\n)*.*)", re.M)


def commands() -> Iterator[tuple[str, list[str]]]:
    for page in PAGES:
        for found in SHOWN.findall(page.read_text()):
            words = shlex.split(found.replace("\\\n", " "), comments=True)
            yield page.name, words[: words.index(">")] if ">" in words else words


def check(words: list[str], group: click.Group, parent: click.Context) -> None:
    """Raises where the words do not fit the command that the first of them names."""
    command = group.get_command(parent, words[0])
    assert command is not None, words[0]
    if isinstance(command, click.Group) and len(words) > 1:
        check(words[1:], command, click.Context(command, parent=parent))
    else:
        command.make_context(words[0], words[1:], parent=parent)


@pytest.mark.parametrize(("page", "words"), [*commands()])
def test_a_documented_command_can_be_typed(page: str, words: list[str]) -> None:
    try:
        check(words, cli.main, click.Context(cli.main))
    except click.exceptions.Exit as end:  # --help
        assert end.exit_code == 0
