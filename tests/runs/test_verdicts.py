"""`milr score` and `milr critic calibrate` are runs: killed, torn, doubled, resumed, with pictures that are none."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from stub_judge import stub_judge

from command import Milr
from milr.benchmarks import geneval
from milr.drafts import Score, Task, UserError
from milr.reports.calibrate import asked, calibrate
from milr.runs import score as scoring
from milr.runs.score import Found, Picture, describe_gaps, find_pictures, score
from milr.runs.verdicts import Verdicts, folder_for
from toy_milr.backbone import ToyBackbone
from toy_milr.critic import Redness

HEAD = {"format": "test", "benchmark": "b"}


class Counting:
    """Scores by the red of the first pixel, and remembers how many pictures it was shown. `stop` ends it there."""

    def __init__(self, name="counting", stop=None, mute=False):
        self.name, self.stop, self.mute, self.seen = name, stop, mute, 0

    def score(self, images, tasks):
        if self.stop is not None and self.seen >= self.stop:
            raise UserError("The purse is empty; give more.")
        self.seen += len(images)
        return [Score(None, reason="mute") if self.mute else Score(one.getpixel((0, 0))[0] / 255) for one in images]


def pictures(folder, count, broken=()):
    made = []
    for number in range(count):
        file = folder / f"{number}.png"
        Image.new("RGB", (4, 4), (number, 0, 0)).save(file)
        if number in broken:
            file.write_bytes(file.read_bytes()[:50])
        made.append(Picture(file, Task(f"prompt {number}", f"t-{number}", "c")))
    return Found(tuple(made), (), tuple(one.task for one in made), count)


# --- Score ------------------------------------------------------------------------------------------------------


def test_only_what_is_missing_is_judged(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "AT_ONCE", 4)
    found, once, dear = pictures(tmp_path, 10), Counting("once"), Counting("dear", stop=8)
    with Verdicts(tmp_path / "run", HEAD) as record, pytest.raises(UserError, match="purse"):
        score(found, [once, dear], record=record)
    assert (once.seen, dear.seen) == (10, 8)
    once, dear = Counting("once"), Counting("dear")
    with Verdicts(tmp_path / "run", HEAD) as record:
        whole = score(found, [once, dear], record=record)
    assert (once.seen, dear.seen) == (0, 2)
    assert whole == score(found, [Counting("once"), Counting("dear")])
    # A new picture, a changed one and another task of the same picture are judged; a new critic judges all.
    Image.new("RGB", (4, 4), (200, 0, 0)).save(found.pictures[3].file)
    other = Picture(found.pictures[0].file, replace(found.pictures[0].task, prompt="something else"))
    more = Found((*found.pictures, other), (), found.tasks, 10)
    once, new = Counting("once"), Counting("new")
    with Verdicts(tmp_path / "run", HEAD) as record:
        score(more, [once, new], record=record)
    assert (once.seen, new.seen) == (2, 11)


def test_a_critic_whose_rubric_or_weights_are_others_judges_again(tmp_path):
    """K7: its name is the same, and the verdicts on record are not its own."""
    found = pictures(tmp_path, 3)
    seen = []
    for content in ("one rubric", "one rubric", "another"):
        critic = Counting("judge:mine.md")
        critic.content = content
        with Verdicts(tmp_path / "run", HEAD) as record:
            score(found, [critic], record=record)
        seen.append(critic.seen)
    assert seen == [3, 0, 3]


def test_abstentions_are_asked_again(tmp_path):
    found = pictures(tmp_path, 3)
    with Verdicts(tmp_path / "run", HEAD) as record:
        said = score(found, [Counting(mute=True)], record=record)
    assert said["critics"]["counting"]["abstained"] == 3
    mended = Counting()
    with Verdicts(tmp_path / "run", HEAD) as record:
        said = score(found, [mended], record=record)
    assert (mended.seen, said["critics"]["counting"]["n"]) == (3, 3)


def test_a_picture_that_cannot_be_read_costs_no_other_its_verdict(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "AT_ONCE", 4)
    critic = Counting()
    found = pictures(tmp_path, 10, broken=(2, 9))
    said = score(found, [critic])
    assert (critic.seen, len(said["pictures"])) == (8, 8)
    assert [Path(one["file"]).name for one in said["left_out"]] == ["2.png", "9.png"]
    assert all(one["is_fault"] and "cut off or damaged" in one["reason"] for one in said["left_out"])
    assert "2 of 10 prompts have no picture" in "\n".join(describe_gaps(said))
    with pytest.raises(UserError, match=r"None of 1 pictures can be read; the first: .*cut off"):
        score(Found(found.pictures[2:3], (), (), 0), [critic])


def killed(code, *arguments):
    """Run a script that prints 'here' where it is to be killed, and kill it there."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()


