"""Pictures of other generators scored, and our own written for other scorers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from milr.benchmarks import geneval, t2i_compbench
from milr.critics.noise import make as noise
from milr.drafts import Score, Task, UserError
from milr.paths import is_safe
from milr.pictures import see
from milr.reports.export import export
from milr.reports.reading import read_run
from milr.runs.bench import Terms, bench
from milr.runs.journal import read_image
from milr.runs.methods import METHODS
from milr.runs.score import find_pictures, score, to_markdown
from runs_toy import install_redness
from toy_milr.backbone import ToyBackbone
from toy_milr.benchmark import tasks as toy_tasks


class Red:
    """Right if red; says nothing of black."""

    name = "red"

    def score(self, images, tasks):
        found = []
        for image in images:
            pixel = np.asarray(image)[0, 0]
            found.append(Score(None, reason="too dark") if not pixel.any() else Score(float(pixel[0] > 200)))
        return found


def paint(file, colour):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), colour).save(file)


@pytest.fixture
def run(tmp_path, monkeypatch):
    install_redness(monkeypatch)

    def start(tasks, **terms):
        bench(
            ToyBackbone(), tasks, tmp_path / "run", Terms(**{"budget": 3, "critic": "redness", **terms}),
            methods=METHODS[1:3], baseline=METHODS[1].name,
        )  # fmt: skip
        return read_run(tmp_path / "run")

    return start


def test_genevals_layout_there_and_back(run, tmp_path):
    tasks = geneval.tasks(6)
    reading = run(tasks, seeds=2)
    out = tmp_path / "geneval"
    assert export(reading, METHODS[2].name, "geneval", out) == 12
    place = out / next(task.id[-5:] for task in tasks if task.category == "two_object")
    assert json.loads((place / "metadata.jsonl").read_text())["tag"] == "two_object"
    assert sorted(file.name for file in (place / "samples").iterdir()) == ["0000.png", "0001.png"]
    found = find_pictures(out, "geneval", geneval.tasks()).pictures
    assert [one.task.id for one in found] == [task.id for task in tasks for _ in range(2)]
    end = reading.ends[METHODS[2].name, tasks[1].id, 1]
    written = np.asarray(see(out / tasks[1].id[-5:] / "samples" / "0001.png").image)
    assert (written == np.asarray(read_image(reading.folder, end.returned_image).convert("RGB"))).all()


def test_wises_layout_there_and_back(run, tmp_path):
    tasks = [Task(f"prompt {n}", id=f"wise-{n}", metadata={"prompt_id": n}) for n in (3, 401)]
    export(run(tasks), METHODS[2].name, "wise", tmp_path / "wise")
    assert sorted(file.name for file in (tmp_path / "wise").iterdir()) == ["3.png", "401.png"]
    assert [one.task for one in find_pictures(tmp_path / "wise", "wise", tasks).pictures] == tasks


def test_compbenchs_layout_there_and_back(run, tmp_path):
    tasks = t2i_compbench.tasks(8)
    export(run(tasks), METHODS[2].name, "t2i-compbench", tmp_path / "out")
    names = sorted(file.name for file in (tmp_path / "out").rglob("*.png"))
    first = next(task.prompt for task in tasks if task.category == "color")
    assert f"{first.rstrip('.')}_000000.png" in names
    found = find_pictures(tmp_path / "out", "t2i-compbench", t2i_compbench.tasks())
    assert {one.task.id for one in found.pictures} == {task.id for task in tasks}


def test_exports_that_cannot_be(run, tmp_path):
    reading = run(toy_tasks(2, 0))
    with pytest.raises(UserError, match="There is no method 'x'"):
        export(reading, "x", "wise", tmp_path / "out")
    with pytest.raises(UserError, match="not an empty folder"):
        export(reading, METHODS[2].name, "wise", reading.folder)
    (reading.folder / "images").rename(tmp_path / "away")
    with pytest.raises(UserError, match="is lost"):
        export(reading, METHODS[2].name, "wise", tmp_path / "out")


def test_scores_by_hand(tmp_path):
    """Two prompts of one task and one of another: red right, blue wrong, black not judged."""
    lines = [task.metadata for task in geneval.tasks(2, 0, ("counting", "colors"))] + [geneval.tasks()[0].metadata]
    for number, (line, colours) in enumerate(zip(lines, (["red", "blue"], ["red", "red"], ["black"]), strict=True)):
        for index, colour in enumerate(colours):
            paint(tmp_path / f"{number:05d}" / "samples" / f"{index:04d}.png", colour)
        (tmp_path / f"{number:05d}" / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    found = score(find_pictures(tmp_path, "geneval", geneval.tasks()), [Red(), noise(None)], geneval.overall)
    red = found["critics"]["red"]
    assert (red["n"], red["abstained"], red["success"]) == (4, 1, 0.75)
    assert {name: of["success"] for name, of in red["by_category"].items()} == {"counting": 0.5, "colors": 1.0}
    assert "benchmark_success" not in red  # of 3 prompts of 553
    assert red["low"] < 0.75 < red["high"]
    assert found["pictures"][-1]["reasons"] == {"red": "too dark"}
    table = to_markdown(found)
    assert "| counting | 2 | 0.500" in table
    assert "red abstained on 1." in table


def test_rounding_is_no_failure_and_the_benchmarks_own_score_is_the_one_it_is_made_of(tmp_path):
    class Almost:
        name = "almost"

        def score(self, images, tasks):
            return [Score(0.9999999999999999) for _ in images]

    paint(tmp_path / "00000" / "samples" / "0000.png", "red")
    (tmp_path / "00000" / "metadata.jsonl").write_text(json.dumps(geneval.tasks()[0].metadata) + "\n")
    found = score(find_pictures(tmp_path, "geneval", geneval.tasks()[:1]), [Almost()], lambda means: 0.5)
    assert found["critics"]["almost"]["success"] == 1
    own = "| the benchmark's own | | {} | {} |"
    assert own.format("0.500", "0.500") in to_markdown(found)
    assert own.format("0.500", "") in to_markdown({**found, "number": "success"})
    assert own.format("", "0.500") in to_markdown({**found, "number": "mean"})


@pytest.mark.parametrize("layout", ["geneval", "wise", "t2i-compbench"])
def test_folders_without_pictures(tmp_path, layout):
    paint(tmp_path / "holiday.png", "red")
    with pytest.raises(UserError, match="in the layout of"):
        find_pictures(tmp_path, layout, geneval.tasks())
    with pytest.raises(UserError, match="not a folder"):
        find_pictures(tmp_path / "none", layout, [])


def test_a_damaged_line_of_metadata(tmp_path):
    paint(tmp_path / "00000" / "samples" / "0000.png", "red")
    with pytest.raises(UserError, match="not a line of GenEval's metadata"):
        find_pictures(tmp_path, "geneval", [])
    Path(tmp_path / "00000" / "metadata.jsonl").write_text("[]\n")
    with pytest.raises(UserError, match="not a line of GenEval's metadata"):
        find_pictures(tmp_path, "geneval", [])


HOSTILE = [
    ("../../escaped", "../../escaped2"), ("/etc/x", "C:\\x"), ("..", "a\0b"), ("con", "nul.png"), ("Zoo", "3"),
    ("zoo", "3"), ("狐" * 200, "狐" * 300), ("", ""), (".", " . "), ("a/b", "a\\b"), ("a b", "a b"), ("x", None),
    ("x", ["..", "y"]), ("x\u202e", "geneval-00001"),
]  # fmt: skip


@pytest.mark.parametrize("layout", ["geneval", "wise", "t2i-compbench"])
def test_nothing_is_written_outside_and_nothing_twice(run, tmp_path, layout):
    prompts = ["a fox", "A FOX", "../../../../x", "/y", "a" * 900, "狐" * 400, "a\\b", "nul", "a/b", "..", "a\nb"]
    prompts += ["a:b", "fox.", "fox"]
    tasks = [  # every third id leaves the place that another one's names free for it, and takes it
        Task(prompt, f"geneval-{number - 1:05d}" if number % 3 else f"../{number}", category, {"prompt_id": said})
        for number, (prompt, (category, said)) in enumerate(zip(prompts, HOSTILE, strict=True))
    ]
    reading = run(tasks)
    before = set(tmp_path.rglob("*"))
    out = tmp_path / "deep" / "er" / "out"
    assert export(reading, METHODS[2].name, layout, out) == len(tasks)
    written = [file for file in tmp_path.rglob("*") if file not in before and file.is_file()]
    assert all(file.is_relative_to(out) for file in written)
    assert len([file for file in written if file.suffix == ".png"]) == len(tasks)
    folded = [str(file.relative_to(out)).casefold() for file in written]
    assert len(set(folded)) == len(folded)
    assert all(is_safe(part) for file in written for part in file.relative_to(out).parts)


def test_exported_pictures_are_those_that_were_drawn(run, tmp_path):
    reading = run(toy_tasks(2, 0))
    end = next(iter(reading.ends.values()))
    for file in (reading.folder / "images").rglob("*.png"):
        file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(UserError, match="is not the one that was drawn"):
        export(reading, METHODS[2].name, "wise", tmp_path / "out")
    forged = {key: replace(one, returned_image="../../../etc/passwd") for key, one in reading.ends.items()}
    with pytest.raises(UserError, match="which is no name of one"):
        export(replace(reading, ends=forged), METHODS[2].name, "wise", tmp_path / "out2")
    assert end.returned_image


@pytest.mark.parametrize(
    "line",
    ["nonsense", "[]", "{}", '{"prompt": "a", "colour": 1}', '{"prompt": 3}', '{"prompt": "a", "id": null}',
     '{"prompt": "a", "metadata": [1]}', '{"prompt": "\\ud800"}', "[" * 100_000],
)  # fmt: skip
def test_foreign_tasks_are_one_sentence(run, line):
    reading = run(toy_tasks(2, 0))
    with open(reading.folder / "tasks.jsonl", "a") as stream:
        stream.write(line + "\n")
    with pytest.raises(UserError, match=r"Line 3 of .*tasks\.jsonl is no prompt as milr writes them"):
        read_run(reading.folder)
