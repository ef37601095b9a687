"""The audit trail for people: walked, noted, and kept from those who might change it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from sqlalchemy import make_url

from dicom_node.errors import ConfigurationError, CovarianceError
from worker.checkpoints import Checkpointer, CheckpointFile
from worker.ledger import ChainHead, migrate, open_ledger
from worker.ledger.roles import APP, READ
from worker.ledger.store import make_engine
from worker.settings import Settings


def verify_audit(settings: Settings, expect: str | None, file: Path | None) -> int:
    """Verify the chain and all that was noted of it, say what was found, and return the exit code."""
    console = Console(highlight=False, soft_wrap=True)
    noted = {_head(expect): "--expect"} if expect else {}
    # The file before the trail: what is noted meanwhile is not missed in it.
    file = file or _configured(settings)
    checkpoints, torn = CheckpointFile(file).read() if file else ([], 0)
    for one in reversed(checkpoints):
        noted[one.head] = f"checkpoint of {one.at.isoformat(timespec='seconds')}"
    with open_ledger(settings, migrate=False) as ledger, console.status("Walking the chain") as spinner:
        found = ledger.verify(
            noted, progress=lambda events: spinner.update(f"Walking the chain: {events} events")
        )
    console.print(found.sentence, style="green" if found.ok else "bold red")
    if found.ok and checkpoints:
        console.print(f"It fits all {len(checkpoints)} checkpoints of {file}.")
    if torn:
        console.print(f"{torn} lines of {file} are no checkpoints: a power cut, or somebody wrote into it.")
    if found.ok:
        console.print(f"Keep this head elsewhere: --expect {found.head.events}:{found.head.hash}")
    return 0 if found.ok else 1


def note_checkpoint(settings: Settings, file: Path | None) -> None:
    """Note the head of the trail now: in the file, if there is one, and on stdout.

    Raises:
        CovarianceError: the trail does not hold the last checkpoint of the file.
    """
    file = file or _configured(settings)
    with open_ledger(settings, migrate=False) as ledger:
        if file is not None and Checkpointer(file, ledger).step() is None:
            raise CovarianceError(
                f"The audit trail no longer fits the last checkpoint of {file}: `covariance audit verify` "
                "names the first event that does not."
            )
        head = ledger.head()
    print(f"{head.events}:{head.hash}")  # noqa: T201


def print_roles(settings: Settings) -> int:
    """Bring schema and roles to this version, say who may do what, and return the exit code."""
    console = Console(highlight=False, soft_wrap=True)
    open_ledger(settings, migrate=True).close()
    if make_url(settings.database.url).get_backend_name() != "postgresql":
        console.print(
            "SQLite has no roles: who may write the file may change it. Keep checkpoints elsewhere."
        )
        return 0
    engine = make_engine(settings.database.url)
    try:
        by_hand = migrate.grant(engine)
    finally:
        engine.dispose()
    if by_hand:
        console.print("This login may not create roles. Have somebody who may run, and then this again:")
        for statement in by_hand:
            print(f"{statement};")  # noqa: T201 (to be copied)
        return 1
    console.print(f"{APP} works and cannot change the audit trail; {READ} only reads. Make a login a member:")
    print(f"CREATE ROLE scorer LOGIN PASSWORD '...' IN ROLE {APP};")  # noqa: T201
    return 0


def _configured(settings: Settings) -> Path | None:
    return Path(settings.audit.checkpoints) if settings.audit.checkpoints else None


def _head(text: str) -> ChainHead:
    events, _, digest = text.partition(":")
    if not events.isdigit() or not digest:
        raise ConfigurationError("--expect takes EVENTS:HASH as `audit verify` prints it.")
    return ChainHead(events=int(events), hash=digest)
