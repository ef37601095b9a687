"""`covariance support-bundle`: what is needed to help from afar, without a patient in it.

Settings without secrets, versions, what the doctor says, counts, and the ends of logs. Of a log only our own
lines go, only fields that are known to be harmless, and each UID as a pseudonym that is the same within one
bundle and worth nothing outside of it.
"""

from __future__ import annotations

import hmac
import io
import json
import os
import platform
import re
import secrets
import sys
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import distributions
from pathlib import Path

from rich.console import Console

from deploy.configuration import effective
from deploy.doctor.examine import as_document, examine
from dicom_node.errors import CovarianceError, Retryable
from dicom_node.logs import configure_logs
from worker.ledger import open_ledger
from worker.settings import Settings

_TAIL_BYTES = 2_000_000
_PAGE = 5000
_HEAD = {
    "timestamp": re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z"),
    "level": re.compile(r"debug|info|warning|error|critical"),
    "event": re.compile(r"[a-z0-9_]{1,60}"),
}
_CONSOLE_LINE = re.compile(
    r"^(?:\s*\w+ │ )?(\d{4}-\d\d-\d\dT[\d:.]+Z) "
    r"\[(debug|info|warning|error|critical)\s*\] ([a-z0-9_]+)\s*(.*)$"
)
_FIELD = re.compile(r"([a-z_]+)=('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\S+)")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_NUMBER = re.compile(r"0x[0-9A-Fa-f]{4}|-?\d+(?:\.\d+)?(?:e-?\d+)?")
_CODE = re.compile(r"[A-Za-z_]{1,40}")
_PSEUDONYM = re.compile(r"\d+(?:\.\d+){2,}")
_SAFE = {
    **dict.fromkeys(
        [
            "attempt",
            "code",
            "count",
            "depth",
            "destinations",
            "exit_status",
            "failures",
            "files",
            "generation",
            "images",
            "port",
            "queue",
            "restart_in",
            "rung",
            "size",
            "status",
            "studies",
            "tls_port",
            "worst_logit",
        ],
        _NUMBER,
    ),
    **dict.fromkeys(
        ["decision", "error", "filed", "lane", "outcome", "program", "reason", "state", "station", "step"],
        _CODE,
    ),
    **dict.fromkeys(["object", "study", "transaction"], _PSEUDONYM),
}
"""The fields that go, and the form that a value must have: numbers, codes and UIDs. A field is what its name
says only where its value looks so; text may be anything."""


def write_support_bundle(settings: Settings, out: Path, logs: Sequence[Path]) -> None:
    """Write the archive.

    Raises:
        Retryable: it cannot be written.
    """
    configure_logs(level="ERROR")
    scrub = Scrubber()
    members = {
        "settings.toml": effective(settings),
        "versions.json": json.dumps(_versions(), indent=2),
        "doctor.json": as_document(list(examine())),
        "counts.json": json.dumps(_counts(settings), indent=2, default=str),
    }
    for number, log in enumerate(logs):
        members[f"logs/{number}-{log.name}"] = scrub.tail(log)
    try:
        _write(out, members)
    except OSError as error:
        raise Retryable(f"{out} cannot be written: {error.strerror}.") from None
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{out}: {', '.join(members)}. No patient, no film, no secret; look into it before it goes."
    )


class Scrubber:
    """Leaves of log lines what is ours and harmless."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def tail(self, file: Path) -> str:
        """The end of a log, scrubbed; lines that are not ours are only counted."""
        try:
            with file.open("rb") as opened:
                opened.seek(max(0, os.fstat(opened.fileno()).st_size - _TAIL_BYTES))
                lines = opened.read().decode(errors="replace").splitlines()
        except OSError as error:
            return f"{file.name} cannot be read: {error.strerror}.\n"
        kept = [told for line in lines if (told := self.line(line)) is not None]
        return "\n".join([*kept, f"({len(lines) - len(kept)} lines that are not ours were left out)"]) + "\n"

    def line(self, line: str) -> str | None:
        """One line, scrubbed; None where it is not one of ours."""
        line = _COLOURS.sub("", line)
        found = _json_line(line) if line.startswith("{") else _console_line(line)
        if found is None:
            return None
        head, fields = found
        told = {name: self._value(name, value) for name, value in fields.items() if name in _SAFE}
        return json.dumps(head | {name: value for name, value in told.items() if value is not None})

    def _value(self, name: str, value: object) -> str | None:
        """A value as it may go; None where it is not of the form that its field has."""
        text, form = str(value), _SAFE[name]
        if form.fullmatch(text) is None:
            return None
        return self._pseudonym(text) if form is _PSEUDONYM else text

    def _pseudonym(self, uid: str) -> str:
        return "uid-" + hmac.new(self._key, uid.encode(), "sha256").hexdigest()[:12]


def _json_line(line: str) -> tuple[dict[str, str], dict[str, object]] | None:
    try:
        fields = json.loads(line)
        head = {name: str(fields.pop(name)) for name in _HEAD}
    except (ValueError, KeyError, AttributeError):
        return None
    return (head, fields) if all(_HEAD[name].fullmatch(text) for name, text in head.items()) else None


def _console_line(line: str) -> tuple[dict[str, str], dict[str, object]] | None:
    match = _CONSOLE_LINE.match(line)
    if match is None:
        return None
    at, level, event, rest = match.groups()
    fields: dict[str, object] = {name: value.strip("'\"") for name, value in _FIELD.findall(rest)}
    return {"timestamp": at, "level": level, "event": event}, fields


def _versions() -> dict[str, object]:
    packages = {one.name: one.version for one in distributions()}
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }


def _counts(settings: Settings) -> dict[str, object]:
    """Numbers of the ledger and the spool; no study, no sender."""
    counts: dict[str, object] = {}
    try:
        with open_ledger(settings, migrate=False) as ledger:
            counts["ledger"] = asdict(ledger.status())
            kinds: Counter[str] = Counter()
            after = 0
            while page := ledger.events_after(after, _PAGE):
                kinds.update(event.kind for event in page)
                after = page[-1].seq
            counts["events"] = dict(kinds)
    except CovarianceError as error:
        counts["ledger"] = str(error)
    for name in ("studies", "outbox", "incoming", "reports", "refusals"):
        files = [one for one in (settings.spool.path / name).rglob("*") if one.is_file()]
        counts[f"spool_{name}"] = {"files": len(files), "bytes": sum(_size(one) for one in files)}
    return counts


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _write(out: Path, members: dict[str, str]) -> None:
    descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, text in members.items():
            content = text.encode()
            member = tarfile.TarInfo(f"covariance-support/{name}")
            member.size, member.mode = len(content), 0o600
            archive.addfile(member, io.BytesIO(content))
