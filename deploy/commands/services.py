"""`up`, and the processes that it starts: `node`, `worker`, `deliver` and the embedded broker."""

from __future__ import annotations

from typing import Annotated

import typer

ReadyFd = Annotated[
    int | None, typer.Option("--ready-fd", hidden=True, help="Descriptor to write a line to when it serves.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(rich_help_panel="Serve")(up)
    app.command(rich_help_panel="Serve")(node)
    app.command(rich_help_panel="Serve")(worker)
    app.command(rich_help_panel="Serve")(deliver)
    app.command("broker", hidden=True)(broker)


def up(ready_fd: ReadyFd = None) -> None:
    """Run the whole on this machine: node, worker, deliverer and, without a Redis, a broker."""
    from deploy.up import run_up
    from worker.settings import load_settings

    run_up(load_settings(), ready_fd)


def node(ready_fd: ReadyFd = None) -> None:
    """Receive studies: the DICOM listener and the spool."""
    from deploy.serve import serve_node

    serve_node(ready_fd)


def worker(ready_fd: ReadyFd = None) -> None:
    """Score studies: hear the queue, read, infer, report, record."""
    from deploy.serve import serve_worker

    raise typer.Exit(serve_worker(ready_fd))


def deliver(ready_fd: ReadyFd = None) -> None:
    """Write results back to the destinations, and see that nothing is forgotten."""
    from deploy.serve import serve_deliver

    serve_deliver(ready_fd)


def broker() -> None:
    """Become the embedded broker of `up`."""
    from deploy.broker import become_broker
    from deploy.stack import die_with_parent
    from worker.settings import load_settings

    die_with_parent()
    become_broker(load_settings().queue)
