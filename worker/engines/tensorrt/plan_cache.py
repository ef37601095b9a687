"""Plans on the disk. A plan is code for one card: it is taken only when every part of its key is ours.

Layout of the directory: `<key>.plan`, `<key>.json` with the key in full and the digest of the plan, and
`<key>.lock`. The JSON is written last: without it there is no plan.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from dicom_node.durable import Workbench
from dicom_node.errors import ConfigurationError, Retryable
from dicom_node.logs import get_logger

log = get_logger("plan_cache")

FORMAT = 1
_OTHERS_MAY_WRITE = 0o022


@dataclass(frozen=True, kw_only=True)
class PlanKey:
    """All that a plan depends on: another value of any part is another plan."""

    library: str
    """`tensorrt` or `tensorrt_rtx`."""
    version: str
    """Of the library; a plan loads in no other."""
    compute_capability: str
    """SM of the card, e.g. `9.0`."""
    card: str
    """Its name, e.g. `NVIDIA H100 80GB HBM3`: the tactics were timed on it."""
    driver: str
    onnx_sha256: str
    precision: str
    buckets: tuple[int, ...]
    """Batch sizes of the profiles."""
    size: int
    """Side of the network's input in pixels."""
    flags: tuple[str, ...]
    format: int = FORMAT

    @property
    def digest(self) -> str:
        """SHA-256 over all parts; the name of the files."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


class PlanCache:
    """A directory of plans that belongs to this user and to nobody else."""

    def __init__(self, directory: Path) -> None:
        """Make the directory.

        Raises:
            ConfigurationError: it cannot be made, or belongs to another user.
        """
        self._directory = directory
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._bench = Workbench(directory, 0)
            self._bench.sweep()
        except OSError as error:
            raise _unusable(directory, error) from None
        # Who may write here decides on what runs in this process.
        if directory.stat().st_uid != os.geteuid():
            raise ConfigurationError(
                f"{directory} belongs to another user: name a directory of the worker's own as "
                "worker.engine_cache."
            )

    def get(self, key: PlanKey, build: Callable[[], bytes]) -> bytes:
        """The plan for a key: the one that is kept, if it is whole and ours, or else a new one.

        Of several processes that want the same plan one builds and the others wait for it.

        Raises:
            ConfigurationError: the directory cannot be used, or whatever `build` raises.
        """
        try:
            with self._locked(key):
                plan = self._kept(key)
                if plan is None:
                    log.info("plan_build", card=key.card, library=key.library, buckets=key.buckets)
                    plan = build()
                    self._keep(key, plan)
                return plan
        except OSError as error:
            raise _unusable(self._directory, error) from None

    def drop(self, key: PlanKey) -> None:
        """Forget the plan for a key: it is whole, and yet it does not load."""
        with self._locked(key):
            self._path(key, "json").unlink(missing_ok=True)
            self._path(key, "plan").unlink(missing_ok=True)

    def _path(self, key: PlanKey, suffix: str) -> Path:
        return self._directory / f"{key.digest[:32]}.{suffix}"

    @contextmanager
    def _locked(self, key: PlanKey) -> Iterator[None]:
        # The lock dies with its process. Nobody removes the file: two could then hold "the" lock.
        descriptor = os.open(self._path(key, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _kept(self, key: PlanKey) -> bytes | None:
        try:
            if self._others_may_write(key):
                log.warning("plan_rejected", why="others may write to it")
                self._directory.chmod(0o700)
                return None
            told = json.loads(self._path(key, "json").read_bytes())
            plan = self._path(key, "plan").read_bytes()
        except FileNotFoundError:
            return None
        except ValueError:
            told, plan = {}, b""
        expected = {"key": json.loads(json.dumps(asdict(key))), "sha256": hashlib.sha256(plan).hexdigest()}
        if told != expected:
            log.warning("plan_rejected", why="its digest or its key is another")
            return None
        return plan

    def _others_may_write(self, key: PlanKey) -> bool:
        looked_at = (self._directory, self._path(key, "json"), self._path(key, "plan"))
        return any(
            status.st_mode & _OTHERS_MAY_WRITE or status.st_uid != os.geteuid()
            for status in (path.lstat() for path in looked_at)
        )

    def _keep(self, key: PlanKey, plan: bytes) -> None:
        told = {"key": asdict(key), "sha256": hashlib.sha256(plan).hexdigest()}
        try:
            self._path(key, "json").unlink(missing_ok=True)
            self._bench.write(self._path(key, "plan"), plan)
            self._bench.write(self._path(key, "json"), json.dumps(told, indent=2).encode())
        except (OSError, Retryable) as error:
            # It serves all the same; the next start builds again.
            log.warning("plan_not_kept", directory=str(self._directory), error=type(error).__name__)


def _unusable(directory: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"{directory} cannot be used ({error.strerror}): name a directory that the worker may write to as "
        "worker.engine_cache."
    )
