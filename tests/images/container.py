"""A container without an engine: the file system that buildah built, and the kernel's own means around it.

What the compose file asks for is kept: the image's user, entry point and environment, a root that cannot be
written, /tmp without programs, no capability, no new privileges, a process tree of its own, and only the
volumes, settings and secrets that are named. It shares the network, as the containers of one pod do.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STORAGE = Path(os.environ.get("STORAGE", "/var/tmp/covariance-images"))
BUILDAH = ["buildah", "--storage-driver", "vfs", "--root", f"{STORAGE}/root", "--runroot", f"{STORAGE}/run"]
_DEVICES = {"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9}
"""Minor numbers of the memory devices, devices.txt of Linux."""


def buildah(*arguments: str) -> str:
    """Run buildah and return what it prints."""
    done = subprocess.run([*BUILDAH, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"buildah {shlex.join(arguments)}: {done.stderr}"
    return done.stdout.strip()


@dataclass
class Root:
    """A working copy of an image's file system, and what the image says of itself."""

    image: str
    container: str = ""
    path: Path = Path()
    config: dict[str, Any] = field(default_factory=dict)

    def __enter__(self) -> Root:
        self.config = json.loads(buildah("inspect", "--type", "image", self.image))["Docker"]["config"]
        self.container = buildah("from", "--pull-never", self.image)
        self.path = Path(buildah("mount", self.container))
        return self

    def __exit__(self, *exception: object) -> None:
        buildah("umount", self.container)
        buildah("rm", self.container)

    def run_by_buildah(self, *command: str) -> str:
        """The output of a command as `buildah run` runs it."""
        return buildah("run", "--isolation", "chroot", "--network", "host", self.container, "--", *command)


@dataclass
class Container:
    """A process in a root, with the files that it may see."""

    root: Root
    command: Sequence[str]
    environment: Mapping[str, str]
    mounts: Mapping[str, Path]
    """Place in the container -> what is seen there. Only directories can be written."""
    output: Path
    entry_point: Sequence[str] | None = None
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> Container:
        """Start it."""
        words = [*(self.entry_point or self.root.config["Entrypoint"]), *self.command]
        script = "\n".join(
            [*self._mounting(), f"exec chroot {self.root.path} {shlex.join(self._as_nobody(words))}"]
        )
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                ["unshare", "--mount", "--ipc", "--pid", "--fork", "--kill-child", "sh", "-euc", script],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        return self

    def _mounting(self) -> list[str]:
        root = self.root.path
        for place, source in self.mounts.items():
            target = root / place.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.mkdir(exist_ok=True) if source.is_dir() else target.touch()
        quoted = {shlex.quote(f"{root}{place}"): source for place, source in self.mounts.items()}
        return [
            "mount --make-rprivate /",
            f"mount --bind {root} {root}",
            f"mount -o remount,bind,ro,nodev {root}",
            f"mount -t proc -o nosuid,nodev,noexec proc {root}/proc",
            f"mount -t tmpfs -o size=256m,mode=1777,noexec,nosuid,nodev tmpfs {root}/tmp",
            f"mount -t tmpfs -o size=64k,mode=755,nosuid,noexec tmpfs {root}/dev",
            *(f"mknod -m 666 {root}/dev/{name} c 1 {minor}" for name, minor in _DEVICES.items()),
            f"mkdir {root}/dev/shm",
            f"mount -t tmpfs -o size=64m,mode=1777,noexec,nosuid,nodev tmpfs {root}/dev/shm",
            *(f"mount --bind {shlex.quote(str(source))} {target}" for target, source in quoted.items()),
            *(
                f"mount -o remount,bind,ro {target}"
                for target, source in quoted.items()
                if source.is_file() or "secrets" in target
            ),
            f"cd {root}",
        ]

    def _as_nobody(self, words: Sequence[str]) -> list[str]:
        user, _, group = self.root.config["User"].partition(":")
        assert user.isdigit()
        assert user != "0"
        variables = {**dict(one.split("=", 1) for one in self.root.config["Env"]), **self.environment}
        return [
            "setpriv",
            f"--reuid={user}",
            f"--regid={group}",
            "--clear-groups",
            "--bounding-set=-all",
            "--inh-caps=-all",
            "--no-new-privs",
            "env",
            "--ignore-environment",
            f"--chdir={self.root.config['WorkingDir']}",
            *(f"{name}={value}" for name, value in variables.items()),
            *words,
        ]

    def first_process(self) -> int:
        """The number, out here, of process 1 in there."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def health(self) -> tuple[int, str]:
        """Exit code and output of the image's HEALTHCHECK, run in there."""
        _, *command = self.root.config["Healthcheck"]["Test"]
        into = ["nsenter", f"--target={self.first_process()}", "--mount", "--ipc", "--pid", "--root", "--wd"]
        try:
            done = subprocess.run(
                [*into, *self._as_nobody(command)], capture_output=True, text=True, check=False, timeout=120
            )
        except subprocess.TimeoutExpired:
            # Engines wait less; here the machine is small, and often busy with other things.
            return 1, "no answer within 120 s"
        return done.returncode, (done.stdout + done.stderr).strip()

    def wait(self, seconds: float) -> int:
        """The exit code, once it has ended."""
        assert self.process is not None
        return self.process.wait(seconds)

    def stop(self, seconds: float) -> float:
        """SIGTERM to process 1, SIGKILL after `seconds`; returns how long it took."""
        assert self.process is not None
        started = time.monotonic()
        if self.process.poll() is None:
            os.kill(self.first_process(), signal.SIGTERM)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return time.monotonic() - started
