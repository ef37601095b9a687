"""The system calls of a process, in their order, as strace wrote them down."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dicom_node.dimse import Command, Field
from dicom_node.wire import PDU_HEADER, PDV_HEADER, Control, PduType, ProtocolError

_CALLS = "write,pwrite64,fdatasync,fsync,rename,unlink,sendto,recvfrom"
_PAGE = 4200  # a page of SQLite, with its frame
_LINE = re.compile(r"(?P<thread>\d+) +(?:<\.\.\. (?P<resumed>\w+) resumed>|(?P<name>\w+)\()(?P<rest>.*)")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_SYNCS = ("fsync", "fdatasync")
_WRITES = ("write", "pwrite64")


def traced(strace: str, trace: Path) -> list[str]:
    """What to put before a command."""
    return [
        strace,
        "-D",
        "-f",
        "--seccomp-bpf",
        "-y",
        "-s",
        str(_PAGE),
        "-e",
        f"trace={_CALLS}",
        "-o",
        str(trace),
    ]


@dataclass
class Call:
    """One system call: when it began and when it had returned, as places in the trace."""

    thread: str
    name: str
    text: str
    begin: int
    end: int
    strings: list[bytes] = field(default_factory=list)

    @property
    def content(self) -> bytes:
        """The first string: a path, or the first bytes of what was written or sent."""
        return self.strings[0] if self.strings else b""

    def is_on(self, path: Path) -> bool:
        """Whether the call is on a descriptor of this file or directory."""
        return f"<{path}>" in self.text

    @property
    def command(self) -> Command | None:
        """The DIMSE command at the beginning of what is sent."""
        start = PDU_HEADER.size + PDV_HEADER.size
        if self.name != "sendto" or len(self.content) < start or self.content[0] != PduType.P_DATA:
            return None
        size, _, control = PDV_HEADER.unpack_from(self.content, PDU_HEADER.size)
        if not control & Control.COMMAND:
            return None
        try:
            return Command.decode(self.content[start : start + size - 2])
        except ProtocolError:
            return None


def is_complete(path: Path, pid: int) -> bool:
    """Whether the process has ended, and strace has written down that it has."""
    return re.search(rf"^{pid} +\+\+\+ ", path.read_text(errors="replace"), re.MULTILINE) is not None


def read_trace(path: Path) -> list[Call]:
    """The calls of a trace, by their beginning."""
    calls: list[Call] = []
    unfinished: dict[str, Call] = {}
    for number, line in enumerate(path.read_text(errors="replace").splitlines()):
        found = _LINE.match(line)
        if found is None:
            continue
        thread, rest = found["thread"], found["rest"]
        if found["resumed"]:
            call = unfinished.pop(thread)
            call.text, call.end = call.text + rest, number
        else:
            call = Call(thread=thread, name=found["name"], text=rest, begin=number, end=number)
            calls.append(call)
            if rest.endswith("<unfinished ...>"):
                unfinished[thread] = call
                call.end = 2**62
    for call in calls:
        call.strings = [ast.literal_eval(f'b"{one}"') for one in _STRING.findall(call.text)]
    return calls


def made_durable(calls: list[Call], path: Path) -> int:
    """When a file was durable: written, synchronised, renamed, its directory synchronised, in this order."""
    renamed = next(c for c in calls if c.name == "rename" and c.strings[1] == bytes(path))
    part = Path(renamed.content.decode())
    own = [c for c in calls if c.thread == renamed.thread]
    writes = [c for c in own if c.name in _WRITES and c.is_on(part)]
    synchronised = [c for c in own if c.name in _SYNCS and c.is_on(part)]
    assert writes
    assert any(writes[-1].end < c.begin and c.end < renamed.begin for c in synchronised), (
        "write, sync, rename"
    )
    return next(c.end for c in own if c.name == "fsync" and c.is_on(path.parent) and c.begin > renamed.end)


def commits(calls: list[Call], *needles: str) -> Iterator[tuple[int, int]]:
    """When the commit of each transaction that wrote these texts began, and when it was done."""
    texts = [needle.encode() for needle in needles]
    for at, call in enumerate(calls):
        if not all(any(text in one for one in call.strings) for text in texts):
            continue
        after = [c for c in calls[at:] if c.thread == call.thread]
        if call.name == "pwrite64" and "-wal>" in call.text:
            yield call.begin, next(c.end for c in after if c.name in _SYNCS and "-wal>" in c.text)
        elif call.name == "sendto" and call.content[:1].isupper():  # a PDU begins with its type
            asked = next(c for c in after if c.name == "sendto" and b"COMMIT" in c.content)
            yield (
                asked.begin,
                next(
                    c.end
                    for c in after
                    if c.begin > asked.end and c.name == "recvfrom" and b"COMMIT" in c.content
                ),
            )


def responses(calls: list[Call], command_field: int) -> Iterator[tuple[Call, Command]]:
    """What was sent with this command field."""
    for call in calls:
        command = call.command
        if command is not None and command.number(Field.COMMAND) == command_field:
            yield call, command
