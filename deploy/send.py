"""Send files to a DICOM peer as a modality does, with a bar that moves."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pydicom import dcmread
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dicom_node.errors import ConfigurationError
from dicom_node.file_meta import data_set_offset
from dicom_node.status import NextStep, next_step_of
from dicom_node.store_scu import Peer, SendItem, SendOutcome, StoreAssociation
from dicom_node.tls import ClientTls

_TARGET = re.compile(r"(?P<host>.+):(?P<port>\d{1,5})/(?P<ae>[^\\]{1,16})")
_SECONDS = 30.0
_BATCH = 200
"""Objects over one association."""


def parse_target(text: str, *, calling_ae: str, tls: ClientTls | None = None) -> Peer:
    """Read `host:port/AET`.

    Raises:
        ConfigurationError: it is not of that form.
    """
    match = _TARGET.fullmatch(text.strip())
    if match is None or int(match["port"]) > 65535:
        raise ConfigurationError(
            f"{text!r} names no DICOM peer: write host:port/AET, e.g. 10.0.0.5:104/PACS."
        )
    return Peer(
        ae_title=match["ae"],
        host=match["host"].strip("[]"),
        port=int(match["port"]),
        calling_ae=calling_ae,
        timeout=_SECONDS,
        tls=tls,
    )


def find_items(paths: Sequence[Path]) -> Iterator[SendItem | Path]:
    """The DICOM files among `paths` and below them, and the path of each file that is none."""
    for path in paths:
        files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
        for file in files:
            yield _item(file) or file


def _item(file: Path) -> SendItem | None:
    try:
        header = dcmread(file, stop_before_pixels=True, specific_tags=["SOPClassUID", "SOPInstanceUID"])
        with file.open("rb") as content:
            data_set_offset(content.fileno())
        return SendItem(
            sop_class_uid=str(header.SOPClassUID),
            sop_instance_uid=str(header.SOPInstanceUID),
            transfer_syntax_uid=str(header.file_meta.TransferSyntaxUID),
            path=file,
        )
    except Exception:  # noqa: BLE001 (pydicom has many words for what is no DICOM)
        return None


def send_items(
    peer: Peer, items: Sequence[SendItem], after_each: Callable[[SendItem, SendOutcome], None]
) -> None:
    """Send over as few associations as batches allow.

    Raises:
        PeerUnavailable: the peer does not answer or rejects us; the sentence says which and why.
    """
    for start in range(0, len(items), _BATCH):
        batch = items[start : start + _BATCH]
        with StoreAssociation(peer, batch, commitment=False) as association:
            for item in batch:
                after_each(item, association.send(item))


def send_paths(paths: Sequence[Path], target: str, *, calling_ae: str, tls: ClientTls | None = None) -> int:
    """Send what is found, print what was not stored, and return the exit code."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    peer = parse_target(target, calling_ae=calling_ae, tls=tls)
    found = list(find_items(paths))
    items = [one for one in found if isinstance(one, SendItem)]
    failures = 0
    for path in (one for one in found if isinstance(one, Path)):
        console.print(f"[red]not sent[/]    {escape(str(path))}: not a readable DICOM file")
        failures += 1
    columns = (TextColumn("Sending"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=len(items))

        def after_each(item: SendItem, outcome: SendOutcome) -> None:
            nonlocal failures
            progress.advance(bar)
            if outcome.status is None or next_step_of(outcome.status) is not NextStep.STORED:
                answer = "no answer" if outcome.status is None else f"status 0x{outcome.status:04X}"
                console.print(f"[red]not stored[/]  {escape(str(item.path))}: {answer}")
                failures += 1

        send_items(peer, items, after_each)
    console.print(
        f"{len(found) - failures} of {len(found)} stored at {peer.ae_title} ({peer.host}:{peer.port})."
    )
    return 1 if failures or not found else 0
