"""Whatever the order of arrivals, crashes and second chances, no image is lost and no result is doubled."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from itertools import count, pairwise
from typing import Any

from hypothesis import HealthCheck, example, settings
from hypothesis import given as generated
from hypothesis import strategies as st

from dicom_node.errors import Reason
from worker.ledger import Claim, StudyRecord

_studies = count(1)


class Story:
    """One study, what happens to it, and what must be true at every moment."""

    def __init__(self, ledger: Any, given: Any, clock: Any) -> None:
        self.ledger, self.given, self.clock = ledger, given, clock
        self.uid = f"1.2.{next(_studies)}"
        self.contents: set[tuple[str, str]] = set()
        self.claims: list[Claim] = []
        self.fences: dict[int, int] = {}

    def arrive(self, number: int) -> None:
        """Four images in turn, each with a second content that comes later."""
        sop, content = f"{self.uid}.1.{number % 4 + 1}", "ab"[number // 4 % 2]
        self.ledger.register(self.uid, [self.given.spooled(self.uid, sop, content)])
        self.contents.add((sop, content))

    def claim(self, number: int) -> None:
        claim = self.given.try_claim(self.uid, worker=f"w{number}")
        if claim is not None:
            self.claims.append(claim)

    def lapse(self, _: int) -> None:
        self.clock.pass_by(self.given.lease.total_seconds() + 1)

    def record(self, number: int) -> None:
        for claim in self.claims[-2:]:
            sops = [instance.sop_instance_uid for instance in claim.instances]
            finding = self.given.finding(claim, by_policy=sops[1:2] if number % 2 else [])
            self.ledger.record(claim, finding, self.given.outputs(finding), ["pacs"])

    def quarantine(self, _: int) -> None:
        for claim in self.claims[-1:]:
            self.ledger.quarantine(claim, Reason.NOT_A_NUMBER, "The network returned no number.")

    def rejected(self, _: int) -> None:
        """The decoder times out on every image."""
        for claim in self.claims[-1:]:
            sops = [instance.sop_instance_uid for instance in claim.instances]
            self.ledger.finish_without_result(claim, self.given.finding(claim, rejected=sops))

    def partly_rejected(self, _: int) -> None:
        """The decoder times out on all images but the first."""
        for claim in self.claims[-1:]:
            sops = [instance.sop_instance_uid for instance in claim.instances]
            finding = self.given.finding(claim, rejected=sops[1:])
            self.ledger.record(claim, finding, self.given.outputs(finding), ["pacs"])

    def release(self, _: int) -> None:
        for claim in self.claims[-1:]:
            self.ledger.release(claim, retry_in=timedelta(0), sentence="The disk is full.")

    def retry(self, _: int) -> None:
        self.ledger.retry(self.uid)
        study = self.ledger.study(self.uid)
        jobs = [] if study is None else [job.state for job in study.jobs]
        if "claimed" not in jobs and "ready" not in jobs:
            # Nothing that was ever work is left behind.
            assert not any(i.generation and i.disposition == "quarantined" for i in study.images)

    def check(self) -> None:
        study = self.ledger.study(self.uid)
        if study is None:
            assert not self.contents
            return
        assert len(study.images) == len(self.contents)
        self._check_jobs(study)
        assert sum(result.superseded_at is None for result in study.results) <= 1
        assert len({result.generation for result in study.results}) == len(study.results)
        for later, earlier in pairwise(reversed(study.results)):
            assert later.input_set_hash != earlier.input_set_hash

    def _check_jobs(self, study: StudyRecord) -> None:
        alive = [job for job in study.jobs if job.state in ("ready", "claimed")]
        assert len(alive) <= 1
        assert alive or not any(image.disposition == "pending" for image in study.images)
        for job in study.jobs:
            assert job.fence >= self.fences.get(job.generation, 0)
            self.fences[job.generation] = job.fence


STEPS: list[Callable[[Story, int], None]] = [
    Story.arrive,
    Story.claim,
    Story.lapse,
    Story.record,
    Story.quarantine,
    Story.rejected,
    Story.partly_rejected,
    Story.release,
    Story.retry,
]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@generated(steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 7)), min_size=4, max_size=12))
@example(steps=[(Story.claim, 0), (Story.rejected, 0), (Story.retry, 0), (Story.claim, 0), (Story.record, 0)])
def test_no_order_of_steps_loses_an_image(ledger, given, clock, steps):
    """After every step all images are accounted for, one job at most lives, and one result is in force."""
    story = Story(ledger, given, clock)
    story.arrive(0)
    for step, number in steps:
        step(story, number)
        story.check()
    assert ledger.verify().ok
