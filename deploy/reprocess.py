"""`covariance reprocess`: score studies again, with a bundle that is named, on this machine."""

from __future__ import annotations

import os
import socket
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from dicom_node.errors import ConfigurationError, Retryable
from dicom_node.logs import configure_logs
from dicom_node.spool import Spool
from worker.ledger import Ledger, SelectedStudy, Selection, open_ledger
from worker.model_store import open_bundle_in_use
from worker.pipeline import Pipeline
from worker.scorer import Scorer
from worker.settings import Settings

_LISTED = 20


def reprocess(settings: Settings, selection: Selection, *, bundle: Path | None, really: bool) -> int:
    """List the studies that are meant and, if `really`, score them again; return the exit code.

    Raises:
        ConfigurationError: the bundle cannot be used, or was recalled.
    """
    configure_logs(level="ERROR")
    console = Console(highlight=False, soft_wrap=True)
    if bundle is not None:
        chosen = settings.worker.model_copy(update={"bundle": bundle, "bundle_sha256": "", "models": bundle})
        settings = settings.model_copy(update={"worker": chosen})
    with open_ledger(settings, migrate=False) as ledger:
        told = _told(settings, ledger)
        found = ledger.select_studies(selection)
        able = [one for one in found if one.obstacle is None]
        for one in found[:_LISTED]:
            console.print(escape(_line(one)))
        if len(found) > _LISTED:
            console.print(f"and {len(found) - _LISTED} studies more")
        for obstacle, count in Counter(one.obstacle for one in found if one.obstacle).items():
            console.print(f"{count} studies are passed over: {obstacle}.")
        if not found:
            console.print("No study that was scored is meant: nothing is to be done.")
            return 0
        if not really:
            films = sum(one.images for one in able)
            console.print(f"{len(able)} studies, {films} films would be scored again with {told}.")
            console.print("Nothing was changed: --yes does it. New results supersede the old ones.")
            return 0
        # An engine is opened, for seconds or minutes, only where it has work.
        return _score(console, settings, ledger, able, told) if able else 1


def _told(settings: Settings, ledger: Ledger) -> str:
    found = open_bundle_in_use(settings.worker)
    manifest = found.manifest
    if manifest.model.sha256 in ledger.recalled_models():
        raise ConfigurationError(f"The model of {found.directory} was recalled: name another bundle.")
    return f"{manifest.name} {manifest.version} ({found.directory})"


def _line(one: SelectedStudy) -> str:
    before = f"{one.decision or 'no result'}"
    if one.model_name:
        before = f"{one.decision or 'not analysed'} by {one.model_name} {one.model_version}"
    return f"{one.study_instance_uid}  {one.images} images, {before}"


def _score(
    console: Console, settings: Settings, ledger: Ledger, studies: list[SelectedStudy], told: str
) -> int:
    spool = Spool(settings.spool.path)
    done = waiting = 0
    with Scorer(settings) as scorer:
        worker = f"reprocess@{socket.gethostname()}:{os.getpid()}"
        pipeline = Pipeline(settings=settings, spool=spool, ledger=ledger, scorer=scorer, worker=worker)
        for one in studies:
            try:
                done += pipeline.score_again(one.study_instance_uid)
            except Retryable as error:
                waiting += 1
                console.print(escape(f"{one.study_instance_uid}  waits for a worker: {error}"))
    console.print(f"{done} of {len(studies)} studies were scored again with {told}.")
    return 1 if waiting else 0