KILLED_SCORE = """
import sys
from pathlib import Path
from milr.drafts import Score, Task
from milr.runs import score as scoring
from milr.runs.verdicts import Verdicts

class Waiting:
    name, seen = "counting", 0
    def score(self, images, tasks):
        if self.seen >= 8:
            print("here", flush=True)
            sys.stdin.read()
        self.seen += len(images)
        return [Score(one.getpixel((0, 0))[0] / 255) for one in images]

scoring.AT_ONCE = 4
tasks = [Task(f"prompt {number}", f"t-{number}", "c") for number in range(20)]
made = [scoring.Picture(Path(sys.argv[1]) / f"{number}.png", task) for number, task in enumerate(tasks)]
with Verdicts(Path(sys.argv[2]), {"format": "test", "benchmark": "b"}) as record:
    scoring.score(scoring.Found(tuple(made), (), tuple(tasks), 20), [Waiting()], record=record)
"""


def test_killed_it_goes_on(tmp_path):
    found = pictures(tmp_path, 20)
    killed(KILLED_SCORE, tmp_path, tmp_path / "run")
    file = tmp_path / "run" / "verdicts.jsonl"
    assert file.read_bytes().count(b"\n") == 8
    with open(file, "ab") as stream:
        stream.write(b'{"critic": "counting", "pict')  # what a power cut may leave
    critic = Counting()
    with Verdicts(tmp_path / "run", HEAD) as record:
        assert score(found, [critic], record=record) == score(found, [Counting()])
    assert critic.seen == 12
    assert all(json.loads(line) for line in file.read_text().splitlines())


# --- The record ---------------------------------------------------------------------------------------------------


def test_records_that_are_refused(tmp_path):
    with Verdicts(tmp_path, HEAD) as record:
        record.add({"a": 1}, {"a": 2})
        with pytest.raises(UserError, match="Another run is writing"), Verdicts(tmp_path, HEAD):
            pass
    with (
        pytest.raises(UserError, match=r"another benchmark .*\"b\", not \"c\".*--force-new"),
        Verdicts(tmp_path, {**HEAD, "benchmark": "c"}),
    ):
        pass
    (tmp_path / "verdicts.jsonl").write_bytes(b'{"a": 1}\nnonsense\n{"a": 2}\n')
    with pytest.raises(UserError, match=r"Line 2 of .* is damaged"), Verdicts(tmp_path, HEAD):
        pass
    for content in (b"[]", b"{", b"\xff"):
        (tmp_path / "run.json").write_bytes(content)
        with pytest.raises(UserError, match=r"run\.json cannot be read|another format"), Verdicts(tmp_path, HEAD):
            pass
    (tmp_path / "run.json").unlink()
    with pytest.raises(UserError, match=r"without run\.json"), Verdicts(tmp_path, HEAD):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"), Verdicts(tmp_path / "file", HEAD):
        pass


def test_every_line_is_synced_before_add_returns(tmp_path, monkeypatch):
    synced = []
    real = os.fsync
    with Verdicts(tmp_path, HEAD) as record:
        monkeypatch.setattr(os, "fsync", lambda number: (synced.append(os.fstat(number).st_size), real(number)))
        record.add({"a": 1})
    assert synced == [len(b'{"a": 1}\n')]


def test_where_results_go(tmp_path):
    folder, file = folder_for(None, "scores", HEAD)
    assert (folder.parent.name, file) == ("out", None)
    assert folder_for(None, "scores", {**HEAD, "benchmark": "c"})[0] != folder
    assert folder_for(tmp_path / "x", "scores", HEAD) == (tmp_path / "x", tmp_path / "x" / "scores.json")
    assert folder_for(tmp_path / "x.json", "scores", HEAD) == (tmp_path / "x.json.journal", tmp_path / "x.json")
    (tmp_path / "old").write_text("{}")
    assert folder_for(tmp_path / "old", "scores", HEAD) == (tmp_path / "old.journal", tmp_path / "old")
    (tmp_path / "d.json").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        folder_for(tmp_path / "d.json", "scores", HEAD)


# --- Calibrate ------------------------------------------------------------------------------------------------------


