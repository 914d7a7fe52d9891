"""Runs that survive anything: real kills, torn and damaged files, full disks, two writers, Ctrl-C."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import kills
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from power import Disk, PowerCut

from command import LONG, ROOT, Milr
from milr.disk import write_whole
from milr.drafts import Ask, Cost, Draft, Drawn, Score, Task, UserError
from milr.reports.reading import write_report
from milr.runs import journal as journal_module
from milr.runs.journal import Journal, Picture, encode, image_file, put_aside, read_head, read_lines, read_tasks
from milr.runs.looks import look
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


def test_killed_and_stopped_while_it_resumes_and_once_more_it_ends_as_if_unbroken(tmp_path):
    """Both ways, in the middle of reading, of drawing, of judging and of writing."""
    trials = [json.loads(line) for line in in_a_process_of_its_own("again", tmp_path)]
    assert len(trials) == 8
    for trial in trials:
        assert trial == {
            **trial, "stopped": [True] * 3, "status": 0, "same_report": True, "same_lines": True, "same_images": True,
        }  # fmt: skip


@pytest.mark.parametrize("written_early", [(), ("journal.jsonl",)], ids=["in order", "journal early"])
def test_what_was_said_to_be_on_disk_outlives_the_power(redness, tmp_path, monkeypatch, written_early):
    """Cut before a sync, here and there. What the run told of is not drawn again, and it ends as if unbroken; also
    where the system wrote lines before it was asked to."""
    unbroken, counted = kills.Counting(), tmp_path / "counted"
    counted.mkdir()
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        kills.run(counted / "run", unbroken, **kills.SMALL)
    whole, syncs = kills.left(counted / "run"), disk.syncs
    for cut_at in (0, 1, 3, 5, 6, 7, 8, 9, syncs // 3, syncs // 2, syncs - 9):
        drafts, folder = {}, tmp_path / f"disk-{cut_at}"
        folder.mkdir()
        with monkeypatch.context() as patch:
            disk = Disk(patch, cut_at)

            def tell(progress, drafts=drafts):
                drafts[progress.method] = progress.drafts

            with pytest.raises(PowerCut):
                kills.run(folder / "run", tell=tell, **kills.SMALL)
        left = disk.survivors(folder, tmp_path / f"left-{cut_at}", written_early)
        again = kills.Counting()
        kills.run(left / "run", again, **kills.SMALL)
        assert kills.left(left / "run") == whole, cut_at
        assert again.drawn <= unbroken.drawn - sum(drafts.values()), cut_at


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_it_goes_on_with_another_batch(whole, redness, tmp_path, batch):
    folder = copy(whole[0], tmp_path / "run")
    journal = folder / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[: len(lines) // 2]))
    kills.run(folder, batch=batch)
    report, lines, images = kills.left(folder)
    assert (lines, images) == whole[1][1:]
    assert report["searches"] == whole[1][0]["searches"]
    told = json.loads((folder / "report.json").read_bytes())
    assert [one["batch"] for one in told["machines"]] == [4, batch]


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


def test_an_ended_search_without_one_of_its_drafts_goes_on_from_the_others(whole, redness, tmp_path):
    """Ctrl-C between a draft and its line left such journals."""
    folder = copy(whole[0], tmp_path / "run")
    journal = folder / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    at = next(k for k, line in enumerate(lines) if b'"draft"' in line and json.loads(line)["draft"]["number"] == 4)
    journal.write_bytes(b"".join(lines[:at] + lines[at + 1 :]))
    with pytest.raises(UserError, match=r"1 searches of .* are missing"):
        write_report(folder)
    again = kills.Counting()
    kills.run(folder, again)
    assert again.drawn == 1
    report, _, images = kills.left(folder)
    assert (report, images) == (whole[1][0], whole[1][2])


def after(real):
    """The call is done when Ctrl-C comes."""

    def interrupted(*arguments):
        real(*arguments)
        raise KeyboardInterrupt

    return interrupted


def before(real):
    """The call is not done when Ctrl-C comes."""

    def interrupted(*arguments):
        raise KeyboardInterrupt

    return interrupted


@pytest.mark.parametrize("call", [2, 4, 7, 10])
@pytest.mark.parametrize("moment", [before, after])
@pytest.mark.parametrize("name", ["foresee", "add_draft", "_settle", "_write"])
def test_ctrl_c_between_a_draft_and_its_line_loses_neither(redness, tmp_path, monkeypatch, name, moment, call):
    """It comes while a draft is handed over, while its picture is waited for, and while its line is made; the last
    draft of its search among them. What was handed over is not drawn again."""
    unbroken = kills.Counting()
    kills.run(tmp_path / "whole", unbroken, **kills.SMALL)
    real, calls = getattr(Journal, name), iter(range(10**9))

    def interrupted(*arguments):
        return (moment(real) if next(calls) == call else real)(*arguments)

    first, second = kills.Counting(), kills.Counting()
    with monkeypatch.context() as patch:
        patch.setattr(Journal, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            kills.run(tmp_path / "run", first, **kills.SMALL)
    kills.run(tmp_path / "run", second, **kills.SMALL)
    report, lines, images = kills.left(tmp_path / "run")
    whole = kills.left(tmp_path / "whole")
    assert (report, sorted(set(lines)), images) == whole, "a line may be there twice, and then says the same"
    if name != "foresee":  # the drafts of that round are not judged yet, and so not on record
        assert first.drawn + second.drawn == unbroken.drawn


# --- Pictures, beside the thread that draws ------------------------------------------------------------------------


DRAFT = Draft(0, Ask(), 1, drawn=None, score=Score(0.5))


def drawn(number=0, shade=100):
    image = Image.new("RGB", (16, 16), (shade, 7, 9))
    image.putpixel((3, 4), (1, 2, 3))
    return replace(DRAFT, number=number, drawn=Drawn("a fox", (1,), True, (2, 3), image, None, 1.0, Cost()))


def test_a_picture_as_png_is_the_picture_and_is_named_by_its_content():
    rng = np.random.default_rng(3)
    for shape in ((2, 2, 3), (16, 9, 3), (40, 40, 3)):
        image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        picture = encode(image)
        assert picture.open().tobytes() == image.tobytes()
        assert picture.name == hashlib.sha256(picture.content).hexdigest()
        assert picture.look == look(image)


def test_sync_waits_for_pictures_and_adding_does_not(tmp_path, monkeypatch):
    gate, order = threading.Event(), []

    def slow(file, content):
        assert gate.wait(LONG)
        found = write_whole(file, content)
        order.append(("written", threading.current_thread() is threading.main_thread()))
        return found

    monkeypatch.setattr(journal_module, "write_whole", slow)
    with Journal(tmp_path / "run", {}) as journal:
        first, second = drawn(0), drawn(1, shade=200)
        journal.foresee(first.drawn.image)
        journal.add_draft("m", "t", 0, first)
        journal.add_draft("m", "t", 0, second)
        assert order == []
        waiting = threading.Thread(target=lambda: (journal.sync(), order.append("synced")))
        waiting.start()
        gate.set()
        waiting.join(LONG)
    assert order == [("written", False), ("written", False), "synced"]
    assert [line["draft"]["number"] for line in read_lines(tmp_path / "run")] == [0, 1]
    assert all((image_file(tmp_path / "run", line["image"])).exists() for line in read_lines(tmp_path / "run"))


def test_a_foreseen_picture_is_encoded_once(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(journal_module, "encode", lambda image: (seen.append(image), encode(image))[1])
    with Journal(tmp_path / "run", {}) as journal:
        draft = drawn()
        journal.foresee(draft.drawn.image)
        journal.add_draft("m", "t", 0, draft)
        journal.sync()
    assert [one is draft.drawn.image for one in seen] == [True]


@pytest.mark.parametrize("foreseen", [False, True])
def test_a_picture_that_cannot_be_written_is_said_and_leaves_no_gap(tmp_path, monkeypatch, foreseen):
    """Nor a line of the draft after it, whose own picture can be written."""
    gate, writes = threading.Event(), iter(range(10))

    def full(file, content):
        assert gate.wait(LONG)
        if next(writes) == 0:
            raise OSError(28, "No space left on device")
        return write_whole(file, content)

    monkeypatch.setattr(journal_module, "WRITERS", 1)  # so the first one is written first
    with Journal(tmp_path / "run", {}) as journal:
        with monkeypatch.context() as patch:
            patch.setattr(journal_module, "write_whole", full)
            first, second = drawn(0, shade=2), drawn(1, shade=3)
            if foreseen:
                journal.foresee(first.drawn.image)
            journal.add_draft("m", "t", 0, first)
            journal.add_draft("m", "t", 0, second)
            gate.set()
            with pytest.raises(UserError, match=r"No space left on device.*make room"):
                journal.sync()
        with pytest.raises(UserError, match="No space left on device"):
            journal.add_draft("m", "t", 0, drawn(1, shade=4))
        journal.sync()
    assert list(read_lines(tmp_path / "run")) == []


def test_a_picture_that_is_there_already_is_there_after_a_power_cut(tmp_path, monkeypatch):
    """Whoever wrote it, another thread or a process that was killed, may not have synced the names of its folders."""
    draft = drawn()
    picture = encode(draft.drawn.image)
    file = image_file(tmp_path / "run", picture.name)
    file.parent.mkdir(parents=True)
    file.write_bytes(picture.content)
    with Journal(tmp_path / "run", {}) as journal:
        disk = Disk(monkeypatch)
        journal.add_draft("m", "t", 0, draft)
        journal.sync()
    for name in (file, file.parent, file.parent.parent):
        assert name.name in disk.names[name.parent.stat().st_ino]


def test_the_same_picture_judged_again_keeps_its_name(tmp_path):
    """An older milr encoded it otherwise, and so may another zlib: by name it would be another picture, and the drafts
    after it would no longer be of its search."""
    folder = tmp_path / "run"
    first, second = drawn(0), drawn(1, shade=50)
    old = io.BytesIO()
    first.drawn.image.save(old, "PNG", compress_level=0)
    name = hashlib.sha256(old.getvalue()).hexdigest()
    assert name != encode(first.drawn.image).name
    with Journal(folder, {}) as journal:
        journal.add_draft("m", "t", 0, first, Picture(name, old.getvalue(), look(first.drawn.image)))
        journal.add_draft("m", "t", 0, second)
        journal.sync()
    with Journal(folder, {}) as journal:
        for _ in range(2):
            journal.add_draft("m", "t", 0, replace(first, score=Score(1.0)))
            journal.sync()
    with Journal(folder, {}) as journal:
        kept = journal.recorded("m", "t", 0)
        assert [draft.score.value for draft in kept] == [1.0, 0.5]
    assert len({line["image"] for line in read_lines(folder)}) == 2
    assert len(list(folder.rglob("*.png"))) == 2

    with Journal(folder, {}) as journal:  # but another picture under its number is another one
        journal.add_draft("m", "t", 0, drawn(0, shade=60))
        journal.sync()
    with Journal(folder, {}) as journal:
        assert len(journal.recorded("m", "t", 0)) == 1


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
