"""No number of the system's in words for people, held by reading what is told of its errors."""

import ast
from collections.abc import Iterator

from sources import ROOT, SOURCES

from testbed.config_error import ConfigError, in_words, known_or_named


def told_with_its_number(tree: ast.AST) -> Iterator[int]:
    """Lines on which a handler of the system's errors tells one as Python words it."""
    for handler in ast.walk(tree):
        if not (isinstance(handler, ast.ExceptHandler) and handler.name and handler.type):
            continue
        if "OSError" not in {n.id for n in ast.walk(handler.type) if isinstance(n, ast.Name)}:
            continue
        second_to = {
            part
            for choice in ast.walk(handler)
            if isinstance(choice, ast.BoolOp | ast.IfExp)
            for part in ast.walk(choice)
            if "strerror" in ast.unparse(choice)
        }
        for part in ast.walk(handler):
            text = None
            if isinstance(part, ast.FormattedValue):
                text = part.value
            elif isinstance(part, ast.Call) and ast.unparse(part.func) == "str" and part.args:
                text = part.args[0]
            if isinstance(text, ast.Name) and text.id == handler.name and part not in second_to:
                yield part.lineno


def test_an_error_of_the_system_is_told_without_its_number() -> None:
    texts = {name: (ROOT / name).read_text() for name in SOURCES}
    found = {
        name: lines
        for name, text in texts.items()
        if "OSError" in text and (lines := list(told_with_its_number(ast.parse(text))))
    }
    assert not found, "config_error.in_words leaves it out"


def test_the_law_finds_what_it_forbids() -> None:
    told = "try: f()\nexcept (OSError, ValueError) as e:\n    raise X(f'no: {%s}')"
    for words, expected in (("e", [3]), ("str(e)", [3]), ("in_words(e)", []), ("e.errno", [])):
        assert list(told_with_its_number(ast.parse(told % words))) == expected
    assert not list(told_with_its_number(ast.parse(told % "e.strerror or str(e)")))


def test_words_of_an_error_keep_all_but_its_number() -> None:
    assert in_words(OSError(27, "has more than 1 MB", "/r/x")) == "has more than 1 MB: '/r/x'"
    assert in_words(ValueError("[Errno] 2")) == "[Errno] 2"
    assert known_or_named(OSError(27, "File too large")) == "File too large"
    assert known_or_named(ConfigError("RUN x: no")) == "RUN x: no"
    assert known_or_named(KeyError("x")) == "KeyError: 'x'"
