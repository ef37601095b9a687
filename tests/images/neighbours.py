"""PostgreSQL, Redis and Orthanc of this machine, with the very settings and secrets of the compose files."""

from __future__ import annotations

import os
import pwd
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

from tests.conftest import find_program
from tests.integration.system import Orthanc, Program, accepts, eventually


def lay_over(place: Path, source: Path) -> None:
    """Have `source` seen at `place`, by us and by those whom we start."""
    if source.is_dir():
        place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "--bind", str(source), str(place)], check=True)


def start_redis(folder: Path) -> Program:
    """Redis with the password of the secret."""
    command = [find_program("redis-server"), "/run/secrets/redis.conf"]
    program = Program(command, folder / "redis.log", directory=folder).start()
    eventually(lambda: accepts(6379), what="Redis listens")
    return program


def start_postgresql(folder: Path, service: dict[str, Any], logins: Path) -> Program:
    """A cluster made as the image of PostgreSQL makes it: owner, database, and our file with the logins."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
    environment = service["environment"]
    owner, database = environment["POSTGRES_USER"], environment["POSTGRES_DB"]
    account = pwd.getpwnam("postgres")
    as_owner = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--pdeathsig=keep"]
    home = folder / "postgresql"
    home.mkdir()
    os.chown(home, account.pw_uid, account.pw_gid)
    initialise = ["initdb", "-D", f"{home}/data", "-U", owner, "--auth-local=trust", "--no-sync"]
    initialise += [
        f"--pwfile={environment['POSTGRES_PASSWORD_FILE']}",
        *environment["POSTGRES_INITDB_ARGS"].split(),
    ]
    subprocess.run(
        [*as_owner, f"{programs}/{initialise[0]}", *initialise[1:]], check=True, capture_output=True
    )
    command = [*as_owner, f"{programs}/postgres", "-D", f"{home}/data"]
    command += ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={home}"]
    program = Program(command, folder / "postgresql.log", directory=home).start()
    reach = {**os.environ, "PGHOST": str(home), "POSTGRES_USER": owner, "POSTGRES_DB": database}
    ready = [f"{programs}/pg_isready", "--quiet", f"--host={home}"]
    eventually(lambda: subprocess.run(ready, check=False).returncode == 0, what="PostgreSQL answers")
    subprocess.run(["createdb", "--username", owner, database], env=reach, check=True)
    subprocess.run(["sh", str(logins)], env=reach, check=True, capture_output=True)
    return program


def start_orthanc(folder: Path, configuration: Path) -> Orthanc:
    """Orthanc with the configuration of the try-out."""
    store = folder / "orthanc"
    store.mkdir()
    lay_over(Path("/var/lib/orthanc/db"), store)
    program = Program(
        [find_program("Orthanc", "/usr/sbin/Orthanc"), str(configuration)], folder / "orthanc.log"
    )
    one = Orthanc(4242, 8042, program)
    # No proxy of this machine is asked for what is here.
    urllib.request.install_opener(urllib.request.build_opener(urllib.request.ProxyHandler({})))
    one.start()
    return one
