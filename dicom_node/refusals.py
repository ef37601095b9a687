"""Who was refused, as files in the spool: a window each, from the node that counts to the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from dicom_node.durable import Workbench
from dicom_node.logs import get_logger

log = get_logger("refusals")

MOST_REFUSALS = 32
"""Told one by one in a window: all of them fit into an audit message of 32,768 bytes (PS3.15 A.6)."""

_Title = Annotated[str, Field(pattern=r"^[\x20-\x5b\x5d-\x7e]{0,16}$")]


class Refused(StrEnum):
    """Why a peer was not let in."""

    UNKNOWN_TITLE = "unknown_title"
    """Its AE title is on no list of callers."""
    WRONG_ADDRESS = "wrong_address"
    """The title is on the list, and not from this address."""
    WRONG_CERTIFICATE = "wrong_certificate"
    """The title and the address are on the list, and not with this certificate, or without one."""
    CALLED_TITLE = "called_title"
    """It asked for another AE title than ours."""
    HANDSHAKE = "handshake"
    """It speaks no TLS, too old a version, or was silent."""
    CERTIFICATE = "certificate"
    """It showed no certificate, or one that is not accepted."""
    REVOKED = "revoked"
    """Its certificate is on a revocation list."""
    NO_VALID_LIST = "no_valid_list"
    """The authority that signed its certificate has no revocation list here that is good today."""
    ASSOCIATIONS = "associations"
    """So many associations as are allowed were open."""
    CONNECTIONS = "connections"
    """So many connections as are allowed were open."""
    CONNECTIONS_FROM_THERE = "connections_from_there"
    """So many connections as are allowed from one address were open."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Refusal(_Entry):
    """The same refusal, so many times. A title is empty where none was said, or where there were too many."""

    reason: Refused
    address: str = Field(pattern=r"^[\x21-\x7e]{1,64}$")
    calling_ae: _Title = ""
    called_ae: _Title = ""
    count: PositiveInt


class RefusalWindow(_Entry):
    """All refusals of some time, a minute as a rule. `others` counts those that are not told one by one."""

    name: str = Field(pattern=r"^\d{8}T\d{6}Z-[0-9a-f]{16}$")
    since: AwareDatetime
    until: AwareDatetime
    refusals: tuple[Refusal, ...] = Field(max_length=MOST_REFUSALS)
    others: dict[Refused, PositiveInt]

    @property
    def count(self) -> int:
        """How often somebody was refused."""
        return sum(one.count for one in self.refusals) + sum(self.others.values())


def window_name(opened: datetime, distinction: str) -> str:
    """The name of a window that was opened at that time; `distinction` is 16 hexadecimal digits."""
    return f"{opened:%Y%m%dT%H%M%S}Z-{distinction}"


class Refusals:
    """Windows as `<name>.json`."""

    def __init__(self, directory: Path, workbench: Workbench) -> None:
        self._directory = directory
        self._workbench = workbench

    def keep(self, window: RefusalWindow) -> None:
        """Keep a window durably; once more is fine. Raises `SpoolFull`, `OSError`."""
        self._workbench.write(self._path(window.name), window.model_dump_json().encode())

    def waiting(self) -> Iterator[RefusalWindow]:
        """Every window that has not been dropped, oldest first. One that is damaged is put aside, one that
        the disk does not give is there next time."""
        for path in sorted(self._directory.glob("*.json")):
            try:
                yield _read(path)
            except FileNotFoundError:
                continue  # another deliverer took it
            except OSError as error:
                log.error("refusals_unreadable", window=path.name, error=type(error).__name__)
            except ValueError as error:
                log.error("refusals_damaged", window=path.name, error=type(error).__name__)
                path.rename(path.with_suffix(".bad"))

    def drop(self, window: RefusalWindow) -> None:
        """Remove a window that the ledger has."""
        self._path(window.name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.json"


def _read(path: Path) -> RefusalWindow:
    try:
        window = RefusalWindow.model_validate_json(path.read_bytes())
    except ValidationError:
        raise ValueError("no window of refusals") from None
    if window.name != path.stem:
        raise ValueError("the window is not that of its name")
    return window
