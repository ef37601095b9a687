"""`covariance model`: which bundles are here, whether they are whole, and which one scores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from dicom_node.errors import ConfigurationError, CovarianceError
from dicom_node.logs import configure_logs
from worker.bundle import Bundle
from worker.engines.select import open_engine
from worker.ledger import open_ledger
from worker.model_store import ModelStore, Stored, bundle_in_use
from worker.parity import replay_golden
from worker.settings import DEFAULT_BUNDLE, Settings


def install_model(settings: Settings, directory: Path) -> None:
    """Copy a bundle into the store; it is not in use yet.

    Raises:
        ConfigurationError: it is not whole, or the store cannot be written.
    """
    with _writing(settings):
        stored = ModelStore(settings.worker.models).install(directory)
    console = _console()
    console.print(f"{stored.name} {stored.version} is in the store as {stored.bundle_sha256}.")
    console.print(f"Next: `covariance model activate {stored.bundle_sha256[:12]}`.")


def list_models(settings: Settings, *, as_json: bool) -> int:
    """List the store and what is in use; exit code 1 if a bundle is not whole."""
    console, store = _console(), ModelStore(settings.worker.models)
    directory, _ = bundle_in_use(settings.worker)
    recalled, unknown = _recalled(settings)
    found = store.bundles()
    if as_json:
        listed = [asdict(one) | {"recalled": one.model_sha256 in recalled} for one in found]
        document = {"in_use": str(directory), "active": store.active, "previous": store.previous}
        print(json.dumps(document | {"bundles": listed}, indent=2))  # noqa: T201
    else:
        for one in found:
            console.print(escape(_line(one, store, recalled)))
        console.print(f"In use: {_told(directory)}.")
        if unknown:
            console.print(f"Which were recalled is not known. {unknown}")
    return 1 if any(one.fault for one in found) else 0


def _recalled(settings: Settings) -> tuple[dict[str, str], str]:
    """The models that were recalled, or why that is not known: a list must not change the schema."""
    try:
        with open_ledger(settings, migrate=False) as ledger:
            return ledger.recalled_models(), ""
    except CovarianceError as error:
        return {}, str(error)


def verify_model(settings: Settings, digest: str | None) -> None:
    """Check every digest of a bundle, and have the engine of this machine replay its golden cases.

    Raises:
        ConfigurationError: it is not whole, or the engine does not agree with it.
    """
    directory, pinned = bundle_in_use(settings.worker)
    if digest is not None:
        directory = ModelStore(settings.worker.models).find(digest)
        pinned = directory.name
    _console().print(f"{_told(directory)}: {_pass_the_gate(settings, Bundle(directory, pinned=pinned))}")


def activate_model(settings: Settings, digest: str | None) -> None:
    """Put a bundle in use, after the parity gate and on record; None is the one that comes with us.

    Raises:
        ConfigurationError: `worker.bundle` overrides the store, the bundle fails the gate, or was recalled.
    """
    if settings.worker.bundle != DEFAULT_BUNDLE:
        raise ConfigurationError(
            f"worker.bundle names {settings.worker.bundle}, which goes before the store: remove the setting."
        )
    store = ModelStore(settings.worker.models)
    directory = DEFAULT_BUNDLE if digest is None else store.find(digest)
    bundle = Bundle(directory, pinned="" if digest is None else directory.name)
    manifest = bundle.manifest
    with open_ledger(settings, migrate=True) as ledger:
        if (why := ledger.recalled_models().get(manifest.model.sha256)) is not None:
            raise ConfigurationError(f"The model of {directory.name} was recalled: {why}")
        gate = _pass_the_gate(settings, bundle)
        # On record first: a bundle in use that the trail does not know must not be.
        ledger.note_activation(
            bundle_sha256=bundle.sha256,
            model_sha256=manifest.model.sha256,
            name=manifest.name,
            version=manifest.version,
            before=store.active,
        )
    with _writing(settings):
        store.activate(None if digest is None else directory.name)
    console = _console()
    console.print(f"{manifest.name} {manifest.version} is in use from the next start of a worker. {gate}")
    console.print("Next: `covariance drain --restart` has the workers take it up.")


def roll_back(settings: Settings) -> None:
    """Put the bundle in use that was before; through the same gate."""
    store = ModelStore(settings.worker.models)
    if store.active is None and store.previous is None:
        raise ConfigurationError("No bundle was activated yet: there is nothing to go back to.")
    activate_model(settings, store.previous)


@contextmanager
def _writing(settings: Settings) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"The model store {settings.worker.models} cannot be written: {error.strerror}."
        ) from None


def _pass_the_gate(settings: Settings, bundle: Bundle) -> str:
    engine = open_engine(bundle, settings.worker)
    try:
        worst = replay_golden(bundle, engine)
    finally:
        engine.close()
    cases = len(bundle.manifest.golden.cases)
    return f"{engine.name} agrees on {cases} golden cases, worst logit off by {worst:.4f}."


def _line(one: Stored, store: ModelStore, recalled: dict[str, str]) -> str:
    if one.fault:
        return f"{one.bundle_sha256[:12]}  damaged: {one.fault}"
    marks = ["in use"] if one.bundle_sha256 == store.active else []
    marks += ["before"] if one.bundle_sha256 == store.previous else []
    marks += ["recalled"] if one.model_sha256 in recalled else []
    return (
        f"{one.bundle_sha256[:12]}  {one.name} {one.version}  model {one.model_sha256[:12]}"
        f"  {', '.join(marks)}".rstrip()
    )


def _told(directory: Path) -> str:
    manifest = Bundle(directory).manifest
    return f"{manifest.name} {manifest.version} in {directory}"


def _console() -> Console:
    configure_logs(level="ERROR")
    return Console(highlight=False, soft_wrap=True)
