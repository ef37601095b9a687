"""Films and files for the worker's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from datetime import UTC, datetime
from functools import cache
from io import BytesIO
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from dicom_node import uids
from dicom_node.spool import Arrival, Spool, SpooledInstance
from tests.worker.build import Clock, settings_in
from worker.bundle import Bundle
from worker.engines import Engine
from worker.engines.select import open_engine
from worker.ledger import Ledger, open_ledger
from worker.phantom import phantom_dataset
from worker.settings import DEFAULT_BUNDLE, WorkerSection

ARRIVAL = Arrival(
    calling_ae="MODALITY",
    called_ae="COVARIANCE",
    address="127.0.0.1",
    received_at=datetime(2026, 1, 1, tzinfo=UTC),
)


@pytest.fixture(scope="session")
def _phantom_file() -> bytes:
    file = BytesIO()
    phantom_dataset(1, rows=520, columns=430).save_as(file, enforce_file_format=True)
    return file.getvalue()


@pytest.fixture
def phantom(_phantom_file) -> Dataset:
    """A phantom's CR of 520 x 430 pixels that a test may alter."""
    from pydicom import dcmread

    return dcmread(BytesIO(_phantom_file))


@pytest.fixture
def write(tmp_path) -> Callable[[Dataset], Path]:
    """`write(ds)` makes a Part 10 file."""

    def write_file(ds: Dataset) -> Path:
        path = tmp_path / "film.dcm"
        ds.save_as(path, enforce_file_format=True)
        return path

    return write_file


@pytest.fixture
def spooled(tmp_path) -> Callable[[Dataset], SpooledInstance]:
    """`spooled(ds)` puts a data set into a spool, as the node would."""
    spool = Spool(tmp_path / "spool")
    spool.prepare()

    def store(ds: Dataset) -> SpooledInstance:
        file = BytesIO()
        ds.save_as(file, enforce_file_format=True)
        content = file.getvalue()
        start = 144 + int.from_bytes(content[140:144], "little")  # after the group 0002
        syntax = str(ds.file_meta.TransferSyntaxUID)
        instance, _ = spool.store(content[start:], transfer_syntax_uid=syntax, arrival=ARRIVAL)
        return instance

    return store


_ENCODERS: dict[str, Callable[[np.ndarray, int], bytes]] = {
    "1.2.840.10008.1.2.4.50": lambda grey, bits: imagecodecs.jpeg8_encode(grey, level=92),
    "1.2.840.10008.1.2.4.51": lambda grey, bits: imagecodecs.jpeg8_encode(grey, level=92, bitspersample=bits),
    "1.2.840.10008.1.2.4.57": lambda grey, bits: imagecodecs.jpeg8_encode(
        grey, lossless=True, predictor=6, bitspersample=bits
    ),
    "1.2.840.10008.1.2.4.70": lambda grey, bits: imagecodecs.jpeg8_encode(
        grey, lossless=True, predictor=1, bitspersample=bits
    ),
    "1.2.840.10008.1.2.4.80": lambda grey, bits: imagecodecs.jpegls_encode(grey),
    "1.2.840.10008.1.2.4.81": lambda grey, bits: imagecodecs.jpegls_encode(grey, level=2),
    "1.2.840.10008.1.2.4.90": lambda grey, bits: imagecodecs.jpeg2k_encode(
        grey, reversible=True, bitspersample=bits, codecformat="j2k"
    ),
    "1.2.840.10008.1.2.4.91": lambda grey, bits: imagecodecs.jpeg2k_encode(
        grey, level=50, bitspersample=bits, codecformat="j2k"
    ),
    "1.2.840.10008.1.2.4.201": lambda grey, bits: imagecodecs.htj2k_encode(grey, reversible=True),
    "1.2.840.10008.1.2.4.202": lambda grey, bits: imagecodecs.htj2k_encode(grey, reversible=True),
    "1.2.840.10008.1.2.4.203": lambda grey, bits: imagecodecs.htj2k_encode(
        # The step is a share of the word's range, of which the film fills a part.
        grey,
        level=0.001 * 2.0 ** (bits - 8 * grey.itemsize),
        reversible=False,
    ),
    "1.2.840.10008.1.2.5": lambda grey, bits: _rle_encode_frame(grey),
}


def _rle_encode_frame(grey: np.ndarray) -> bytes:
    """The bytes of a sample as planes, each in literal PackBits runs (PS3.5 G)."""
    planes = grey.astype(f">u{grey.itemsize}").view(np.uint8).reshape(-1, grey.itemsize).T
    segments = []
    for plane in planes:
        content = plane.tobytes()
        runs = [content[at : at + 128] for at in range(0, len(content), 128)]
        segment = b"".join(bytes([len(run) - 1]) + run for run in runs)
        segments.append(segment + b"\0" * (len(segment) % 2))
    starts = np.cumsum([64] + [len(segment) for segment in segments])[:-1]
    header = [len(segments), *starts.tolist()]
    return np.array(header + [0] * (16 - len(header)), "<u4").tobytes() + b"".join(segments)


@cache
def _template(photometric: str, modality: str) -> Dataset:
    return phantom_dataset(1, rows=32, columns=32, photometric=photometric, modality=modality)


def wrap(
    grey: np.ndarray, *, bits: int, syntax: str, photometric: str = "MONOCHROME2", modality: str = "CR"
) -> Dataset:
    """A CR or DX around a film, bright where dense, of values that fit `bits`."""
    ds = deepcopy(_template(photometric, modality))
    stored = ((1 << bits) - 1 - grey.astype(np.int64)) if photometric == "MONOCHROME1" else grey
    stored = np.ascontiguousarray(stored.astype(np.uint8 if bits == 8 else np.uint16))
    ds.Rows, ds.Columns = stored.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8 * stored.itemsize, bits, bits - 1
    ds.WindowCenter, ds.WindowWidth = str(1 << (bits - 1)), str(1 << bits)
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    if syntax in _ENCODERS:
        ds.PixelData = encapsulate([_ENCODERS[syntax](stored, bits)])
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    else:
        order = ">" if syntax == uids.EXPLICIT_VR_BIG_ENDIAN else "<"
        content = stored.astype(f"{order}u{stored.itemsize}").tobytes()
        ds.PixelData = content + b"\0" * (len(content) % 2)
        ds["PixelData"].VR = "OB" if bits == 8 else "OW"
    return ds


@pytest.fixture(scope="session", name="wrap")
def wrap_fixture() -> Callable[..., Dataset]:
    """`wrap(grey, bits=, syntax=, ...)` makes a film's data set in any accepted transfer syntax."""
    return wrap


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    """The bundle that the worker ships."""
    return Bundle(DEFAULT_BUNDLE)


@pytest.fixture(scope="session")
def engine(bundle, tmp_path_factory) -> Iterator[Engine]:
    """The CPU engine with the shipped bundle, golden cases replayed."""
    opened = open_engine(bundle, WorkerSection(engine_cache=tmp_path_factory.mktemp("engine")))
    yield opened
    opened.close()


@pytest.fixture
def clock() -> Clock:
    """The time, as the test has it."""
    return Clock()


@pytest.fixture
def spool(tmp_path) -> Spool:
    """A spool that is ready."""
    spool = Spool(tmp_path / "spool")
    spool.prepare()
    return spool


@pytest.fixture
def ledger(tmp_path, clock) -> Iterator[Ledger]:
    """A ledger on SQLite beside the spool, on the time of `clock`."""
    with open_ledger(settings_in(tmp_path), migrate=True, clock=clock) as ledger:
        yield ledger
