"""Runs that survive anything: real kills, torn and damaged files, full disks, two writers, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import kills
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from command import LONG, ROOT, Milr
from milr.drafts import Task, UserError
from milr.runs.journal import Journal, image_file, put_aside, read_head, read_lines, read_tasks
from runs_toy import install_redness

TOY = ("--model", "toy", "--reward", "redness")


@pytest.fixture
def redness(monkeypatch):
    install_redness(monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An unbroken run: (its folder, what it left)."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        install_redness(patch)
        kills.run(folder)
    return folder, kills.left(folder)


def copy(folder, to):
    subprocess.run(["cp", "-r", folder, to], check=True)
    return to


def in_a_process_of_its_own(*arguments):
    """The lines that kills.py prints."""
    path = os.pathsep.join(str(ROOT / part) for part in ("src", "tests", "tests/runs"))
    run = subprocess.run(
        [sys.executable, kills.__file__, *map(str, arguments)], capture_output=True, text=True, timeout=LONG,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


@pytest.mark.parametrize("count", [8, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_ends_as_if_unbroken(tmp_path, count):
    trials = [json.loads(line) for line in in_a_process_of_its_own("kill", tmp_path, 3, count)]
    assert len(trials) == count
    for number, trial in enumerate(trials):
        assert trial["kills"] == (3 if number % 5 == 0 else 1)
        assert trial["status"] == 0
        assert trial["same_report"], trial
        assert trial["same_lines"], trial
        assert trial["nothing_twice"], trial
        assert trial["same_images"], trial


@settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(cut=st.floats(0, 1))
def test_a_journal_cut_anywhere_is_made_whole(whole, redness, tmp_path_factory, cut):
    """Power loss: the tail of the journal is gone, in the middle of a line or not."""
    source, left = whole
    folder = copy(source, tmp_path_factory.mktemp("cut") / "run")
    journal = folder / "journal.jsonl"
    with journal.open("r+b") as stream:
        stream.truncate(int(cut * journal.stat().st_size))
    (folder / "report.json").unlink()
    kills.run(folder)
    assert kills.left(folder) == left


def test_a_torn_end_of_zeros_is_dropped(whole, redness, tmp_path):
    """What some file systems leave after a power cut."""
    folder = copy(whole[0], tmp_path / "run")
    with (folder / "journal.jsonl").open("ab") as stream:
        stream.write(b"\0" * 100)
    kills.run(folder)
    assert kills.left(folder) == whole[1]


def test_a_damaged_line_in_the_middle_is_said_and_nothing_is_lost(whole, redness, tmp_path):
    folder = copy(whole[0], tmp_path / "run")
    journal = folder / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:5], b'{"half": \n', *lines[6:]]))
    before = journal.read_bytes()
    with pytest.raises(UserError, match=r"Line 6 of .* is damaged"):
        kills.run(folder)
    assert journal.read_bytes() == before


def test_drafts_whose_image_is_lost_are_drawn_again(whole, redness, tmp_path):
    folder = copy(whole[0], tmp_path / "run")
    journal = folder / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    first_end = next(k for k, line in enumerate(lines) if b'"outcome"' in line)
    journal.write_bytes(b"".join(lines[:first_end]))  # searches that have begun and not ended
    broken, gone = (json.loads(line)["image"] for line in lines[1:3])
    image_file(folder, broken).write_bytes(b"not what its name says")
    image_file(folder, gone).unlink(missing_ok=True)
    kills.run(folder)
    report, _, images = kills.left(folder)
    assert (report, images) == (whole[1][0], whole[1][2])


def test_a_full_disk_stops_the_run_and_it_goes_on_when_there_is_room(whole, redness, tmp_path):
    """The kernel refuses to let files grow beyond so many bytes, in the middle of a line as it comes."""
    rooms = (1, 2000, 20_000, 60_000)
    assert in_a_process_of_its_own("full", tmp_path, *rooms) == ["3"] * len(rooms)  # it said that it cannot write
    for room in rooms:
        folder = tmp_path / str(room)
        assert not list(folder.rglob("*.tmp"))
        kills.run(folder)
        assert kills.left(folder) == whole[1]


@pytest.mark.parametrize("at", [0, 3, 20])
def test_a_rename_that_fails_leaves_nothing_half_written(whole, redness, tmp_path, monkeypatch, at):
    replace, count = os.replace, iter(range(10**6))

    def failing(source, target):
        if next(count) == at:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(UserError, match="No space left"):
        kills.run(tmp_path / "run")
    assert not list(tmp_path.rglob("*.tmp"))
    kills.run(tmp_path / "run")
    assert kills.left(tmp_path / "run") == whole[1]


def test_one_writer_at_a_time(tmp_path):
    with (
        Journal(tmp_path / "run", {}),
        pytest.raises(UserError, match="Another run is writing"),
        Journal(tmp_path / "run", {}),
    ):
        pass


def test_the_folder_says_what_it_is(tmp_path):
    task = Task("a fox", id="7", category="one", metadata={"tag": "x"})
    with Journal(tmp_path / "run", {"seed": 3}, [task]):
        pass
    assert read_head(tmp_path / "run") == {"format": "milr-run/1", "seed": 3}
    assert read_tasks(tmp_path / "run") == [task]
    assert list(read_lines(tmp_path / "run")) == []
    with pytest.raises(UserError, match="is no run of milr"):
        read_head(tmp_path)
    (tmp_path / "run" / "tasks.jsonl").rename(tmp_path / "away")
    with pytest.raises(UserError, match=r"tasks\.jsonl .* restore it"):
        read_tasks(tmp_path / "run")
    assert put_aside(tmp_path / "run") == tmp_path / "run.old-1"
    assert put_aside(tmp_path / "run") is None


# --- The real command ---------------------------------------------------------------------------------------------


@pytest.fixture
def milr(tmp_path):
    with Milr(tmp_path) as milr:
        yield milr


def bench(*more):
    return ("bench", "toys", *TOY, "--limit", "4", "--budget", "4", "--batch", "2", "--search", "best-of-n",
            "--search", "repair", "--out", "r", *more)  # fmt: skip


def test_ctrl_c_twice_a_second_writer_and_a_new_beginning(milr):
    first = milr.start_and_wait(*bench())
    second = milr(*bench())  # the first one waits in the middle of its work, however long this takes to start
    assert second.returncode == 2
    assert "Another run is writing" in second.stderr
    while first.poll() is None:  # again and again: whatever it does to end well is interrupted, too
        first.send_signal(signal.SIGINT)
        time.sleep(0.002)
    out, _ = first.communicate()
    assert first.returncode != 0
    assert out == ""
    kept = (milr.folder / "r" / "journal.jsonl").read_bytes()
    assert kept

    other = milr(*bench("--seed", "1"))
    assert other.returncode == 2
    assert "another seed (0, not 1)" in other.stderr
    assert "--force-new" in other.stderr
    assert (milr.folder / "r" / "journal.jsonl").read_bytes() == kept

    resumed = milr(*bench())
    assert resumed.returncode == 0, resumed.stderr
    assert (milr.folder / "r" / "journal.jsonl").read_bytes().startswith(kept)
    anew = milr(*bench("--force-new"))
    assert anew.returncode == 0, anew.stderr
    assert (milr.folder / "r.old-1" / "journal.jsonl").exists()
    reports = [Path(milr.folder / name / "report.json").read_bytes() for name in ("r", "r.old-1")]
    assert reports[0] == reports[1]
