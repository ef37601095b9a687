"""What one would write instead: ask Orthanc for changes, score in plain PyTorch, put a capture back.

`python -m tests.bench.polling_script HTTP_PORT`. It has no spool, ledger, proof or guard: a film that it
fails on is lost, and so is what arrives while it is down between two of its questions.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from io import BytesIO

import cv2
import numpy as np
import torch
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from worker.bundle import Bundle
from worker.engines.torch_network import Network
from worker.preprocess import to_batch, to_input
from worker.settings import DEFAULT_BUNDLE

_PAUSE_SECONDS = 0.1
"""Between two questions when nothing came. Scripts that one finds wait for a second or more."""
_PAGE = 1024


class Rest:
    """Orthanc's REST interface."""

    def __init__(self, port: int) -> None:
        self._root = f"http://127.0.0.1:{port}"

    def ask(self, path: str, body: bytes | None = None) -> bytes:
        # A connection for each: Orthanc closes one that was kept while the network computes.
        with urllib.request.urlopen(f"{self._root}{path}", body, timeout=60) as response:
            return response.read()


def score(network: Network, film: Dataset) -> tuple[np.ndarray, float]:
    """The film with its activation map on it, and the logit."""
    pixels = film.pixel_array
    with torch.inference_mode():
        logits, maps = network(torch.from_numpy(to_batch([to_input(pixels)])))
    grey = cv2.normalize(cv2.resize(pixels, (_PAGE, _PAGE)), None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)
    heat = cv2.normalize(
        cv2.resize(maps[0].numpy(), (_PAGE, _PAGE)), None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U
    )
    coloured = cv2.cvtColor(cv2.applyColorMap(heat, cv2.COLORMAP_JET), cv2.COLOR_BGR2RGB)
    page = cv2.addWeighted(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), 0.6, coloured, 0.4, 0)
    return page, float(logits[0])


def capture_of(film: Dataset, page: np.ndarray, logit: float) -> bytes:
    """A secondary capture in the study of the film."""
    capture = Dataset()
    for name in ("PatientID", "PatientName", "StudyInstanceUID", "StudyDate", "AccessionNumber", "StudyID"):
        setattr(capture, name, film.get(name, ""))
    capture.SOPClassUID, capture.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    capture.SeriesInstanceUID, capture.Modality = generate_uid(), "OT"
    capture.SeriesDescription = f"logit {logit:.3f}"
    capture.Rows, capture.Columns = page.shape[:2]
    capture.SamplesPerPixel, capture.PhotometricInterpretation, capture.PlanarConfiguration = 3, "RGB", 0
    capture.BitsAllocated, capture.BitsStored, capture.HighBit, capture.PixelRepresentation = 8, 8, 7, 0
    capture.PixelData = page.tobytes()
    capture.file_meta = FileMetaDataset()
    capture.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    content = BytesIO()
    capture.save_as(content, enforce_file_format=True)
    return content.getvalue()


def main() -> None:
    rest = Rest(int(sys.argv[1]))
    network = Network(Bundle(DEFAULT_BUNDLE).model(), torch.device("cpu"), torch.float32)
    since = 0
    while True:
        changes = json.loads(rest.ask(f"/changes?since={since}&limit=100"))
        since = changes["Last"]
        for change in changes["Changes"]:
            if change["ChangeType"] != "NewInstance":
                continue
            film = dcmread(BytesIO(rest.ask(f"/instances/{change['ID']}/file")))
            if film.Modality == "CR":
                rest.ask("/instances", capture_of(film, *score(network, film)))
        if not changes["Changes"]:
            time.sleep(_PAUSE_SECONDS)


main()
