"""The store of model bundles below the data directory, and which of them is in use.

A bundle lies in a directory named by the SHA-256 of its manifest, which names the digests of all its other
files. `active` is a file with that name in it, and `previous` one with the name before: each replaced in one
step, so that a worker that starts at that moment reads the one or the other.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from dicom_node.durable import make_directory, synchronise
from dicom_node.errors import ConfigurationError
from worker.bundle import Bundle
from worker.settings import DEFAULT_BUNDLE, WorkerSection

_NAME = re.compile(r"[0-9a-f]{64}")
_SHORTEST = 8
"""Characters of a digest that must be given."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A bundle of the store. `fault` is what is wrong with it; then nothing else of it is known."""

    bundle_sha256: str
    name: str = ""
    version: str = ""
    model_sha256: str = ""
    fault: str = ""


class ModelStore:
    """Bundles by digest. Raises `OSError` where the disk does not take part."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def install(self, directory: Path) -> Stored:
        """Copy a bundle into the store, after all its digests were checked; again is no harm.

        Raises:
            ConfigurationError: it is not whole, or it was made for another recipe.
        """
        bundle = Bundle(directory)
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        place = self.root / bundle.sha256
        if not place.is_dir():
            aside = self.root / f"{uuid.uuid4().hex}.part"
            make_directory(aside)
            try:
                # What the manifest names, and the card: whatever else lies there is not ours to spread.
                for file in self._files(bundle):
                    shutil.copyfile(file, aside / file.name)
                    _synchronise(aside / file.name)
                Bundle(aside, pinned=bundle.sha256)
                aside.rename(place)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
            synchronise(self.root)
        return _stored(place)

    @staticmethod
    def _files(bundle: Bundle) -> list[Path]:
        manifest = bundle.manifest
        parts = [manifest.model, manifest.golden.inputs]
        if manifest.int8:
            parts += [manifest.int8.graph, manifest.int8.weights]
        named = ["manifest.json", *(part.name for part in parts)]
        found = [bundle.directory / Path(name).name for name in named]
        return found + [one for one in bundle.directory.glob("*.md") if one.is_file()]

    def bundles(self) -> list[Stored]:
        """All of them, every digest checked anew."""
        if not self.root.is_dir():
            return []
        return [_stored(one) for one in sorted(self.root.iterdir()) if _NAME.fullmatch(one.name)]

    def find(self, digest: str) -> Path:
        """The directory of the bundle whose digest begins so.

        Raises:
            ConfigurationError: none, or more than one, does.
        """
        known = [one for one in self.root.iterdir() if one.is_dir()] if self.root.is_dir() else []
        found = [one for one in known if _NAME.fullmatch(one.name) and one.name.startswith(digest)]
        if len(digest) < _SHORTEST or len(found) != 1:
            raise ConfigurationError(
                f"{'More than one' if len(found) > 1 else 'No'} bundle in {self.root} begins with "
                f"{digest[:64]}: `covariance model list` names them; {_SHORTEST} characters do."
            )
        return found[0]

    @property
    def active(self) -> str | None:
        """Digest of the bundle in use; None before the first activation."""
        return self._read("active")

    @property
    def previous(self) -> str | None:
        """Digest of the bundle that was in use before."""
        return self._read("previous")

    def activate(self, digest: str | None) -> None:
        """Put a bundle in use, from the next start of a worker; None is the one that comes with us."""
        before = self.active
        if digest is not None:
            self.find(digest)
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._write("previous", before or "")
        self._write("active", digest or "")

    def _read(self, name: str) -> str | None:
        try:
            text = (self.root / name).read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return None
        if text and not _NAME.fullmatch(text):
            raise ConfigurationError(
                f"{self.root / name} names no bundle: `covariance model activate` mends it."
            )
        return text or None

    def _write(self, name: str, text: str) -> None:
        aside = self.root / f"{name}.{uuid.uuid4().hex}.part"
        aside.write_text(text + "\n", encoding="ascii")
        _synchronise(aside)
        aside.rename(self.root / name)
        synchronise(self.root)


def bundle_in_use(worker: WorkerSection) -> tuple[Path, str]:
    """Where the bundle in use is, and the digest that it must have (empty: any).

    `worker.bundle` goes before the store: who names a directory in the settings means it.

    Raises:
        ConfigurationError: the store names a bundle that it does not hold.
    """
    if worker.bundle != DEFAULT_BUNDLE:
        return worker.bundle, worker.bundle_sha256
    store = ModelStore(worker.models)
    active = store.active
    if active is None:
        return worker.bundle, worker.bundle_sha256
    return store.find(active), worker.bundle_sha256 or active


def open_bundle_in_use(worker: WorkerSection) -> Bundle:
    """Open it, every digest checked. Raises `ConfigurationError`."""
    directory, pinned = bundle_in_use(worker)
    return Bundle(directory, pinned=pinned)


def _stored(place: Path) -> Stored:
    try:
        bundle = Bundle(place, pinned=place.name)
    except ConfigurationError as error:
        return Stored(bundle_sha256=place.name, fault=str(error))
    manifest = bundle.manifest
    return Stored(
        bundle_sha256=place.name,
        name=manifest.name,
        version=manifest.version,
        model_sha256=manifest.model.sha256,
    )


def _synchronise(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
