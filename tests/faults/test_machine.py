"""Whatever happens in whatever order, against a plain set of what senders were answered for."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import tempfile
from copy import deepcopy
from datetime import timedelta
from functools import cache
from pathlib import Path

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from deploy.pacs import StandInPacs
from dicom_node.assemble import Assembler
from dicom_node.dispatch import QUEUES, Dispatcher
from dicom_node.errors import Retryable
from dicom_node.lanes import Lane
from dicom_node.server import StorageServer
from dicom_node.spool import Spool
from dicom_node.store_scu import Peer, PeerUnavailable, SendItem, StoreAssociation
from dicom_node.uids import EXPLICIT_VR_LITTLE_ENDIAN
from tests.chaos.oracle import Sent, data_set_sha256, held_in, judge
from tests.worker.build import Clock, settings_in
from worker.deliver import Deliverer
from worker.ledger import open_ledger
from worker.office import Office
from worker.phantom import phantom_dataset
from worker.pipeline import Pipeline
from worker.reconcile import Reconciler
from worker.scorer import Scorer

STUDIES, IMAGES, CONTENTS = 2, 2, 2
QUIET, CAP = 5.0, 120.0
ROUNDS = 40
LONG = settings.get_current_profile_name() == "long"
BOUNDS = settings(
    max_examples=100 if LONG else 10,
    stateful_step_count=40 if LONG else 16,
    deadline=None,
    # An example takes seconds: to make a failing one smaller takes longer than a normal run may.
    phases=tuple(Phase) if LONG else (Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=list(HealthCheck),
)

studies = st.integers(0, STUDIES - 1)
objects = st.tuples(studies, st.integers(0, IMAGES - 1), st.sampled_from([0, 0, 1]))


@cache
def film(study: int, image: int, content: int):
    """One of the images of a study, the last of them a lateral view, in one of two contents."""
    view = "LL" if image == IMAGES - 1 else "PA"
    ds = deepcopy(phantom_dataset(study, rows=260, columns=258, salt="machine", view=view))
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{ds.StudyInstanceUID}.{image + 1}"[-64:]
    ds.ImageComments = f"image {image}, content {content}"
    return ds


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Every film as its sender has it."""
    folder, found = tmp_path_factory.mktemp("films"), {}
    for key in ((s, i, c) for s in range(STUDIES) for i in range(IMAGES) for c in range(CONTENTS)):
        path = folder / f"{'-'.join(map(str, key))}.dcm"
        film(*key).save_as(path, enforce_file_format=True)
        found[key] = path
    return found


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scorer")
    with Scorer(settings_in(folder, worker={"decoders": 1, "engine_cache": folder / "engine"})) as opened:
        yield opened


