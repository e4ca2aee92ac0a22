"""Places of networks: whose they may be, who has one, and what a killed keeper leaves."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.commands import completion
from testbed.config_error import ConfigError
from testbed.library import places

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="networks stay on Linux alone")


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / ("long" * 30)
    folder.mkdir(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    monkeypatch.delenv(places.VARIABLE, raising=False)
    yield folder


def test_a_place_is_its_users_alone(runtime: Path) -> None:
    assert places.home() == runtime / "wiretune"
    place = places.take("lab")
    for folder in (places.home(), place.folder):
        assert folder.stat().st_mode & 0o777 == 0o700
    place.close()


@pytest.mark.parametrize("wrong", ["open", "link", "file"])
def test_a_home_that_others_may_enter_is_refused(runtime: Path, wrong: str) -> None:
    home = runtime / "wiretune"
    if wrong == "open":
        home.mkdir()
        home.chmod(0o755)
    elif wrong == "link":
        home.symlink_to(runtime)
    else:
        home.touch()
    with pytest.raises(ConfigError, match="wiretune"):
        places.take("lab")


def test_a_runtime_folder_that_is_open_or_none_is_not_taken(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    monkeypatch.setattr(Path, "mkdir", lambda self, *_, **__: made.append(self))
    monkeypatch.setattr(places, "_is_private", lambda folder: folder != runtime)
    for text in (str(runtime), "", "relative"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", text)
        assert places.home() == Path(f"/tmp/wiretune-{os.geteuid()}")
    assert len(made) == 3


def test_a_name_is_taken_once() -> None:
    first = places.take("lab")
    with pytest.raises(ConfigError, match="name = 'lab': a network of that name is up"):
        places.take("lab")
    assert [folder.name for folder in places.up()] == ["lab"]
    first.remove()
    assert places.up() == []
    places.take("lab").remove()


def test_names_are_found_where_none_is_said() -> None:
    found = [places.take(None) for _ in range(3)]
    assert [place.name for place in found] == ["net-1", "net-2", "net-3"]
    found[1].remove()
    again = places.take(None)
    assert again.name == "net-2"
    for place in (found[0], again, found[2]):
        place.remove()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", "x" * 41, "a b"])
def test_what_can_be_no_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="must be letters, digits"):
        places.take(name)


KEEPER = """
import os, signal, sys
from testbed.library import places
place = places.take("lab")
listener = place.listen()
print("up", flush=True)
signal.pause()
"""


def test_what_a_killed_keeper_leaves_is_cleared() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])}
    with subprocess.Popen(
        [sys.executable, "-c", KEEPER], stdout=subprocess.PIPE, env=environment
    ) as keeper:
        assert keeper.stdout is not None
        keeper.stdout.readline()
        (folder,) = places.up()
        places.connect(folder).close()
        keeper.kill()
    assert (folder / places.SOCKET).exists()
    with pytest.raises(ConfigError, match="network 'lab': cannot be reached"):
        places.connect(folder)
    assert places.up() == []
    assert not folder.exists()
    with pytest.raises(ConfigError, match="network 'lab': is not up"):
        places.connect(folder)


def test_what_a_killed_keeper_leaves_is_another_networks_place() -> None:
    left = places.take("lab")
    left.listen().close()
    left.close()
    again = places.take("lab")
    assert not (again.folder / places.SOCKET).exists()
    again.remove()


def test_a_network_is_found_by_name_by_folder_or_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no network is up; `wiretune up"):
        places.find(None)
    lab = places.take("lab")
    assert places.find(None) == places.find("lab") == places.find(str(lab.folder)) == lab.folder
    with pytest.raises(ConfigError, match="network 'lob': is not up: did you mean lab"):
        places.find("lob")
    other = places.take("other")
    with pytest.raises(ConfigError, match="several networks are up, lab, other: say which"):
        places.find(None)
    monkeypatch.setenv(places.VARIABLE, str(other.folder))
    assert places.find(None) == other.folder
    assert places.find("lab") == lab.folder
    lab.remove()
    other.remove()


def test_a_folder_that_is_not_this_users_alone_has_no_network(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o755)
    with pytest.raises(ConfigError, match="is not yours alone"):
        places.connect(folder)


@pytest.mark.parametrize("kind", ["file", "link", "link to nothing", "pipe"])
def test_what_is_no_folder_where_a_networks_would_be_is_refused_with_its_name(
    runtime: Path, kind: str
) -> None:
    for name in ("lab", "net-1"):
        path = places.home() / name
        if kind == "file":
            path.touch()
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to(runtime if kind == "link" else "nothing")
    assert places.up() == []
    for name in ("lab", None):
        with pytest.raises(ConfigError, match=r"/(lab|net-1): make a network's folder: File exi"):
            places.take(name)


def test_folders_that_cannot_be_opened_are_no_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    (places.home() / "lab").mkdir(0o700)

    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    assert places.up() == []
    with pytest.raises(ConfigError, match="make a network's folder: Permission denied"):
        places.take("lab")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ConfigError, match="must be a folder that you may enter and write to"):
        places.up()


def test_a_folder_whose_name_is_too_long_has_no_network(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be reached.*File name too long"):
        places.connect(tmp_path / ("x" * 300))


def test_a_shell_completes_names_of_networks() -> None:
    place = places.take("lab")
    assert [each.value for each in completion.offer("network", "l")] == ["lab"]
    place.remove()
