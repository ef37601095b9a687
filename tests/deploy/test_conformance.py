"""The conformance statement says what associations really negotiate."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydicom.uid import UID
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import (
    ModalityWorklistInformationFind,
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from deploy.conformance import statement
from deploy.pacs import StandInPacs
from dicom_node import uids
from dicom_node.spool import Spool
from tests.dicom_node.conftest import listen  # noqa: F401 (a fixture)
from tests.worker.build import settings_in, written
from worker.deliver import Deliverer
from worker.ledger import open_ledger
from worker.settings import Settings

STATEMENT = Path(__file__).parents[2] / "deploy" / "CONFORMANCE.md"
_ROW = re.compile(r"^\| [^|]+ \| ([\d.]+) \| [^|]+ \| ([\d.]+) \| (SCU|SCP) \|$", re.MULTILINE)
_SYNTAXES = [
    *uids.TRANSFER_SYNTAXES,
    "1.2.840.10008.1.2.1.99",  # deflated
    "1.2.840.10008.1.2.4.100",  # MPEG-2
    "1.2.840.10008.1.2.4.92",
    "1.2.840.10008.1.2.4.110",  # JPEG XL
]
_OTHERS = (
    Verification,
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
    ModalityWorklistInformationFind,
)


def told(text: str, section: str) -> set[tuple[str, str]]:
    part = text[text.index(f"#### {section}") :]
    end = re.search(r"\n#{2,4} ", part[5:])
    return {
        (abstract, syntax) for abstract, syntax, _ in _ROW.findall(part[: end.start() + 5] if end else part)
    }


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    monkeypatch.setenv("COVARIANCE_CONFIG", "")


def test_the_statement_in_the_repository_is_that_of_the_defaults():
    """`covariance conformance > deploy/CONFORMANCE.md` was run after the last change."""
    assert STATEMENT.read_text() == statement(Settings())


def test_the_listener_takes_what_the_statement_says_and_nothing_else(listen):  # noqa: F811
    """Every storage class and service of pynetdicom is proposed in every syntax."""
    node = listen()
    classes = [str(one.abstract_syntax) for one in AllStoragePresentationContexts]
    proposals = [(one, syntax) for one in (*dict.fromkeys(classes), *_OTHERS) for syntax in _SYNTAXES]
    supported = {abstract for abstract, _ in told(statement(Settings()), "4.2.1")}
    # What is not to be supported is proposed in all syntaxes at once: that is one context, not nineteen.
    contexts = [build_context(a, syntax) for a, syntax in proposals if a in supported]
    contexts += [
        build_context(a, _SYNTAXES) for a in dict.fromkeys(a for a, _ in proposals) if a not in supported
    ]
    accepted = set()
    for start in range(0, len(contexts), 120):
        entity = AE(ae_title="MODALITY")
        entity.requested_contexts = contexts[start : start + 120]
        association = entity.associate("127.0.0.1", node.port, ae_title="COVARIANCE")
        assert association.is_established or not association.is_rejected
        accepted |= {
            (str(one.abstract_syntax), str(one.transfer_syntax[0])) for one in association.accepted_contexts
        }
        association.release()
    assert accepted == told(statement(Settings()), "4.2.1")


@pytest.mark.parametrize("verify", ["commitment", "find"])
def test_the_sender_proposes_what_the_statement_says(tmp_path, verify):
    """What a PACS is really proposed, over sending and proving."""
    asked: set[tuple[str, str]] = set()

    def note(event: evt.Event) -> None:
        for one in event.assoc.requestor.requested_contexts:
            asked.update((str(one.abstract_syntax), str(syntax)) for syntax in one.transfer_syntax)

    with StandInPacs(tmp_path / "pacs", ae_title="PACS") as pacs:
        pacs._server.bind(evt.EVT_REQUESTED, note)
        there = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": pacs.port, "verify": verify}
        settings = settings_in(tmp_path, destinations=[there])
        spool = Spool(settings.spool.path)
        spool.prepare()
        with open_ledger(settings, migrate=True) as ledger:
            written(ledger, spool, "1.2.3")
            Deliverer(settings.destinations[0], settings=settings, ledger=ledger).step()
    assert asked == told(statement(settings), "4.2.2")


def test_every_uid_of_the_statement_has_a_name():
    """A reader meets names beside UIDs, and no UID that the standard does not know."""
    for abstract, syntax in told(STATEMENT.read_text(), "4.2.1"):
        assert UID(abstract).name != abstract
        assert UID(syntax).is_transfer_syntax
