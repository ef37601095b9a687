"""A whole CoVariance in real processes, and its neighbours: what integration tests and chaos are built of."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from pydicom import Dataset, dcmwrite

from dicom_node.dispatch import Dispatcher
from worker.ledger import DeliveryState, Disposition, ImageRecord, Ledger, StudyRecord
from worker.settings import Settings

COVARIANCE = str(Path(sys.executable).with_name("covariance"))
PROVEN = {DeliveryState.COMMITTED, DeliveryState.VERIFIED}
ENVIRONMENT = {**os.environ, "TCP_NODELAY": "1"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def eventually(probe: Callable[[], Any], *, seconds: float = 60.0, what: str) -> Any:
    """Ask again and again until the answer is true, and return it; fail with `what` at the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        answer = probe()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.05)


def accepts(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@dataclass
class Program:
    """A child process with its output in a file; ended with the test whatever happens."""

    command: list[str]
    output: Path
    environment: dict[str, str] = field(default_factory=dict)
    directory: Path | None = None
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> Program:
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**ENVIRONMENT, **self.environment},
                cwd=self.directory,
                start_new_session=True,
            )
        return self

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, number)
            self.process.wait(30)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()


@dataclass
class Orthanc:
    """A real Orthanc, asked over its REST interface."""

    port: int
    http_port: int
    program: Program
    ae_title: str = "ORTHANC"

    def start(self) -> None:
        self.program.start()
        eventually(lambda: accepts(self.http_port) and accepts(self.port), what="Orthanc listens")

    def rest(self, path: str, body: bytes | dict[str, Any] | None = None) -> Any:
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}{path}", data=data)
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.loads(response.read())

    def file(self, instance: str) -> bytes:
        url = f"http://127.0.0.1:{self.http_port}/instances/{instance}/file"
        with urllib.request.urlopen(url, timeout=60) as response:
            return response.read()

    def find(self, **query: str) -> list[str]:
        level = query.pop("level", "Instance")
        return self.rest("/tools/find", {"Level": level, "Query": query})

    def series(self, study_instance_uid: str) -> list[dict[str, Any]]:
        """Every series of the study with its main tags and instances."""
        found = self.find(level="Series", StudyInstanceUID=study_instance_uid)
        return [self.rest(f"/series/{one}") for one in found]


@dataclass
class System:
    """One CoVariance: node, worker and deliverer as processes, and their ledger."""

    folder: Path
    port: int
    redis_port: int
    programs: dict[str, Program]
    settings: Settings
    ledger: Ledger

    def start(self, *names: str) -> None:
        for name in names or tuple(self.programs):
            self.programs[name].start()
        if "node" in (names or self.programs):
            eventually(lambda: accepts(self.port), what="the node listens")

    def stop(self) -> None:
        for program in reversed(self.programs.values()):
            program.stop()
        self.ledger.close()

    def result(self, study_instance_uid: str, *, generation: int = 1) -> StudyRecord | None:
        """The study once its result of that generation is in force and proven at every destination."""
        record = self.ledger.study(study_instance_uid)
        in_force = [r for r in record.results if r.superseded_at is None] if record else []
        if not in_force or in_force[0].generation != generation:
            return None
        deliveries = [delivery for output in in_force[0].outputs for delivery in output.deliveries]
        return record if deliveries and all(d.state in PROVEN for d in deliveries) else None

    def wait_for(self, study_instance_uid: str, *, generation: int = 1) -> StudyRecord:
        what = f"generation {generation} of the study is proven at the PACS"
        return eventually(lambda: self.result(study_instance_uid, generation=generation), what=what)

    def wait_for_image(self, study_instance_uid: str, sop_instance_uid: str) -> ImageRecord:
        """The image once it has ended somewhere."""

        def ended() -> ImageRecord | None:
            record = self.ledger.study(study_instance_uid)
            for image in record.images if record else ():
                if image.sop_instance_uid == sop_instance_uid and image.disposition != Disposition.PENDING:
                    return image
            return None

        return eventually(ended, what="the image has ended as scored, by policy or quarantined")

    def send(self, *datasets: Dataset, calling: str = "MODALITY") -> None:
        """Send as a modality does: DCMTK's storescu, one association."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        files = []
        for number, dataset in enumerate(datasets):
            files.append(str(folder / f"{number}.dcm"))
            dcmwrite(files[-1], dataset, enforce_file_format=True)
        subprocess.run(
            ["storescu", "-R", "-aet", calling, "-aec", "COVARIANCE", "127.0.0.1", str(self.port), *files],
            check=True,
            env=ENVIRONMENT,
            timeout=120,
        )

    def flush_broker(self) -> None:
        with redis.Redis(port=self.redis_port) as client:
            client.flushall()

    def waiting_messages(self) -> int:
        return Dispatcher(self.settings).depth() or 0

    def logs(self) -> str:
        return "\n".join(p.output.read_text() for p in self.programs.values() if p.output.exists())


def orthanc_configuration(folder: Path, port: int, http_port: int, node_port: int) -> dict[str, Any]:
    """An Orthanc that knows our node as the modality `covariance`."""
    return {
        "Name": "test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "DicomAet": "ORTHANC",
        "DicomPort": port,
        "HttpPort": http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowFind": True,
        "StoreMD5ForAttachments": False,
        "DicomModalities": {
            "covariance": {
                "AET": "COVARIANCE",
                "Host": "127.0.0.1",
                "Port": node_port,
                "AllowStorageCommitment": True,
            }
        },
    }


def as_toml(tables: dict[str, dict[str, Any]], destinations: list[dict[str, Any]]) -> str:
    """The text of a settings file."""
    lines = []
    for name, values in tables.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    for destination in destinations:
        lines += ["[[destinations]]", *(f"{key} = {json.dumps(value)}" for key, value in destination.items())]
    return "\n".join(lines) + "\n"
