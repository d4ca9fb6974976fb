"""events.jsonl: starts and saves of a run, over a stop and a resume."""

import os

from helpers import StopAt, run, settings

from distae.runtime import events


def test_a_run_that_was_resumed_has_both_starts_and_all_its_saves(tmp_path):
    cfg = settings(save_every=5)
    assert run(cfg, tmp_path / "run", StopAt(12)).outcome == "stopped"
    assert run(cfg, tmp_path / "run").outcome == "done"
    found = events.read(tmp_path / "run")
    starts = [event for event in found if event.event == "start"]
    assert len(starts) == 2
    assert starts[0].step == 0
    assert 0 < starts[1].step < 20
    assert starts[0].environment["torch"]
    saved = [event.step for event in found if event.event == "checkpoint"]
    assert {5, 10, 15, 20, starts[1].step} <= {*saved}
    assert [event.time for event in found] == sorted(event.time for event in found)


def test_damaged_lines_and_other_things_than_files_do_no_harm(tmp_path):
    assert events.read(tmp_path) == []
    events.record(tmp_path, "checkpoint", 3)
    with (tmp_path / events.FILE).open("a") as file:
        file.write('nonsense\n{"event": "other", "step": 1, "time": 0}\n[[[\n')
    events.record(tmp_path, "start", 4, commit="abc")
    assert [(e.event, e.step, e.environment) for e in events.read(tmp_path)] == [
        ("checkpoint", 3, {}), ("start", 4, {"commit": "abc"})
    ]  # fmt: skip
    (tmp_path / events.FILE).unlink()
    os.mkfifo(tmp_path / events.FILE)
    events.record(tmp_path, "start", 5)
    assert events.read(tmp_path) == []
