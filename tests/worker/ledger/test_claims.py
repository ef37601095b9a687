"""One worker at a time has a job, and who lost it cannot write."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from dicom_node.errors import Reason
from worker.ledger import Recorded


def test_unknown_study_gives_no_claim(ledger, given):
    """There is nothing to claim of a study that was never registered."""
    assert given.try_claim("1.2") is None


def test_claimed_job_is_not_given_twice(ledger, given):
    """While a lease runs nobody else gets the job."""
    given.claimed("1.2", "1.2.1.1")
    assert given.try_claim("1.2", worker="w2") is None


def test_threads_claim_at_once(ledger, given):
    """Of many threads that claim the same study at once exactly one wins."""
    given.registered("1.2", "1.2.1.1")
    start = threading.Barrier(6)

    def claim(number: int) -> bool:
        start.wait()
        return given.try_claim("1.2", worker=f"w{number}") is not None

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(claim, range(6))) == 1


def test_threads_register_at_once(ledger, given):
    """Of many threads that register the same image at once exactly one finds it new."""
    start = threading.Barrier(6)

    def register(_: int) -> int:
        start.wait()
        return given.registered("1.2", "1.2.1.1").new

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(register, range(6))) == 1


def test_lapsed_lease_is_claimable(ledger, given, clock):
    """When the lease has lapsed another worker gets the job, with a higher fence."""
    first = given.claimed("1.2", "1.2.1.1")
    clock.pass_by(given.lease.total_seconds() + 1)
    second = given.try_claim("1.2", worker="w2")
    assert (second.job_id, second.attempt) == (first.job_id, 2)
    assert second.fence > first.fence


def test_extended_lease_is_not_claimable(ledger, given, clock):
    """A lease that its worker extends does not lapse."""
    claim = given.claimed("1.2", "1.2.1.1")
    clock.pass_by(given.lease.total_seconds() - 1)
    assert ledger.extend(claim, lease=given.lease)
    clock.pass_by(2)
    assert given.try_claim("1.2", worker="w2") is None


def test_lost_lease_cannot_be_extended(ledger, given, clock):
    """A worker whose job went on without it is told so."""
    claim = given.claimed("1.2", "1.2.1.1")
    clock.pass_by(given.lease.total_seconds() + 1)
    given.try_claim("1.2", worker="w2")
    assert not ledger.extend(claim, lease=given.lease)


def test_old_fence_records_nothing(ledger, given, clock):
    """A worker that wakes up after its lease has gone to another writes nothing."""
    claim = given.claimed("1.2", "1.2.1.1")
    clock.pass_by(given.lease.total_seconds() + 1)
    given.try_claim("1.2", worker="w2")
    before, finding = given.study("1.2"), given.finding(claim)
    assert ledger.record(claim, finding, given.outputs(finding), ["pacs"]) is Recorded.STALE
    assert ledger.quarantine(claim, Reason.UNREADABLE, "It cannot be read.") is Recorded.STALE
    assert ledger.release(claim, retry_in=timedelta(0), sentence="Later.") is Recorded.STALE
    assert ledger.finish_without_result(claim, finding) is Recorded.STALE
    assert given.study("1.2") == before


def test_overtaken_generation_is_not_recorded(ledger, given):
    """A late image takes the job from under its worker: the older generation's result is not written."""
    claim = given.claimed("1.2", "1.2.1.1")
    given.registered("1.2", "1.2.1.1", "1.2.1.2")
    finding = given.finding(claim)
    assert ledger.record(claim, finding, given.outputs(finding), ["pacs"]) is Recorded.SUPERSEDED
    assert given.study("1.2").results == ()


def test_released_job_waits(ledger, given, clock):
    """A job that was given back is claimable after the pause, not before."""
    claim = given.claimed("1.2", "1.2.1.1")
    ledger.release(claim, retry_in=timedelta(seconds=10), sentence="The disk is away.")
    assert given.try_claim("1.2") is None
    clock.pass_by(10)
    assert given.try_claim("1.2").fence == claim.fence + 1


def test_released_claims_are_no_attempts(ledger, given):
    """However often a job is given back in good order, it is not quarantined for it; the times are told."""
    for releases in range(5):
        claim = given.claimed("1.2", "1.2.1.1")
        assert (claim.attempt, claim.releases) == (1, releases)
        ledger.release(claim, retry_in=timedelta(0), sentence="The disk is full.")
    assert given.study("1.2").jobs[0].state == "ready"


def test_poison_job_ends_quarantined(ledger, given, clock):
    """A job whose workers die is quarantined after the last attempt, with its images and a reason."""
    given.registered("1.2", "1.2.1.1")
    for _ in range(3):
        assert given.try_claim("1.2", maximum_attempts=3) is not None
        clock.pass_by(given.lease.total_seconds() + 1)
    assert given.try_claim("1.2", maximum_attempts=3) is None
    assert given.study("1.2").jobs[0].reason is Reason.TOO_MANY_ATTEMPTS
    assert given.ends("1.2") == {"1.2.1.1": ("quarantined", Reason.TOO_MANY_ATTEMPTS)}
    assert list(ledger.announceable()) == []


