"""What is said when User-Mode Linux is not there, or does not come to its end."""

import sys

import pytest
import uml


def test_what_is_missing_is_named_with_the_command_that_gets_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert str(uml.missing()).startswith("apt-get install user-mode-linux")


@pytest.mark.skipif(uml.missing() is not None, reason=str(uml.missing()))
@pytest.mark.parametrize(
    ("program", "limit_s", "text"),
    [
        ("raise SystemExit('no such luck')", 60, r"failed after .*\n(.*\n)*no such luck"),
        ("import time; time.sleep(60)", 5, r"still ran after 5 s; .*\n(.*\n)*Run /.*init\.sh"),
    ],
)
def test_a_run_that_does_not_end_well_shows_the_consoles_end(tmp_path, program, limit_s, text):
    path = tmp_path / "program.py"
    path.write_text(program)
    with pytest.raises(uml.BootError, match=text):
        uml.run(path, [], tmp_path, limit_s)


@pytest.mark.skipif(uml.missing() is not None, reason=str(uml.missing()))
def test_the_program_has_this_interpreter_and_its_packages(tmp_path):
    told = tmp_path / "told"
    path = tmp_path / "program.py"
    path.write_text(f"import msgspec, sys; open({str(told)!r}, 'w').write(sys.executable)")
    uml.run(path, [], tmp_path, 60)
    assert told.read_text() == sys.executable
