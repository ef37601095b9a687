"""`covariance demo`: the whole way once, watched from outside as an operator would watch it."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from deploy import broker
from deploy.overlays import save_overlay
from deploy.pacs import StandInPacs
from deploy.progress import StudyProgress, progress_of, progress_table
from deploy.samples import Sample, Samples, file_samples, phantom_samples
from deploy.send import parse_target, send_items
from deploy.up import usable_port
from dicom_node.errors import ConfigurationError, CovarianceError
from dicom_node.settings import NodeSection, use_file
from dicom_node.status import NextStep, next_step_of
from dicom_node.store_scu import Peer, SendItem, SendOutcome
from worker.findings import Role
from worker.ledger import Ledger, OutputRecord, open_ledger
from worker.settings import Settings, load_settings

_MARK = ".covariance-demo"
_START_SECONDS = 120.0
_LOOK_SECONDS = 0.2
_MODALITY = "DEMO-MODALITY"
_PROOFS = {"commitment": "committed", "find": "verified", "none": "stored"}
"""What the PACS has done in the end, by `verify`."""
_PHANTOM_NOTE = "A phantom is no patient: its score means nothing. It shows that the way works."


def run_demo(*, folder: Path, studies: Path | None, pacs: str | None, verify: str, patience: float) -> int:
    """Run the demo, leave everything in `folder`, and return the exit code: 0 if all is proven."""
    console = Console(highlight=False)
    began = time.monotonic()
    folder = _fresh(folder)
    listener = _listener(load_settings().node, for_real=pacs is not None)
    with ExitStack() as stack, ThreadPoolExecutor(1) as aside:
        making = aside.submit(_samples, studies, folder / "films")
        peer = (
            parse_target(pacs, calling_ae=listener.ae_title) if pacs else _stand_in(stack, folder, listener)
        )
        _configure(folder, listener, peer, verify=verify)
        with console.status("Starting node, worker, deliverer and broker"):
            stack.enter_context(_running_stack(folder, console))
            found = making.result()
        samples = found.studies
        role = "a real PACS" if pacs else "a stand-in PACS"
        where = f"{peer.ae_title} at {peer.host}:{peer.port}"
        console.print(f"[green]✓[/] Stack up after {time.monotonic() - began:.0f} s, with {role}: {where}")
        if found.left_out:
            console.print(f"[yellow]![/] Left out, no DICOM, PNG or JPEG that can be read: {found.left_out}")
        with console.status("Sending"):
            images = _send(samples, (_as_modality(listener), peer))
        console.print(f"[green]✓[/] {images} images of {len(samples)} studies sent to node and PACS")
        ledger = stack.enter_context(open_ledger(load_settings(), migrate=True))
        overlays = _Overlays(folder / "overlays", _held(folder / "pacs"))
        proof = _PROOFS[verify]
        rows = _watch(console, ledger, samples, overlays, patience=patience, proof=proof)
        seconds = time.monotonic() - began
        _conclude(console, rows, folder, phantoms=studies is None, proof=proof, seconds=seconds)
    return 0 if all(row.succeeded for row in rows) else 1


def _listener(own: NodeSection, *, for_real: bool) -> NodeSection:
    """Where the node of the demo listens: a free port of this machine, unless the settings say more.

    A real PACS sends its reports to where it knows us: at the address and port of the settings.
    """
    host, port = ("0.0.0.0", own.port) if for_real else ("127.0.0.1", 0)  # noqa: S104
    host = own.host if "host" in own.model_fields_set else host
    port = own.port if "port" in own.model_fields_set else port
    return own.model_copy(update={"host": host, "port": usable_port(host, port)})


def _as_modality(listener: NodeSection) -> Peer:
    host = "127.0.0.1" if listener.host == "0.0.0.0" else listener.host  # noqa: S104
    return Peer(ae_title=listener.ae_title, host=host, port=listener.port, calling_ae=_MODALITY)


def _fresh(folder: Path) -> Path:
    """An empty folder; only what an earlier demo left is removed."""
    folder = folder.absolute()
    if folder.exists() and any(folder.iterdir()):
        if not (folder / _MARK).exists():
            raise ConfigurationError(f"{folder} holds something else than a demo: name another --folder.")
        shutil.rmtree(folder)
    (folder / "overlays").mkdir(parents=True)
    (folder / _MARK).touch()
    return folder


def _samples(studies: Path | None, films: Path) -> Samples:
    return file_samples(studies, films) if studies else phantom_samples(films)


def _stand_in(stack: ExitStack, folder: Path, listener: NodeSection) -> Peer:
    pacs = StandInPacs(folder / "pacs", peers={listener.ae_title: ("127.0.0.1", listener.port)})
    stack.enter_context(pacs)
    return Peer(ae_title=pacs.ae_title, host=pacs.host, port=pacs.port, calling_ae=listener.ae_title)


def _held(pacs: Path) -> Callable[[str], Path | None]:
    return lambda uid: next(pacs.glob(f"*/{uid}.dcm"), None)


def _configure(folder: Path, listener: NodeSection, peer: Peer, *, verify: str) -> None:
    """Write the settings of this demo as a file that anyone may read or reuse."""
    tables: dict[str, dict[str, Any]] = {
        "[node]": {"ae_title": listener.ae_title, "host": listener.host, "port": listener.port},
        "[spool]": {"path": str(folder / "spool"), "minimum_free_bytes": 100_000_000},
        "[assembly]": {"quiet_seconds": 1.0},
        "[queue]": {"embedded_path": str(folder / "valkey")},
        "[database]": {"url": f"sqlite:///{folder / 'ledger.sqlite3'}"},
        "[worker]": {"engine_cache": str(folder.parent / "engine-cache")},
        "[[destinations]]": {
            "name": "pacs",
            "ae_title": peer.ae_title,
            "host": peer.host,
            "port": peer.port,
            "verify": verify,
        },
    }
    text = "\n".join(
        "\n".join([head, *(f"{name} = {json.dumps(value)}" for name, value in table.items()), ""])
        for head, table in tables.items()
    )
    file = folder / "covariance.toml"
    file.write_text(text, encoding="utf-8")
    use_file(file)
    _require_own(load_settings(), folder)


def _require_own(settings: Settings, folder: Path) -> None:
    """Refuse to run beside a real site: variables and secrets go before the file.

    Raises:
        ConfigurationError: names what is not the demo's.
    """
    own = {
        "database.url": settings.database.url == f"sqlite:///{folder / 'ledger.sqlite3'}",
        "queue.url": broker.is_embedded(settings.queue),
        "queue.embedded_path": settings.queue.embedded_path == folder / "valkey",
        "spool.path": settings.spool.path == folder / "spool",
        "destinations": len(settings.destinations) == 1 and settings.destinations[0].name == "pacs",
    }
    for name, is_own in own.items():
        if not is_own:
            raise ConfigurationError(
                f"{name} comes from a variable or a secret, and the demo must not touch a real site: run it "
                "where no COVARIANCE_ variable and no COVARIANCE_SECRETS names one."
            )


@contextmanager
def _running_stack(folder: Path, console: Console) -> Iterator[None]:
    """Run `covariance up` until the block ends.

    Raises:
        CovarianceError: it does not come up; its last lines are in the sentence.
    """
    readable, writable = os.pipe()
    with (folder / "stack.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "deploy", "up", "--ready-fd", str(writable)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=(writable,),
            start_new_session=True,
        )
    os.close(writable)
    try:
        # The descriptor is readable, and empty, when the stack has ended too.
        ready, _, _ = select.select([readable], [], [], _START_SECONDS)
        if not ready or not os.read(readable, 1):
            last = "\n".join((folder / "stack.log").read_text(errors="replace").splitlines()[-12:])
            raise CovarianceError(f"The stack does not come up. The end of {folder / 'stack.log'}:\n{last}")
        yield
    finally:
        os.close(readable)
        with console.status("Stopping"):
            process.terminate()
            process.wait()


def _send(samples: Sequence[Sample], peers: Sequence[Peer]) -> int:
    """Send every film to every peer, as a modality that knows both.

    Raises:
        CovarianceError: one was not stored.
    """

    def check(item: SendItem, outcome: SendOutcome) -> None:
        if outcome.status is None or next_step_of(outcome.status) is not NextStep.STORED:
            answer = "no answer" if outcome.status is None else f"status 0x{outcome.status:04X}"
            raise CovarianceError(f"{item.path.name} was not stored: {answer}.")

    items = [item for sample in samples for item in sample.items]
    # The PACS first: results are to find their study there.
    for peer in reversed(peers):
        send_items(peer, items, check)
    return len(items)


@dataclass
class _Overlays:
    """Saves every secondary capture as a PNG, once."""

    folder: Path
    held: Callable[[str], Path | None]
    """Where a stand-in PACS keeps an object."""
    saved: set[str] = field(default_factory=set)

    def save(self, label: str, outputs: Iterable[OutputRecord]) -> None:
        """Save what is not saved yet."""
        name = "-".join("".join(c if c.isalnum() else " " for c in label.lower()).split())
        captures = [one for one in outputs if one.role is Role.SC]
        for number, one in enumerate(captures, start=1):
            # The outbox forgets what the PACS has committed to.
            found = next(
                (p for p in (Path(one.path), self.held(one.sop_instance_uid)) if p and p.exists()), None
            )
            if found is not None and one.sop_instance_uid not in self.saved:
                save_overlay(
                    found.read_bytes(), self.folder / f"{name}{f'-{number}' if len(captures) > 1 else ''}.png"
                )
                self.saved.add(one.sop_instance_uid)


def _watch(
    console: Console,
    ledger: Ledger,
    samples: Sequence[Sample],
    overlays: _Overlays,
    *,
    patience: float,
    proof: str,
) -> list[StudyProgress]:
    """Show how the studies get on until all are finished or patience ends."""
    deadline = time.monotonic() + patience
    rows = {
        one.study_instance_uid: progress_of(None, label=one.label, images=len(one.items)) for one in samples
    }
    proof_expected = proof != _PROOFS["none"]

    def table() -> Table:
        return progress_table(list(rows.values()), proof=proof)

    with Live(table(), console=console, auto_refresh=False) as live:
        while time.monotonic() < deadline:
            for sample in (one for one in samples if not rows[one.study_instance_uid].finished):
                record = ledger.study(sample.study_instance_uid)
                for result in record.results if record else ():
                    overlays.save(sample.label, result.outputs)
                rows[sample.study_instance_uid] = progress_of(
                    record, label=sample.label, images=len(sample.items), proof_expected=proof_expected
                )
            live.update(table(), refresh=True)
            if all(row.finished for row in rows.values()):
                break
            time.sleep(_LOOK_SECONDS)
    console.print()
    return list(rows.values())


def _conclude(
    console: Console,
    rows: Sequence[StudyProgress],
    folder: Path,
    *,
    phantoms: bool,
    proof: str,
    seconds: float,
) -> None:
    done = sum(row.succeeded for row in rows)
    style, mark = ("green", "✓") if done == len(rows) else ("bold red", "✗")
    told = "without proof" if proof == _PROOFS["none"] else "proven"
    console.print(
        f"[{style}]{mark} {done} of {len(rows)} studies are in the PACS, {told}[/], {seconds:.0f} s in all"
    )
    if phantoms:
        console.print(_PHANTOM_NOTE, style="yellow")
    console.print("Research software, not a medical device.", style="dim")
    overlays = sorted((folder / "overlays").glob("*.png"))
    command = _near(Path(sys.executable).with_name("covariance"))
    # Only the stand-in's store lies here; a real PACS shows what it got in its own viewer.
    seen = f"{_near(folder / 'overlays')} ({len(overlays)} PNG)" if overlays else "in the studies at the PACS"
    console.print(f"Overlays  {seen}", soft_wrap=True)
    console.print(f"Log       {_near(folder / 'stack.log')}", soft_wrap=True)
    console.print(f"Look      {command} --config {_near(folder / 'covariance.toml')} status", soft_wrap=True)


def _near(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
