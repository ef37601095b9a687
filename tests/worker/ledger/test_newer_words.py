"""Words that a newer version has written: programs of this one go on beside it, and after a rollback."""

from __future__ import annotations

from sqlalchemy import text


def write(database, statement):
    """As a version would that this one does not know."""
    with database.connect() as connection:
        connection.execute(text(statement))


def test_a_study_with_a_reason_of_a_newer_version_is_claimed(ledger, given, database):
    """An image was set aside for what this version has no word for: it is told as it stands."""
    claim = given.claimed("1.2", "1.2.1.1", "1.2.1.2")
    finding = given.finding(claim, by_policy=["1.2.1.2"])
    ledger.record(claim, finding, given.outputs(finding), ["pacs"])
    write(database, "UPDATE images SET reason = 'FROM_LATER' WHERE sop_instance_uid = '1.2.1.2'")
    assert given.ends("1.2")["1.2.1.2"] == ("by_policy", "FROM_LATER")
    assert ledger.status().by_policy == {"FROM_LATER": 1}
    claim = given.claimed("1.2", "1.2.1.1", "1.2.1.2", "1.2.1.3")
    assert len(claim.instances) == 3


def test_an_output_of_a_newer_version_is_delivered(ledger, given, database):
    """Its bytes are what is sent, whatever it is for; none behind it waits."""
    given.scored("1.2", "1.2.1.1")
    write(database, "UPDATE outputs SET role = 'from later' WHERE role = 'sc'")
    assert {str(one.role) for one in ledger.due_deliveries("pacs", 10)} == {"from later", "sr"}
    assert ledger.study("1.2").results
