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
        results, waiting, at = 0, 0, Counter[str]()
        for one in ledger.results_of(model):
            console.print(escape(_line(one)))
            results += 1
            if one.recalled_at is None:
                waiting += 1
                at.update(one.destinations)
        console.print(f"{results} results of model {model}, {waiting} of them not recalled yet.")
        if not really:
            console.print(_plan(settings, at))
            return 0
        done = _Done(console)
        Recaller(settings, ledger, why).recall(ledger.results_of(model), done.note)
    return done.say()


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


def _plan(settings: Settings, at: Counter[str]) -> str:
    notes = {one.name: one.rejection_notes for one in settings.destinations}
    told = [
        f"{count} {'rejection notes' if notes.get(name) else 'withdrawing reports'} to {name}"
        for name, count in sorted(at.items())
    ]
    return f"Would be sent: {', '.join(told) or 'nothing'}. Nothing was changed: --yes does it."


class _Done:
    """Counts what is recalled, and names at once what is to be withdrawn by hand."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._results, self._by_hand, self._notices = 0, 0, Counter[str]()

    def note(self, one: Recalled) -> None:
        self._results += 1
        self._notices.update(one.told)
        if one.by_hand:
            self._by_hand += 1
            uids = " ".join(each.sop_instance_uid for each in one.result.objects)
            self._console.print(
                f"by hand at {', '.join(one.by_hand)}: study {one.result.study_instance_uid}, objects {uids}",
                style="bold red",
            )

    def say(self) -> int:
        """Print the sums; the exit code."""
        told = ", ".join(f"{count} to {name}" for name, count in sorted(self._notices.items())) or "none"
        self._console.print(f"{self._results} results recalled; notices that the deliverer sends: {told}.")
        if self._by_hand:
            self._console.print(
                f"{self._by_hand} of them are to be withdrawn by hand, see above.", style="bold red"
            )
        self._console.print("Activate another model, `covariance reprocess`, and restart the workers.")
        return 1 if self._by_hand else 0
