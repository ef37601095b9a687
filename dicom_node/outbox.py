"""What is to go out: the exact bytes of our outputs, until every destination has answered for them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from dicom_node.durable import Workbench, make_directory
from dicom_node.failpoints import reach
from dicom_node.uids import require_uids

_NAME = re.compile(r"([0-9.]{1,64})_([0-9a-f]{64})\.dcm")
"""SOPInstanceUID, and digest of the file."""


class Outbox:
    """Outputs as `<study>/<object>_<sha256>.dcm`.

    The name holds the digest: two workers that made an output twice do not overwrite each other.
    """

    def __init__(self, directory: Path, workbench: Workbench) -> None:
        self._directory = directory
        self._workbench = workbench

    def keep(
        self, study_instance_uid: str, sop_instance_uid: str, content: bytes, *, sha256: str | None = None
    ) -> Path:
        """Keep the exact bytes of an output; who knows their SHA-256 saves reading them once more.

        Raises:
            SpoolFull, OSError: there is no room for it.
        """
        require_uids(study_instance_uid, sop_instance_uid)
        directory = self._directory / study_instance_uid
        make_directory(directory)
        path = directory / f"{sop_instance_uid}_{sha256 or hashlib.sha256(content).hexdigest()}.dcm"
        self._workbench.write(path, content)
        reach("outbox.after_keep")
        return path

    def drop(self, path: Path) -> None:
        """Remove an output that every destination has committed to; one that is gone is fine."""
        if path.parent.parent != self._directory:
            raise ValueError("only outputs may be dropped")
        reach("outbox.before_drop")
        path.unlink(missing_ok=True)
        reach("outbox.after_drop")
        with contextlib.suppress(OSError):
            path.parent.rmdir()

    def kept(self, *, before: datetime) -> Iterator[Path]:
        """The outputs that were kept before a moment."""
        moment = before.timestamp()
        for study in _listed(self._directory):
            for entry in _listed(study) if study.is_dir() else ():
                with contextlib.suppress(FileNotFoundError):  # dropped meanwhile
                    if _NAME.fullmatch(entry.name) and entry.stat().st_mtime < moment:
                        yield Path(entry.path)


def _listed(directory: Path | os.DirEntry[str]) -> list[os.DirEntry[str]]:
    # Gone meanwhile, or not ours to read: the next look may find more.
    with contextlib.suppress(FileNotFoundError, PermissionError), os.scandir(directory) as entries:
        return list(entries)
    return []