class Machine(RuleBasedStateMachine):
    """A node, a worker and a deliverer that step when they are told to, in one process."""

    def __init__(self, films: dict, scorer: Scorer, broker: str) -> None:
        super().__init__()
        self.films, self.scorer, self.broker = films, scorer, broker
        self.folder = Path(tempfile.mkdtemp(prefix="covariance-machine-"))
        self.clock = Clock()
        self.sent: set[Sent] = set()
        self.calls = redis.Redis(unix_socket_path=broker)
        self.calls.flushall()
        self.pacs: StandInPacs | None = None
        self._listen(port=0)
        self.pacs_port, self.held = 0, {}
        self.pacs_comes_back()
        self._open()

    def _settings(self):
        pacs = {"name": "pacs", "ae_title": "STANDIN", "host": "127.0.0.1", "port": self.pacs_port}
        return settings_in(
            self.folder,
            assembly={"quiet_seconds": QUIET, "cap_seconds": CAP},
            queue={"url": f"redis+socket://{self.broker}"},
            delivery={"timeout": 5.0},
            destinations=[pacs],
        )

    def _listen(self, port: int) -> None:
        settings = settings_in(self.folder, node={"port": port})
        self.assembler = Assembler(QUIET, CAP)
        self.node_spool = Spool(settings.spool.path)
        self.node_spool.prepare()
        self.server = StorageServer(settings, self.node_spool, self._filed)
        self.port = self.server.start()

    def _filed(self, instance) -> None:
        self.assembler.arrived(instance.study_instance_uid, self.clock.now.timestamp())

    def _open(self) -> None:
        self.settings = self._settings()
        self.spool = Spool(self.settings.spool.path)
        self.ledger = open_ledger(self.settings, migrate=True, clock=self.clock)
        self.dispatcher = Dispatcher(self.settings)
        self.pipeline = Pipeline(
            settings=self.settings, spool=self.spool, ledger=self.ledger, scorer=self.scorer, worker="w"
        )
        (destination,) = self.settings.destinations
        self.deliverer = Deliverer(destination, settings=self.settings, ledger=self.ledger, clock=self.clock)
        self.office = Office(self.settings, self.ledger)
        self.reconciler = Reconciler(
            assembly=self.settings.assembly,
            spool=self.spool,
            ledger=self.ledger,
            dispatcher=self.dispatcher,
            clock=self.clock,
        )

    def _close(self) -> None:
        self.dispatcher.close()
        self.ledger.close()

    @initialize(which=st.lists(objects, min_size=2, max_size=4))
    def begin(self, which):
        self.send(which)

    @rule(which=st.lists(objects, min_size=1, max_size=4))
    def send(self, which):
        """New, the same again, other content of the same UID, or late: it depends on what was before."""
        for one in which:
            self._send(*one)

    def _send(self, study: int, image: int, content: int) -> None:
        ds, path = film(study, image, content), self.films[study, image, content]
        item = SendItem(
            sop_class_uid=ds.SOPClassUID,
            sop_instance_uid=ds.SOPInstanceUID,
            transfer_syntax_uid=EXPLICIT_VR_LITTLE_ENDIAN,
            path=path,
        )
        peer = Peer(ae_title="COVARIANCE", host="127.0.0.1", port=self.port, calling_ae="MODALITY")
        with StoreAssociation(peer, [item]) as association:
            assert association.send(item).status == 0x0000
        sha256 = data_set_sha256(path.read_bytes())
        self.sent.add(
            Sent(study_instance_uid=ds.StudyInstanceUID, sop_instance_uid=ds.SOPInstanceUID, sha256=sha256)
        )

    @rule(seconds=st.sampled_from([1, 6, 30, 700, 90_000]))
    def clock_goes_on(self, seconds):
        self.clock.pass_by(seconds)
        for study in self.assembler.due(self.clock.now.timestamp()):
            self.dispatcher.ring(study)

    @rule()
    def reconcile(self):
        self.reconciler.step()

    @rule()
    def flush_broker(self):
        """`FLUSHALL`: every message is gone."""
        self.calls.flushall()

    @rule(messages=st.integers(1, 3))
    def worker_works(self, messages):
        for _ in range(messages):
            if (study := self._heard()) is not None:
                self._score(study)

    def _heard(self) -> str | None:
        message = self.calls.rpop(self.settings.queue.prefix + QUEUES[Lane.ROUTINE])
        return None if message is None else json.loads(base64.b64decode(json.loads(message)["body"]))[0][0]

    def _score(self, study: str) -> None:
        with contextlib.suppress(Retryable):
            self.pipeline.score_study(study)

    @rule(study=studies, has_kept=st.booleans())
    def worker_dies(self, study, has_kept):
        """It had claimed the study, and perhaps written its outputs."""
        uid = film(study, 0, 0).StudyInstanceUID
        self.ledger.register(uid, self.spool.instances(uid))
        worker = self.settings.worker
        claim = self.ledger.claim(
            uid,
            worker="dead",
            lease=timedelta(seconds=worker.lease),
            maximum_attempts=worker.maximum_attempts,
        )
        if claim is not None and has_kept:
            for one in self.scorer.encode(self.scorer.find(uid, claim.generation, claim.instances)):
                self.spool.outbox.keep(uid, one.sop_instance_uid, one.content)

    @rule()
    def node_dies(self):
        """What it had not rung for is forgotten."""
        self.server.stop()
        self._listen(self.port)

    @rule()
    def everything_else_dies(self):
        self._close()
        self._open()

    @rule()
    def deliver(self):
        self.deliverer.step()
        if self.pacs is not None:
            self.pacs._reports.submit(lambda: None).result(60)

    @rule()
    def deliverer_dies(self):
        """It had sent what was due, and not written down that it had."""
        peer = Peer(ae_title="STANDIN", host="127.0.0.1", port=self.pacs_port, calling_ae="COVARIANCE")
        items = [
            SendItem(
                sop_class_uid=one.sop_class_uid,
                sop_instance_uid=one.sop_instance_uid,
                transfer_syntax_uid=EXPLICIT_VR_LITTLE_ENDIAN,
                path=one.path,
            )
            for one in self.ledger.due_deliveries("pacs", 10)
        ]
        with contextlib.suppress(PeerUnavailable), StoreAssociation(peer, items) as association:
            for item in items:
                association.send(item)
        self.everything_else_dies()

    @rule()
    def housekeeping(self):
        self.office.take_reports()
        self.office.drop_outputs()
        self.office.sweep()

    @precondition(lambda self: self.pacs is not None)
    @rule()
    def pacs_goes_away(self):
        self.held = self.pacs._held
        self.pacs.stop()
        self.pacs = None

    @precondition(lambda self: self.pacs is None)
    @rule()
    def pacs_comes_back(self):
        peers = {"COVARIANCE": ("127.0.0.1", self.port)}
        self.pacs = StandInPacs(self.folder / "pacs", port=self.pacs_port, peers=peers)
        self.pacs._held = self.held
        self.pacs_port = self.pacs.start()

    @precondition(lambda self: self.pacs is not None)
    @rule(status=st.sampled_from([0xA700, 0xC000, None]))
    def pacs_refuses(self, status):
        self.pacs.refuse_with = status

    @rule()
    def heal(self):
        """When all is well again the system comes to rest by itself, and then everything adds up."""
        if self.pacs is None:
            self.pacs_comes_back()
        self.pacs.refuse_with = None
        violations: tuple[str, ...] = ()
        for _ in range(ROUNDS):
            self.clock_goes_on(700)
            self._age_outbox()
            self.reconcile()
            while (study := self._heard()) is not None:
                self._score(study)
            self.ledger.retry()  # what the PACS refused too often
            self.deliver()
            self.housekeeping()
            violations = self._violations()
            if not violations:
                return
        raise AssertionError("\n".join(violations))

    def _violations(self) -> tuple[str, ...]:
        found = judge(
            self.sent, spool=self.spool.root, ledger=self.ledger, pacs=held_in(self.folder / "pacs")
        )
        return found.violations

    def _age_outbox(self) -> None:
        # Their times are the file system's, which does not know our clock.
        for path in self.spool.root.glob("outbox/*/*"):
            os.utime(path, (0, 0))

    def teardown(self):
        try:
            self.heal()
        finally:
            self._close()
            self.server.stop()
            if self.pacs is not None:
                self.pacs.stop()
            self.calls.close()
            shutil.rmtree(self.folder)


@pytest.mark.timeout(7200 if LONG else 300)
def test_no_order_of_events_loses_or_doubles(films, scorer, broker):
    """After any order of sending, dying, forgetting and refusing, all that was answered for adds up."""
    run_state_machine_as_test(lambda: Machine(films, scorer, broker), settings=BOUNDS)
