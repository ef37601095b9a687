"""`covariance up`: which programs make the one-machine stack, and what it says when it serves."""

from __future__ import annotations

import socket
import sys
from functools import partial

from rich.console import Console
from rich.text import Text

from deploy import broker
from deploy.stack import Program, Stack, announce_ready, die_with_parent
from dicom_node.errors import ConfigurationError
from dicom_node.logs import configure_logs
from dicom_node.settings import child_environment
from worker.settings import Settings

_COLOURS = {"node": "cyan", "worker": "green", "deliver": "magenta", "broker": "yellow"}
_FINISH_STUDY_SECONDS = 40.0


def programs(settings: Settings, *, port: int) -> list[Program]:
    """Name the child processes in the order in which they are started.

    Args:
        settings: what the children will read, too, from the same file and environment.
        port: where the node listens; a node that is started again keeps it.
    """
    overrides = {"NODE__PORT": str(port)}
    made = []
    if broker.is_embedded(settings.queue):
        made.append(
            Program(
                name="broker",
                command=_command("broker"),
                environment=child_environment(),
                is_ready=partial(broker.answers, settings.queue),
            )
        )
        overrides["QUEUE__URL"] = broker.socket_url(settings.queue)
    environment = child_environment(**overrides)
    # They are stopped from the last to the first: no new study comes in while the rest finishes.
    for name, patience in (("deliver", 10.0), ("worker", _FINISH_STUDY_SECONDS), ("node", 10.0)):
        made.append(
            Program(name=name, command=_command(name), environment=environment, stop_seconds=patience)
        )
    return made


def run_up(settings: Settings, ready_fd: int | None) -> None:
    """Run the stack until SIGTERM or SIGINT.

    Raises:
        ConfigurationError: one of the processes cannot work with its settings, or the port is taken.
    """
    if ready_fd is not None:
        die_with_parent()
    configure_logs(level=settings.log.level, style=settings.log.style)
    port = usable_port(settings.node.host, settings.node.port) if settings.node.plain else settings.node.port
    if settings.tls.enabled:
        usable_port(settings.node.host, settings.tls.port, setting="tls.port")
    console = Console(stderr=True, highlight=False, soft_wrap=True)

    def report(name: str, line: str) -> None:
        prefix = Text(f"{name:>7} │ ", style=_COLOURS.get(name, ""))
        console.print(prefix.append_text(Text.from_ansi(line)))

    def ready() -> None:
        console.print(Text("\n").join(_greeting(settings, port)))
        announce_ready(ready_fd)

    Stack(programs(settings, port=port), report=report).run(ready)


def _command(name: str) -> tuple[str, ...]:
    # -P: a folder `worker` where the command is given must not shadow ours.
    return (sys.executable, "-P", "-m", "deploy", name)


def usable_port(host: str, port: int, *, setting: str = "node.port") -> int:
    """The port to listen on: a free one for 0.

    Raises:
        ConfigurationError: nothing can listen there.
    """
    try:
        with socket.socket() as listener:
            # As the node does: a port in TIME_WAIT is free.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            return int(listener.getsockname()[1])
    except OSError as error:
        raise ConfigurationError(
            f"Nothing can listen on {host}:{port} ({error.strerror}): set another node.host or {setting}."
        ) from None


def _greeting(settings: Settings, port: int) -> list[Text]:
    queue = settings.queue
    where = broker.socket_path(queue) if broker.is_embedded(queue) else "as queue.url says"
    node, tls = settings.node, settings.tls
    ports = [f"{node.host}:{port}"] * node.plain + [f"{node.host}:{tls.port} (TLS)"] * tls.enabled
    callers = dict.fromkeys((*node.allowed_callers, *(one.ae_title for one in node.callers)))
    rows = [
        ("listens", f"{node.ae_title} at {', '.join(ports)}"),
        ("callers", ", ".join(callers) or "any (node.callers is empty)"),
        *(
            ("sends to", f"{d.name}: {d.ae_title} at {d.host}:{d.port}, proven by {d.verify}")
            for d in settings.destinations
        ),
        *([("sends to", "nowhere: no [[destinations]] are set")] if not settings.destinations else []),
        ("spool", str(settings.spool.path.absolute())),
        ("broker", str(where)),
    ]
    title = Text(
        "CoVariance is up. Research software, not a medical device. Ctrl-C stops it.", style="bold green"
    )
    return [title, *(Text.assemble(f"{name:>9}  ", (value, "bold")) for name, value in rows)]
