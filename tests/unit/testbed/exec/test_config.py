"""Programs as they are asked for: flags and a file, a table a node, and what is refused."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from testbed.config_error import ConfigError
from testbed.exec import config
from testbed.exec.config import ExecConfig, NodeConfig, load, programs_of
from testbed.exec.jobs import Port, job, name_service
from testbed.network.profiles import load as profile
from testbed.network.topology import Plan, plan
from testbed.run.config import convert
from testbed.units import byte_count


def layout(clients: int = 3) -> Plan:
    return plan([profile("4g")] * clients)


def written(folder: Path, text: str) -> Path:
    file = folder / "net.toml"
    file.write_text(text)
    return file


def test_a_table_wins_over_a_role_and_a_role_over_the_command_of_all() -> None:
    tables = {
        "client-*": NodeConfig(env={"A": "1", "B": "1"}, after="server:80"),
        "client-2": NodeConfig(command="own", env={"B": "2"}, after="client-1:81"),
    }
    asked = ExecConfig(server="serve", command=("all", "of"), env={"C": "3"}, nodes=tables)
    server, one, two, _ = programs_of(asked, layout())
    assert (server.command, server.env, server.after) == ("serve", {"C": "3"}, None)
    assert (one.command, one.after) == (("all", "of"), Port("server", 80))
    assert (two.command, two.after) == ("own", Port("client-1", 81))
    assert two.env == {"A": "1", "B": "2", "C": "3"}


def test_flags_win_over_a_file_and_both_come_back_from_what_is_written(tmp_path: Path) -> None:
    file = written(tmp_path, 'clients = 2\nserver = "a"\nclient = "b"\nenv = {X = "1", Y = "1"}\n')
    found = load(file, {"client": "c", "env": {"Y": "2"}, "until": None, "command": ()})
    assert found.links.clients == 2
    assert (found.programs.server, found.programs.client) == ("a", "c")
    assert found.programs.env == {"X": "1", "Y": "2"}
    again = tmp_path / "again.toml"
    config.write(found, again)
    assert load(again, {}).programs == found.programs
    assert load(again, {}).links.clients == 2


def test_a_written_file_means_the_same_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tables = {"client-1": NodeConfig(profile="./own.toml"), "client-2": NodeConfig(profile="3g")}
    found = config.repeatable(ExecConfig(nodes={**tables, "server": NodeConfig(cwd="/")}))
    profiles = {name: table.profile for name, table in found.nodes.items()}
    assert profiles == {"client-1": f"{tmp_path}/own.toml", "client-2": "3g", "server": None}
    assert found.cwd == str(tmp_path)


@pytest.mark.parametrize(
    ("of_all", "own", "where"),
    [
        (None, None, "/here"),
        ("app", None, "/here/app"),
        ("app", "part", "/here/app/part"),
        ("app", "/own", "/own"),
        ("app", "$WIRETUNE_DIR", "/results/RUN/nodes/client-2"),
        ("$WIRETUNE_DIR", "part", "/results/RUN/nodes/client-2/part"),
    ],
)
def test_a_nodes_folder_is_relative_to_that_of_all(
    monkeypatch: pytest.MonkeyPatch, of_all: str | None, own: str | None, where: str
) -> None:
    monkeypatch.setattr("os.getcwd", lambda: "/here")
    asked = ExecConfig(command=("x",), cwd=of_all, nodes={"client-*": NodeConfig(cwd=own)})
    written = config.repeatable(asked)
    for programs, caller in ((asked, "/here"), (written, "/elsewhere")):
        monkeypatch.setattr("os.getcwd", lambda caller=caller: caller)
        folders = config.programs_of(programs, layout(2))[2].folders
        found = job(layout(2), layout(2).nodes[2], "x", {}, {}, folders, Path("/results/RUN"))
        assert found.folder == where


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"servr": "x"}, "unknown field 'servr': did you mean server"),
        ({"rounds": 3}, "unknown field 'rounds'"),
        ({"until": "never"}, "until = 'never': must be one of all, server, clients"),
        ({"links": "loopback"}, "does not go through that relay"),
        ({"dilation": "auto"}, "go by this machine's clock"),
        ({"wait_port": 0}, "wait_port = 0"),
        ({"round_regex": "("}, "round_regex = '('"),
        ({"round_regex": "a{99999999999999999999}"}, "the repetition number is too large"),
        ({"round_regex": 5000 * "(" + 5000 * ")"}, "maximum recursion depth"),
        ({"expect_bytes": "5 Mibi"}, "must be a size such as 500MB"),
        ({"nodes": 3}, "nodes = 3: must be a table of tables"),
        ({"nodes": {"server": 1}}, "nodes.server = 1: must be a table"),
        (
            {"server": "a", "client": "b", "command": ["c", "d"]},
            "command = 'c d': is no node's, for the server has a command and clients have one",
        ),
        ({"env": {"A=B": "x"}}, "'A=B' cannot be a variable's name"),
        ({"env": {"A": "x\0y"}}, "env = 'x\\x00y': cannot hold the character NUL"),
        ({"env": {"A": "x\udcff"}}, "is no UTF-8"),
        ({"command": ["echo", "x\udcff"]}, "command = 'x\\udcff': is no UTF-8"),
        ({"nodes": {"server": {"env": {"": "x"}}}}, "nodes.server: env: '' cannot be"),
        ({"nodes": {"server": {"comand": "x"}}}, "nodes.server: unknown field 'comand'"),
    ],
)
def test_bad_input_is_refused_with_what_would_be_right(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(None, values)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (ExecConfig(server="x"), "client-1: has no command; give it one by --client="),
        (ExecConfig(client="x"), "server: has no command; give it one by --server="),
        (
            ExecConfig(command=("x",), nodes={"client-9": NodeConfig()}),
            "nodes.client-9: is no node",
        ),
        (
            ExecConfig(command=("x",), nodes={"client-1": NodeConfig(after="server")}),
            "nodes.client-1.after = 'server': must be NODE:PORT",
        ),
        (
            ExecConfig(
                command=("x",), nodes={"client-1": NodeConfig(after="server:" + "9" * 5000)}
            ),
            "must be NODE:PORT",
        ),
        (
            ExecConfig(command=("x",), nodes={"client-1": NodeConfig(after="servr:80")}),
            "'servr' is no node: did you mean server",
        ),
        (
            ExecConfig(command=("x",), nodes={"client-1": NodeConfig(after="client-1:80")}),
            "after: client-1 waits for client-1:80: none of that ever begins",
        ),
        (
            ExecConfig(
                command=("x",), wait_port=80, nodes={"server": NodeConfig(after="client-2:81")}
            ),
            "after: server waits for client-2:81, client-2 waits for server:80: none of that",
        ),
    ],
)
def test_programs_that_no_node_has_are_refused(asked: ExecConfig, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        programs_of(asked, layout())
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("asked", "flags", "says"),
    [
        (
            {"server": "a", "nodes": {"server": {"command": "b"}}, "command": ["c"]},
            {"server": "a"},
            "server = 'a': changes nothing, for each node that it is for has a command of its own",
        ),
        (
            {"command": ["c"], "client": "a", "nodes": {"client-*": {"command": "b"}}},
            {"client": "a"},
            "client = 'a': changes nothing",
        ),
        (
            {"server": "a", "command": ["c"], "nodes": {"client-?": {"command": "b"}}},
            {"command": ("c",)},
            "command = ('c',): changes nothing",
        ),
        (
            {"command": ["c"], "wait_port": 80, "nodes": {"client-*": {"after": "server:81"}}},
            {"wait_port": 80},
            "wait_port = 80: changes nothing, for each node that it is for has a after",
        ),
        (
            {"command": ["c"], "nodes": {"client-*": {"profile": "3g"}}},
            {"profile": "4g"},
            "profile = '4g': changes nothing",
        ),
        (
            {"command": ["c"], "wait_limit_s": 5.0},
            {"wait_limit_s": 5.0},
            "wait_limit_s = 5: no port is waited for; name one by --wait-port",
        ),
    ],
)
def test_a_flag_that_would_change_nothing_is_refused(
    asked: dict[str, Any], flags: dict[str, Any], says: str
) -> None:
    programs = msgspec.convert(asked, ExecConfig)
    with pytest.raises(ConfigError) as refused:
        config.refuse_unheeded(programs, layout(), flags)
    assert says in str(refused.value)
    # What a file has beside its tables may be for other numbers of clients.
    config.refuse_unheeded(programs, layout(), {})


def test_a_flag_for_one_node_at_least_is_taken() -> None:
    tables = {"client-1": NodeConfig(command="own", profile="3g", after="server:81")}
    asked = ExecConfig(server="a", client="b", wait_port=80, wait_limit_s=5, nodes=tables)
    flags = {"server": "a", "client": "b", "wait_port": 80, "wait_limit_s": 5.0, "profile": "4g"}
    config.refuse_unheeded(asked, layout(), flags)
    waiting = ExecConfig(command=("a",), wait_limit_s=5, nodes=tables)
    config.refuse_unheeded(waiting, layout(), {"wait_limit_s": 5.0, "command": ("a",)})


def made(command: str | tuple[str, ...], original: dict[str, str], **own: Any) -> Any:
    nodes = layout()
    folder = own.pop("folder", "/work")
    return job(nodes, nodes.nodes[2], command, original, own, [folder], Path("/results/RUN"))


def test_words_have_our_variables_replaced_and_lines_are_the_shells() -> None:
    found = made(("run", "$WIRETUNE_RANK/${WIRETUNE_SIZE}", "$HOME"), {"HOME": "/h"})
    assert found.words == ("run", "2/4", "$HOME")
    line = made("run $WIRETUNE_RANK", {})
    assert line.words == ("/bin/sh", "-c", "run $WIRETUNE_RANK")
    own = made("x", {}, folder="$WIRETUNE_DIR")
    assert own.folder == own.environment["PWD"] == "/results/RUN/nodes/client-2"
    assert made("x", {}, folder="below").folder == str(Path.cwd() / "below")


def test_the_environment_is_the_users_with_what_a_node_needs() -> None:
    original = {"OMP_NUM_THREADS": "7", "NCCL_NET": "mine", "HOSTNAME": "host"}
    found = made("x", {**original, "WIRETUNE_TOKEN": "s3cret"}, LOG="1").environment
    assert "WIRETUNE_TOKEN" not in found
    assert found["OMP_NUM_THREADS"] == "7" and found["NCCL_NET"] == "mine"
    assert found["HOSTNAME"] == found["WIRETUNE_NODE"] == "client-2"
    assert found["GLOO_SOCKET_IFNAME"] == "wire0" and found["LOG"] == "1"
    assert found["WIRETUNE_ADDRESSES"] == "10.0.0.1,10.1.0.1,10.1.0.2,10.1.0.3"
    assert (found["WIRETUNE_SERVER"], found["WIRETUNE_ADDRESS"]) == ("10.0.0.1", "10.1.0.2")


def test_what_a_program_names_in_a_private_folder_stays(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    environment = {"PATH": "/tmp/venv/bin:/bin", "HOME": "/tmp", "TMPDIR": "/tmp/mine"}
    found = made(f"python {a}/x.py --data='{b}' > {a}/y", environment, folder=a)
    assert found.kept_paths() == (a, b, "/tmp/venv")
    assert made("./x", environment, folder="/tmp").kept_paths() == ("/tmp",)


def test_names_are_asked_of_the_hosts_file_and_of_dns_alone() -> None:
    lines = ["passwd: files", "hosts: files mymachines resolve [!UNAVAIL=return] dns"]
    assert name_service(lines) == "passwd: files\nhosts: files dns\n"


@pytest.mark.parametrize(
    ("text", "count"), [("5", 5), ("5MB", 5_000_000), ("1.5 GB", 1_500_000_000), ("2k", 2000)]
)
def test_sizes(text: str, count: int) -> None:
    assert byte_count(text) == count


def test_an_expression_that_a_later_python_may_read_otherwise_is_taken_without_a_word(
    recwarn: pytest.WarningsRecorder,
) -> None:
    convert({"round_regex": "[[a-z]+--[0-9]"}, ExecConfig, "the flags")
    assert not recwarn.list
