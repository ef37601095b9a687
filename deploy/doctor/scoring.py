"""What scores: the bundle, the engine behind its parity gate, and a GPU where there is one."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from deploy.doctor.check import Check, fail, ok, warn
from deploy.doctor.network import in_container
from dicom_node.errors import ConfigurationError
from worker.engines.select import open_engine
from worker.model_store import open_bundle_in_use
from worker.parity import replay_golden
from worker.settings import Settings

_DRIVER = Path("/proc/driver/nvidia/version")


def bundle(settings: Settings) -> Iterator[Check]:
    """Whether the bundle is whole and the one that is meant."""
    found = open_bundle_in_use(settings.worker)
    manifest = found.manifest
    told = f"{manifest.name} {manifest.version}, bundle_sha256 {found.sha256}, every digest is right."
    if settings.worker.bundle_sha256:
        yield ok("bundle", told)
    else:
        yield ok("bundle", f"{told} It is not pinned (worker.bundle_sha256).")


def engine(settings: Settings) -> Iterator[Check]:
    """Whether the engine agrees with the model on every golden case."""
    found = open_bundle_in_use(settings.worker)
    try:
        opened = open_engine(found, settings.worker)
    except ConfigurationError as error:
        yield fail("engine", str(error), "It will not serve: another engine, machine or bundle is needed.")
        return
    except ModuleNotFoundError as error:
        if in_container():  # the image ops
            yield ok("engine", "None is installed here: ask in a worker, `covariance doctor --only engine`.")
        else:
            yield fail("engine", f"{error.name} is not installed here.", "Install what uv.lock names.")
        return
    try:
        worst, golden = replay_golden(found, opened), found.manifest.golden
    finally:
        opened.close()
    yield ok(
        "engine",
        f"{opened.name} ({opened.precision}) agrees on {len(golden.cases)} golden cases: worst logit off by "
        f"{worst:.4f}, {golden.logit_tolerance:g} is allowed.",
    )


def gpu(settings: Settings) -> Iterator[Check]:
    """GPU, driver and TensorRT, as far as they are there."""
    needed = str(settings.worker.engine) == "tensorrt"
    driver, cards = _driver(), _cards()
    tensorrt = _version_of("tensorrt")
    told = f"GPU {', '.join(cards) or 'none'}, driver {driver or 'none'}, TensorRT {tensorrt or 'none'}."
    if needed and not (cards and driver and tensorrt):
        advice = "Install what is missing (NVIDIA driver, container toolkit, `make install EXTRAS=tensorrt`)."
        yield fail("gpu", f"worker.engine needs a GPU: {told}", advice)
    elif cards and str(settings.worker.engine) == "openvino":
        yield warn("gpu", f"{told} It is not used.", "worker.engine says which engine scores.")
    else:
        yield ok("gpu", told)


def _driver() -> str:
    try:
        words = _DRIVER.read_text().splitlines()[0].split()
    except (OSError, IndexError):
        return ""
    return next((word for word in words if word[0].isdigit() and "." in word), "")


def _cards() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