def test_quarantined_job_keeps_its_reason(ledger, given):
    """What fails for good ends the job; its images say why, and nobody claims it again."""
    claim = given.claimed("1.2", "1.2.1.1", "1.2.1.2")
    ledger.quarantine(claim, Reason.IDENTITY_CONFLICT, "The images name different patients.")
    assert set(given.ends("1.2").values()) == {("quarantined", Reason.IDENTITY_CONFLICT)}
    assert given.try_claim("1.2") is None


def test_retry_gives_a_quarantined_job_new_attempts(ledger, given):
    """A quarantined job that people retry is claimed anew; its fence goes on rising."""
    claim = given.claimed("1.2", "1.2.1.1")
    ledger.quarantine(claim, Reason.NOT_A_NUMBER, "The network returned no number.")
    assert ledger.retry("1.2") == 1
    assert given.ends("1.2") == {"1.2.1.1": ("pending", None)}
    again = given.try_claim("1.2")
    assert (again.attempt, again.fence) == (1, 2)


def rejected(ledger, given, study, *sops):
    """A study that ended with each of these images set aside, the decoder having timed out."""
    claim = given.claimed(study, *sops)
    ledger.finish_without_result(claim, given.finding(claim, rejected=sops))


def test_retry_reads_a_rejected_study_again(ledger, given):
    """A study whose every image was set aside for want of time gets a new generation that may score it."""
    rejected(ledger, given, "1.2", "1.2.1.1")
    assert ledger.retry("1.2") == 1
    assert given.ends("1.2") == {"1.2.1.1": ("pending", None)}
    assert [job.state for job in given.study("1.2").jobs] == ["done", "ready"]
    given.scored("1.2", "1.2.1.1")
    assert given.ends("1.2") == {"1.2.1.1": ("scored", None)}


def test_retry_reads_a_partly_rejected_study_again(ledger, given):
    """The image that was left out joins the others in a result that supersedes the first."""
    claim = given.claimed("1.2", "1.2.1.1", "1.2.1.2")
    finding = given.finding(claim, rejected=["1.2.1.2"])
    ledger.record(claim, finding, given.outputs(finding), ["pacs"])
    assert ledger.retry() == 1
    again = given.try_claim("1.2")
    assert len(again.instances) == 2
    finding = given.finding(again)
    assert ledger.record(again, finding, given.outputs(finding), ["pacs"]) is Recorded.RECORDED
    assert [result.superseded_at is None for result in given.study("1.2").results] == [False, True]


def test_retry_leaves_second_contents(ledger, given):
    """The second content of a UID was never work: there is nothing to try again."""
    given.scored("1.2", "1.2.1.1")
    ledger.register("1.2", [given.spooled("1.2", "1.2.1.1", "other pixels")])
    assert ledger.retry() == 0
    assert [job.state for job in given.study("1.2").jobs] == ["done"]


def test_retry_of_one_study_leaves_others(ledger, given):
    """`retry` with a UID touches that study only."""
    for study in ("1.2", "1.3"):
        ledger.quarantine(given.claimed(study, f"{study}.1.1"), Reason.NOT_A_NUMBER, "No number.")
    assert ledger.retry("1.2") == 1
    assert given.study("1.3").jobs[0].state == "quarantined"


def test_announceable_names_what_may_be_claimed(ledger, given, clock):
    """The reconciler is told of ready jobs and lapsed leases, and of nothing else."""
    given.registered("1.1", "1.1.1.1")
    given.scored("1.2", "1.2.1.1")
    given.claimed("1.3", "1.3.1.1")
    assert list(ledger.announceable()) == ["1.1"]
    clock.pass_by(given.lease.total_seconds() + 1)
    assert sorted(ledger.announceable()) == ["1.1", "1.3"]


def test_finished_by_policy_leaves_nothing_to_send(ledger, given):
    """A job that ends without a result gives its images their reasons and makes no delivery."""
    claim = given.claimed("1.2", "1.2.1.1", "1.2.1.2")
    finding = given.finding(claim, by_policy=["1.2.1.1"], rejected=["1.2.1.2"])
    assert ledger.finish_without_result(claim, finding) is Recorded.RECORDED
    assert given.ends("1.2") == {
        "1.2.1.1": ("by_policy", Reason.NOT_FRONTAL),
        "1.2.1.2": ("quarantined", Reason.DECODER_TIMEOUT),
    }
    assert given.study("1.2").results == ()


def test_rejected_images_leave_the_result_in_force(ledger, given):
    """When nothing of a newer generation can be read, the earlier result stands, and its scores with it."""
    given.scored("1.2", "1.2.1.1")
    rejected(ledger, given, "1.2", "1.2.1.1", "1.2.1.2")
    assert given.ends("1.2") == {
        "1.2.1.1": ("scored", None),
        "1.2.1.2": ("quarantined", Reason.DECODER_TIMEOUT),
    }


def test_finding_must_decide_on_every_image(ledger, given):
    """A finding that forgets a claimed image is refused and changes nothing: no image is silently skipped."""
    claim = given.claimed("1.2", "1.2.1.1")
    wider = given.finding(given.claimed("1.3", "1.3.1.1", "1.3.1.2"))
    before = given.study("1.2")
    with pytest.raises(ValueError, match="every claimed image"):
        ledger.record(claim, wider, [], [])
    assert given.study("1.2") == before