def test_calibration_goes_on_and_lets_critics_join(tmp_path, monkeypatch):
    monkeypatch.setattr("milr.reports.calibrate.BATCH", 8)
    tasks = [Task(f"fox {number}", f"fox-{number}") for number in range(10)]
    head = asked("toy", "redness", tasks, 2, 0)

    def run(*critics):
        model = ToyBackbone()
        with Verdicts(tmp_path / "run", head) as record:
            return calibrate(model, critics, Redness(), tasks, 2, record=record), model

    with pytest.raises(UserError, match="purse"):
        run(Counting("a"), Counting("b", stop=8))
    a, b = Counting("a"), Counting("b")
    found, _ = run(a, b)
    assert (a.seen, b.seen) == (4, 12)
    fresh = calibrate(ToyBackbone(), [Counting("a"), Counting("b")], Redness(), tasks, 2)
    for said in (found, fresh):
        for critic in said["critics"].values():
            assert critic.pop("seconds_a_picture") >= 0
    assert found == fresh
    a, c = Counting("a"), Counting("c")
    found, _ = run(a, c)
    assert (a.seen, c.seen) == (0, 20)
    model = ToyBackbone()
    monkeypatch.setattr(model, "draw", lambda orders: pytest.fail("drawn again"))
    with Verdicts(tmp_path / "run", head) as record:
        calibrate(model, [Counting("a")], Redness(), tasks, 2, record=record)


# --- The commands -----------------------------------------------------------------------------------------------


@pytest.fixture
def milr(tmp_path):
    with Milr(tmp_path) as milr:
        yield milr


def geneval_folder(folder, tasks):
    for number, task in enumerate(tasks):
        place = folder / f"{number:05d}"
        (place / "samples").mkdir(parents=True)
        Image.new("RGB", (16, 16), "red").save(place / "samples" / "0000.png")
        (place / "metadata.jsonl").write_text(json.dumps(task.metadata))
    return folder


SCORE = ("--benchmark", "geneval", "--critic", "redness", "--model", "toy")


