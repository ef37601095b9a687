"""`covariance recall`: say what a withdrawn model has left behind, and withdraw it when told to."""

from __future__ import annotations

import re
from collections import Counter

from rich.console import Console
from rich.markup import escape

from dicom_node.errors import ConfigurationError
from dicom_node.logs import configure_logs
from worker.ledger import Ledger, ModelResult, open_ledger
from worker.recall import Recalled, Recaller
from worker.report.withdrawal import Why
from worker.settings import Settings

_SHORTEST = 8
"""Characters of a digest that must be given."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


def recall_model(settings: Settings, digest: str, *, why: Why, sentence: str, really: bool) -> int:
    """List every result of the model and, if `really`, withdraw them; return the exit code.

    Raises:
        ConfigurationError: no model, or more than one, is meant by `digest`.
    """
    configure_logs(level="ERROR")
    console = Console(highlight=False, soft_wrap=True)
    with open_ledger(settings, migrate=False) as ledger:
        model = _meant(ledger, digest)
        if really:
            # First, so that no worker adds a result behind the list.
            ledger.recall_model(model, sentence)
        results = ledger.results_of(model)
        for one in results:
            console.print(escape(_line(one)))
        waiting = [one for one in results if one.recalled_at is None]
        console.print(f"{len(results)} results of model {model}, {len(waiting)} of them not recalled yet.")
        if not really:
            console.print(_plan(settings, waiting))
            return 0
        done: list[Recalled] = []
        Recaller(settings, ledger, why).recall(waiting, done.append)
    return _say(console, done)


def _meant(ledger: Ledger, digest: str) -> str:
    known = {*ledger.models(), *ledger.recalled_models()}
    if _SHA256.fullmatch(digest) and digest not in known:
        return digest  # a model may be withdrawn before it has scored anything
    found = [one for one in known if one.startswith(digest)] if len(digest) >= _SHORTEST else []
    if len(found) != 1:
        raise ConfigurationError(
            f"{'More than one model begins' if found else 'No result is of a model that begins'} with "
            f"{digest[:64]}: give at least {_SHORTEST} characters of `model_sha256` in `show STUDY --json`."
        )
    return found[0]


def _line(one: ModelResult) -> str:
    state = "recalled" if one.recalled_at else "superseded" if one.superseded_at else "in force"
    where = f"at {', '.join(one.destinations)}" if one.destinations else "nowhere else"
    probability = "" if one.probability is None else f" p={one.probability:.3f}"
    return (
        f"{one.study_instance_uid}  generation {one.generation}  "
        f"{one.decision or 'not analysed'}{probability}  {state}, {where}"
    )


def _plan(settings: Settings, waiting: list[ModelResult]) -> str:
    at = Counter(name for one in waiting for name in one.destinations)
    notes = {one.name: one.rejection_notes for one in settings.destinations}
    told = [
        f"{count} {'rejection notes' if notes.get(name) else 'withdrawing reports'} to {name}"
        for name, count in sorted(at.items())
    ]
    return f"Would be sent: {', '.join(told) or 'nothing'}. Nothing was changed: --yes does it."


def _say(console: Console, done: list[Recalled]) -> int:
    notices = Counter(name for one in done for name in one.told)
    told = ", ".join(f"{count} to {name}" for name, count in sorted(notices.items())) or "none"
    console.print(f"{len(done)} results recalled; notices that the deliverer sends: {told}.")
    console.print("Activate another model, `covariance reprocess`, and restart the workers.")
    by_hand = [one for one in done if one.by_hand]
    for one in by_hand:
        uids = " ".join(each.sop_instance_uid for each in one.result.objects)
        console.print(
            f"by hand at {', '.join(one.by_hand)}: study {one.result.study_instance_uid}, objects {uids}",
            style="bold red",
        )
    return 1 if by_hand else 0
