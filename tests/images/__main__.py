"""`make images-smoke`: the try-out of the compose files, with the images that `make images` has built.

Everything runs in a network and a mount namespace of its own, so that the ports are those of the compose
files whatever else this machine runs, and nothing outside is reached. A phantom study is sent, its results
come into Orthanc, all processes tell their health and stop when they are asked to.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydicom import dcmwrite

from tests.deploy.drift import IMAGES
from tests.deploy.test_compose import COMPOSE, OURS, merged
from tests.images.container import Container, Root
from tests.images.neighbours import lay_over, start_orthanc, start_postgresql, start_redis
from tests.integration.system import Orthanc, eventually
from worker.phantom import phantom_dataset

_INSIDE = "--inside"
# Whoever ends this ends all of it.
_NAMESPACES = ["setpriv", "--pdeathsig", "KILL"]
_NAMESPACES += ["unshare", "--net", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child"]
_NAMES = "127.0.0.1 localhost postgres redis orthanc node\n"
_RUNS = sorted(IMAGES - {"base", "builder", "worker-gpu"})
_PATIENCE_SECONDS = 240.0
"""A machine with two busy cores compiles the engine for a minute."""


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 (what the operator of `make` reads)


class Site:
    """The merged compose files, as containers."""

    def __init__(self, folder: Path, roots: dict[str, Root]) -> None:
        self.folder = folder
        self.whole = merged("compose", "tryout")
        self._roots = roots
        self.running: dict[str, Container] = {}
        (folder / "hosts").write_text(_NAMES)
        for name in self.whole["volumes"]:
            volume = folder / "volumes" / name
            volume.mkdir(parents=True)
            # As a new named volume takes the owner of the folder in the image.
            os.chown(volume, 10001, 10001)
            volume.chmod(0o700)
        subprocess.run([str(COMPOSE / "make-secrets"), str(folder / "secrets")], check=True)

    def container(self, name: str, command: list[str] | None = None, **mounts: Path) -> Container:
        """The service of that name, not started."""
        service = self.whole["services"][name]
        image = OURS.fullmatch(service["image"])
        assert image is not None
        return Container(
            root=self._roots[image[1]],
            command=command or service["command"],
            entry_point=service.get("entrypoint"),
            environment=service["environment"],
            mounts={**self._mounts(name, service), **{f"/{k}": v for k, v in mounts.items()}},
            output=self.folder / f"{name}.log",
        )

    def _mounts(self, name: str, service: dict[str, Any]) -> dict[str, Path]:
        seen = self.folder / "run" / name / "secrets"
        seen.mkdir(parents=True, exist_ok=True)
        for one in service["secrets"]:
            source, target = (one, one) if isinstance(one, str) else (one["source"], one["target"])
            shutil.copy(self.folder / "secrets" / source, seen / target)
        mounts = {"/etc/hosts": self.folder / "hosts", "/run/secrets": seen}
        for one in service["configs"]:
            mounts[one["target"]] = COMPOSE / self.whole["configs"][one["source"]]["file"]
        for one in service["volumes"]:
            volume, _, place = one.partition(":")
            mounts[place] = self.folder / "volumes" / volume
        return mounts

    def run(self, name: str, command: list[str] | None = None, **mounts: Path) -> str:
        """What a service prints that ends by itself; it must end well."""
        one = self.container(name, command, **mounts)
        one.output.unlink(missing_ok=True)
        code = one.start().wait(_PATIENCE_SECONDS)
        assert code == 0, f"{name} ended with {code}: {one.output.read_text()}"
        return one.output.read_text()

    def start(self, name: str) -> None:
        """A service that goes on."""
        self.running[name] = self.container(name).start()

    def healthy(self, name: str) -> bool:
        """Whether its health check is content; raises if it has ended."""
        one = self.running[name]
        assert one.process is not None
        assert one.process.poll() is None, f"{name} has ended: {one.output.read_text()}"
        return one.health()[0] == 0

    def stop(self) -> dict[str, float]:
        """Ask all to stop; how many seconds each took."""
        patience = {
            name: float(s.get("stop_grace_period", "10s")[:-1]) for name, s in self.whole["services"].items()
        }
        return {name: one.stop(patience[name]) for name, one in reversed(self.running.items())}


def main() -> int:
    """Run it; 0 where the results are in the PACS."""
    if _INSIDE not in sys.argv:
        inside = [sys.executable, "-m", "tests.images", _INSIDE]
        return subprocess.run([*_NAMESPACES, *inside], check=False).returncode
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="covariance-smoke-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with contextlib.ExitStack() as stack:
            roots = {
                one: stack.enter_context(Root(f"localhost/covariance/{one}:{version()}")) for one in _RUNS
            }
            for one, root in roots.items():
                say(f"{one}: {root.run_by_buildah('covariance', '--version')}, {size_of(root.path)} MB")
            return smoke(Site(folder, roots), stack)


def smoke(site: Site, stack: contextlib.ExitStack) -> int:
    """Send one study through the site."""
    stack.callback(keep_logs, site.folder)
    neighbours(site, stack)
    orthanc = start_orthanc(site.folder, COMPOSE / site.whole["configs"]["orthanc"]["file"])
    stack.callback(orthanc.program.stop)
    stack.callback(site.stop)

    say(f"migrate: {site.run('migrate').strip()}")
    began = time.monotonic()
    for name in ("node", "worker", "deliver"):
        site.start(name)
    for name in ("node", "deliver", "worker"):
        until(lambda name=name: site.healthy(name), f"{name} is healthy")
        say(f"{name}: {site.running[name].health()[1]}, after {time.monotonic() - began:.0f} s")
    is_confined(site)
    say(site.run("ops", ["config", "check", "--connect"]).strip())

    film = phantom_dataset(1, salt=str(time.time_ns()))
    sent = site.folder / "films"
    sent.mkdir()
    dcmwrite(sent / "film.dcm", film, enforce_file_format=True)
    began = time.monotonic()
    say(site.run("ops", ["send", "/mnt", "--to", "node:11112/COVARIANCE"], mnt=sent).strip())
    until(lambda: results(orthanc, film.StudyInstanceUID) >= {"SR", "OT"}, "SR and heatmap are in Orthanc")
    until(lambda: proven(site, film.StudyInstanceUID), "Orthanc has committed to both")
    say(f"results in Orthanc, committed, after {time.monotonic() - began:.1f} s")
    say(site.run("ops", ["backup", "out/smoke"]).strip())
    assert (site.folder / "volumes/out/smoke/ledger.dump").stat().st_size
    for name, seconds in site.stop().items():
        say(f"{name}: stopped in {seconds:.1f} s")
    return 0


def neighbours(site: Site, stack: contextlib.ExitStack) -> None:
    """Start those of this machine, with the secrets where their images have them."""
    seen = site.folder / "run" / "secrets"
    shutil.copytree(site.folder / "secrets", seen)
    seen.chmod(0o755)
    lay_over(Path("/run/secrets"), seen)
    # Orthanc reports its commitment to `node`.
    lay_over(Path("/etc/hosts"), site.folder / "hosts")
    stack.callback(start_redis(site.folder).stop)
    logins = COMPOSE / site.whole["configs"]["logins"]["file"]
    stack.callback(start_postgresql(site.folder, site.whole["services"]["postgres"], logins).stop)


def is_confined(site: Site) -> None:
    """The container cannot write to its root, has no capability and is nobody."""
    for name, one in site.running.items():
        status = Path(f"/proc/{one.first_process()}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert fields["Uid"].split() == ["10001"] * 4, name
        assert {fields[f"Cap{which}"] for which in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}, name
        assert fields["NoNewPrivs"] == "1", name
        mounts = Path(f"/proc/{one.first_process()}/mounts").read_text().splitlines()
        (root,) = [line.split() for line in mounts if line.split()[1] == "/"]
        assert "ro" in root[3].split(","), f"{name} can write to its root"


def results(orthanc: Orthanc, study: str) -> set[str]:
    """The modalities that Orthanc has of the study."""
    return {one["MainDicomTags"]["Modality"] for one in orthanc.series(study)}


def proven(site: Site, study: str) -> bool:
    """Whether every delivery of the study is committed, as the command line says."""
    record = json.loads(site.run("ops", ["show", study, "--json"]))
    states = [d["state"] for r in record["results"] for o in r["outputs"] for d in o["deliveries"]]
    return bool(states) and set(states) == {"committed"}


def until(probe: Callable[[], Any], what: str) -> None:
    """Ask once a second: each question is a new process on a small machine."""
    eventually(lambda: probe() or time.sleep(1), seconds=_PATIENCE_SECONDS, what=what)


def version() -> str:
    """The tag of the images."""
    from tests.deploy.drift import VERSION

    return VERSION


def size_of(root: Path) -> int:
    """Megabytes (10^6) of files."""
    done = subprocess.run(["du", "-sxB1", str(root)], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0]) // 1_000_000


def keep_logs(folder: Path) -> None:
    """The logs outlive the run: somebody will ask why it failed."""
    kept = Path("build/images-smoke")
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    for log in folder.glob("*.log"):
        shutil.copy(log, kept)


if __name__ == "__main__":
    sys.exit(main())