def test_score_says_what_is_missing_and_goes_on(milr):
    place = geneval_folder(milr.folder / "mine", geneval.tasks()[:3])
    (place / "00001" / "samples" / "0000.png").write_bytes(b"half")
    Image.new("RGB", (8, 8)).save(place / "00000" / "grid.png")
    Image.new("RGB", (8, 8)).save(place / "holiday.gif")
    for _ in range(2):
        ran = milr.here("score", "mine", *SCORE, "--out", "here")
        assert ran.returncode == 1, ran.stderr
        assert "benchmark's own" not in ran.stdout
        assert "Left out: 1 files could not be read, e.g. mine/00001/samples/0000.png" in ran.stdout
        assert "Left out: 1 files are no pictures of this layout or benchmark, e.g. mine/holiday.gif" in ran.stdout
        assert "Missing: 551 of 553 prompts have no picture (single_object 78, " in ran.stdout
        assert "means over what is there, not the benchmark's score" in ran.stdout
        assert len((milr.folder / "here" / "verdicts.jsonl").read_text().splitlines()) == 2
    said = json.loads((milr.folder / "here" / "scores.json").read_text())
    assert len(said["pictures"]) == 2
    assert "benchmark_success" not in said["critics"]["redness"]
    geneval_folder(milr.folder / "again", geneval.tasks()[:1])
    ran = milr.here("score", "again", *SCORE, "--out", "one.json", "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == json.loads((milr.folder / "one.json").read_text())
    assert (milr.folder / "one.json.journal" / "verdicts.jsonl").exists()
    ran = milr.here("score", "again", "--benchmark", "t2i-compbench", "--critic", "redness", "--model", "toy")
    assert (ran.returncode, "no picture in again" in ran.stderr) == (2, True)


def test_calibrate_keeps_what_was_said(milr):
    (milr.folder / "p.csv").write_text("prompt\na fox\nan owl\n")
    command = ("critic", "calibrate", "noise", "--against", "redness", "--benchmark", "custom", "--data", "p.csv",
               "--model", "toy", "--drafts", "2")  # fmt: skip
    first = milr.here(*command, "--out", "c.json")
    assert first.returncode == 0, first.stderr
    lines = (milr.folder / "c.json.journal" / "verdicts.jsonl").read_text()
    assert len(lines.splitlines()) == 2
    again = milr.here(*command, "--out", "c.json")
    assert again.stdout == first.stdout
    assert (milr.folder / "c.json.journal" / "verdicts.jsonl").read_text() == lines
    assert (milr.folder / "c.svg").exists()
    other = milr.here(*command, "--seed", "3", "--out", "c.json")
    assert (other.returncode, "another seed (0, not 3)" in other.stderr) == (2, True)
    assert milr.here(*command, "--seed", "3", "--out", "c.json", "--force-new").returncode == 0
    assert milr.here(*command).returncode == 0
    assert [one.name[:12] for one in (milr.folder / "out").iterdir()] == ["calibration-"]


def test_replies_of_a_judge_are_paid_for_once(milr, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    geneval_folder(milr.folder / "mine", geneval.tasks()[:2])
    place = milr.folder / "mine" / "00001" / "samples" / "0000.png"
    Image.new("RGB", (16, 16), "white").save(place)
    with stub_judge() as stub:
        command = ("score", "mine", "--benchmark", "geneval", "--critic", f"judge:general,url={stub.url},key=none",
                   "--model", "toy", "--out", "run", "--json")  # fmt: skip
        first = milr.here(*command)
        assert first.returncode == 0, first.stderr
        asked = len(stub.seen)
        assert asked == len(list((milr.folder / "run" / "replies").iterdir())) == 2
        assert milr.here(*command).stdout == first.stdout
        (milr.folder / "run" / "verdicts.jsonl").write_bytes(b"")  # killed between the reply and its verdict
        assert milr.here(*command).stdout == first.stdout
        assert len(stub.seen) == asked


# --- What a folder holds ------------------------------------------------------------------------------------------


def reasons(found, folder):
    return {str(one.file.relative_to(folder)): one.reason for one in found.left_out}


def test_what_is_left_out_of_genevals_layout(tmp_path):
    tasks = geneval.tasks()
    folder = geneval_folder(tmp_path, tasks[:4])
    (folder / "00001" / "metadata.jsonl").write_text('{"prompt": "a unicorn"}')
    (folder / "00002" / "metadata.jsonl").write_text("nonsense")
    samples = folder / "00000" / "samples"
    for name in ("0001.PNG", "0002.JPEG", "best.png", "0003.gif", ".hidden.png", "notes.txt"):
        (samples / name).write_bytes((samples / "0000.png").read_bytes())
    (folder / "extra").mkdir()
    (folder / "extra" / "0000.png").write_bytes(b"")
    found = find_pictures(folder, "geneval", tasks)
    assert [one.file.name for one in found.pictures] == ["0000.png", "0001.PNG", "0002.JPEG", "0000.png"]
    said = reasons(found, folder)
    assert set(said) == {
        "00000/samples/best.png", "00000/samples/0003.gif", "00000/samples/notes.txt", "00001/samples/0000.png",
        "00002/samples/0000.png", "extra/0000.png",
    }  # fmt: skip
    assert "none of the benchmark's ('a unicorn')" in said["00001/samples/0000.png"]
    assert "is not a line of GenEval's metadata" in said["00002/samples/0000.png"]
    assert [one.is_fault for one in found.left_out].count(True) == 1
    said = score(found, [Redness()])
    assert said["missing"]["uneven"] == 1
    assert "1 prompts have fewer than 3 pictures" in "\n".join(describe_gaps(said))


def test_what_is_left_out_of_the_other_layouts(tmp_path):
    tasks = [Task("prompt 3", "w-3", metadata={"prompt_id": 3}), Task("A clock reads 11:44.", "c-1", "c")]
    for name in ("3.png", "003.jpg", "4.png", "three.png", "3.bmp", "0/3.webp", "a/3.png",
                 "A clock reads 11:44_000000.png", "a clock reads 11 44_1.png", "a clock_1.png"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
        (tmp_path / name).write_bytes((tmp_path / "x.png").read_bytes())
    (tmp_path / "x.png").unlink()
    wise = find_pictures(tmp_path, "wise", tasks)
    assert {str(one.file.relative_to(tmp_path)) for one in wise.pictures} == {"3.png", "003.jpg", "0/3.webp"}
    assert "have no prompt_id 4" in reasons(wise, tmp_path)["4.png"]
    assert "its ending is none of" in reasons(wise, tmp_path)["3.bmp"]
    compbench = find_pictures(tmp_path, "t2i-compbench", tasks)
    assert len(compbench.pictures) == 1
    assert "is no prompt" in reasons(compbench, tmp_path)["a clock_1.png"]


def test_a_part_of_a_copy_is_no_benchmark(tmp_path):
    found = replace(pictures(tmp_path, 2), of=1000)
    said = score(found, [Counting()], overall=lambda means: sum(means.values()))
    assert "benchmark_success" not in said["critics"]["counting"]
    assert said["missing"]["prompts"] == 998
    whole = score(replace(found, of=2), [Counting()], overall=lambda means: sum(means.values()))
    assert "benchmark_success" in whole["critics"]["counting"]
    mute = score(replace(found, of=2), [Counting(mute=True)], overall=lambda means: sum(means.values()))
    assert "benchmark_success" not in mute["critics"]["counting"]
