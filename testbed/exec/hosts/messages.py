"""Messages of a run of programs between driver and agents, beside those of the links."""

from typing import Annotated

import msgspec

from testbed.exec import lines
from testbed.exec.config import ExecConfig
from testbed.exec.output import STREAMS
from testbed.run.config import RunConfig
from testbed.run.hosts import messages


class CheckPrograms(msgspec.Struct, tag="check_programs"):
    """The driver's question whether the host can have its part in this run."""

    host: str
    """The agent's own name among the hosts."""
    links: RunConfig
    """With all nodes placed."""
    programs: ExecConfig


class Tell(msgspec.Struct, tag="tell_init"):
    """The driver's word to a node's init."""

    node: int
    line: lines.Order


class Told(msgspec.Struct, tag="init_said"):
    """An init's word, which its agent passes on."""

    node: int
    line: lines.Answer


class Wrote(msgspec.Struct, tag="wrote"):
    """The next bytes that a node's program has written."""

    node: int
    stream: Annotated[int, msgspec.Meta(ge=0, lt=len(STREAMS))]
    data: bytes


class Left(msgspec.Struct, tag="left"):
    """An agent's word that nothing more will come of a node."""

    node: int


Order = messages.Order | CheckPrograms | Tell
"""What an agent hears."""
Answer = messages.Answer | Told | Wrote | Left
"""What a driver hears."""
