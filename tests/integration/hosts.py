"""Several hosts on one machine: network namespaces on a bridge, each with a name and processes of its own.

Needs root and iproute2. The namespaces have no way out: what runs in them reaches each other and nobody else.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import PEERS_REQUIRED
from tests.integration.system import Program

_NETWORK = "10.99.7"


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


@dataclass
class Hosts:
    """The hosts by name; the first holds the bridge."""

    names: Sequence[str]
    addresses: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> Hosts:
        centre = self._space(self.names[0])
        try:
            for number, name in enumerate(self.names, 1):
                self.addresses[name] = f"{_NETWORK}.{number}"
                run("ip", "netns", "add", self._space(name))
                self._ip(name, "link", "set", "lo", "up")
            self._ip(self.names[0], "link", "add", "bridge", "type", "bridge")
            self._address(self.names[0], "bridge")
            for name in self.names[1:]:
                self._ip(name, "link", "add", "wire", "type", "veth", "peer", "name", name, "netns", centre)
                self._ip(self.names[0], "link", "set", name, "master", "bridge", "up")
                self._address(name, "wire")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", self._space(name)], capture_output=True, check=False)

    def _space(self, name: str) -> str:
        return f"covariance-{os.getpid()}-{name}"

    def _ip(self, host: str, *arguments: str) -> None:
        run("ip", "-n", self._space(host), *arguments)

    def _address(self, name: str, device: str) -> None:
        self._ip(name, "address", "add", f"{self.addresses[name]}/24", "dev", device)
        self._ip(name, "link", "set", device, "up")

    def on(self, name: str, *command: str) -> list[str]:
        """A command as it is run on that host: its network, host name and process tree, which end with it."""
        # Whoever kills the tests leaves nothing behind.
        space = ["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", self._space(name)]
        own = ["unshare", "--uts", "--pid", "--mount-proc", "--fork", "--kill-child"]
        return [*space, *own, "sh", "-c", f'hostname {name} && exec "$@"', "sh", *command]

    def program(self, host: str, command: Sequence[str], output: Path) -> Program:
        """A program of that host, not started."""
        return Program(self.on(host, *command), output)

    def unplug(self, name: str) -> None:
        """Pull its cable: nobody is told."""
        self._ip(self.names[0], "link", "set", name, "down")

    def plug(self, name: str) -> None:
        """Put it back."""
        self._ip(self.names[0], "link", "set", name, "up")


def require_namespaces() -> None:
    """Skip, or fail where peers are required, unless namespaces can be made here."""
    possible = os.getuid() == 0 and shutil.which("ip") and shutil.which("unshare")
    trial = ["unshare", "--net", "--uts", "--pid", "--fork", "true"]
    if not possible or subprocess.run(trial, capture_output=True, check=False).returncode != 0:
        sentence = "network namespaces need root, iproute2 and a kernel that lets us"
        if PEERS_REQUIRED:
            pytest.fail(sentence)
        pytest.skip(sentence)
