"""`python -m training`: from films to a model bundle. This file knows the order of the stations."""

from __future__ import annotations

import typer

from dicom_node.errors import CovarianceError
from dicom_node.logs import configure_logs
from training.commands import bundle, model, systems
from training.device import ready_to_train

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for noun in (model, bundle, systems):
    app.add_typer(noun.app)


@app.callback()
def prepare() -> None:
    """Train, evaluate and export the network that the worker serves."""
    configure_logs()


def main() -> None:
    """Run a command; what we raise on purpose is one sentence, not a traceback."""
    try:
        with ready_to_train():
            app()
    except CovarianceError as error:
        typer.echo(f"Error: {error}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
