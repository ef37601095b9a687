"""What came in is registered once, and only what gives work makes a generation."""

from __future__ import annotations

from dicom_node.errors import Reason
from worker.ledger import Registration


def test_first_image_makes_a_job(ledger, given):
    """A study's first image makes generation 1, ready to be claimed."""
    assert given.registered("1.2", "1.2.1.1") == Registration(new=1, job_ready=True, generation=1)


def test_registering_again_changes_nothing(ledger, given):
    """The same spool registered twice leaves the same ledger, events included."""
    given.registered("1.2", "1.2.1.1")
    before = given.study("1.2")
    assert given.registered("1.2", "1.2.1.1") == Registration(new=0, job_ready=True, generation=1)
    assert given.study("1.2") == before


def test_an_empty_spool_registers_nothing(ledger):
    """A message about a study whose directory is empty leaves no trace."""
    assert ledger.register("1.2", []) == Registration(new=0, job_ready=False, generation=0)
    assert ledger.studies() == []


def test_late_image_makes_a_generation(ledger, given):
    """An image that comes after the result makes generation 2, whose claim holds both images."""
    given.scored("1.2", "1.2.1.1")
    registration = given.registered("1.2", "1.2.1.1", "1.2.1.2")
    assert registration == Registration(new=1, job_ready=True, generation=2)
    claim = given.try_claim("1.2")
    assert {one.sop_instance_uid for one in claim.instances} == {"1.2.1.1", "1.2.1.2"}


def test_late_image_supersedes_a_ready_job(ledger, given):
    """Of two generations that were never claimed only the newer is."""
    given.registered("1.2", "1.2.1.1")
    given.registered("1.2", "1.2.1.1", "1.2.1.2")
    assert [job.state for job in given.study("1.2").jobs] == ["superseded", "ready"]


def test_claim_gives_back_what_was_registered(ledger, given):
    """Every fact of a spooled image survives the ledger, to the microsecond and beyond 32 bits."""
    instance = given.spooled("1.2", "1.2.1.1")
    ledger.register("1.2", [instance])
    assert given.try_claim("1.2").instances == (instance,)


def test_own_output_gives_no_work(ledger, given):
    """Our own object that comes back is set aside by policy and makes no job, whatever became of it."""
    finding = given.scored("1.2", "1.2.1.1")
    echo = given.outputs(finding)[0].sop_instance_uid
    registration = ledger.register("1.9", [given.spooled("1.9", echo, "altered on the way")])
    assert registration == Registration(new=1, job_ready=False, generation=0)
    assert given.ends("1.9") == {echo: ("by_policy", Reason.OWN_OUTPUT)}


def test_second_content_is_quarantined(ledger, given):
    """Other content under a known UID is kept, quarantined, and makes no new generation."""
    given.scored("1.2", "1.2.1.1")
    registration = ledger.register("1.2", [given.spooled("1.2", "1.2.1.1", "other pixels")])
    assert registration == Registration(new=1, job_ready=False, generation=1, conflicting=1)
    assert {(i.disposition, i.reason) for i in given.study("1.2").images} == {
        ("scored", None),
        ("quarantined", Reason.CONFLICTING_CONTENT),
    }


def test_two_contents_at_once_first_wins(ledger, given):
    """Of two contents under one UID that are registered together only one is work."""
    twins = [given.spooled("1.2", "1.2.1.1", "a"), given.spooled("1.2", "1.2.1.1", "b")]
    ledger.register("1.2", twins)
    assert len(given.try_claim("1.2").instances) == 1


def test_registered_counts_files(ledger, given):
    """`registered` counts contents, as the spool counts files."""
    given.registered("1.2", "1.2.1.1", "1.2.1.2")
    ledger.register("1.2", [given.spooled("1.2", "1.2.1.1", "other pixels")])
    assert (ledger.registered("1.2"), ledger.registered("1.3")) == (3, 0)


def test_registered_counts_of_every_study(ledger, given):
    """One look tells `registered` of every study that has images."""
    given.registered("1.2", "1.2.1.1", "1.2.1.2")
    given.registered("1.3", "1.3.1.1")
    assert ledger.registered_counts() == {"1.2": 2, "1.3": 1}


def test_study_of_thousands_of_images(ledger, given):
    """A study with more images than one IN list holds is registered whole."""
    sops = [f"1.2.1.{number}" for number in range(1, 2502)]
    assert given.registered("1.2", *sops).new == 2501
