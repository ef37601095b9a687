"""A worker whose device fails under way ends by itself, and its study goes to the next one."""

from __future__ import annotations

import json

from worker.phantom import phantom_dataset


def test_a_lost_device_costs_no_study(make_system, eventually, tmp_path):
    """The worker gives its study back, says why, and ends with code 1; another scores the study."""
    system = make_system([])
    worker = system.programs["worker"]
    worker.environment = {"COVARIANCE_FAILPOINTS": f"scorer.before_infer=raise~{tmp_path / 'lost'}"}
    system.start()
    film = phantom_dataset(1, salt="lost", rows=640, columns=512)
    system.send(film)
    assert worker.process is not None
    assert worker.process.wait(120) == 1
    lines = worker.output.read_text().splitlines()
    events = [json.loads(line)["event"] for line in lines if line.startswith("{")]
    assert "worker_ends" in events
    assert "covariance: The device failed" in lines[-1]
    assert not system.ledger.study(film.StudyInstanceUID).results
    worker.start()
    record = eventually(
        lambda: (found := system.ledger.study(film.StudyInstanceUID)) and found.results and found,
        seconds=120,
        what="another worker has scored the study",
    )
    assert record.results[0].decision in ("positive", "negative")
    assert len(record.jobs) == 1
    system.stop()
