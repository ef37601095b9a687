"""What a check says, and how checks are run: one that fails never keeps the others from being made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from dicom_node.errors import CovarianceError
from worker.settings import Settings


class Level(StrEnum):
    """How it stands."""

    OK = "OK"
    WARN = "WARN"
    """It works, and something will not for long or is not as it should be."""
    FAIL = "FAIL"
    """Studies do not come in, are not scored or are not delivered."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line: what was looked at, how it stands, one sentence, and what to do."""

    name: str
    level: Level
    sentence: str
    advice: str = ""


def ok(name: str, sentence: str) -> Check:
    """All is well."""
    return Check(name=name, level=Level.OK, sentence=sentence)


def warn(name: str, sentence: str, advice: str) -> Check:
    """It works, and should not stay so."""
    return Check(name=name, level=Level.WARN, sentence=sentence, advice=advice)


def fail(name: str, sentence: str, advice: str) -> Check:
    """It does not work."""
    return Check(name=name, level=Level.FAIL, sentence=sentence, advice=advice)


Probe = Callable[[Settings], Iterable[Check]]


def run_probe(name: str, probe: Probe, settings: Settings) -> Iterator[Check]:
    """Make the checks of a probe; whatever it raises is a check that failed."""
    try:
        yield from probe(settings)
    except CovarianceError as error:
        yield fail(name, str(error), "Mend what the sentence names, and run this again.")
    except OSError as error:
        why = error.strerror or type(error).__name__
        yield fail(name, f"The machine refuses: {why}.", "Look at rights, mounts and disks.")
    except Exception as error:  # noqa: BLE001 (the doctor outlives what it finds)
        # The type only: a text may quote a value.
        yield fail(name, f"The check broke off with {type(error).__name__}.", "Report this as a defect.")


def exit_code(checks: Iterable[Check]) -> int:
    """0 all is well, 1 something is to be looked at, 2 something does not work."""
    worst = {Level.OK: 0, Level.WARN: 1, Level.FAIL: 2}
    return max((worst[one.level] for one in checks), default=0)
