"""Runs read back: where they stand, and reports of several side by side."""

import json

import pytest
from test_journal import bench as bench_command
from test_journal import milr  # noqa: F401

import runs_toy
from milr.drafts import UserError
from milr.reports.reading import describe, read_run, report_of, write_report
from milr.runs.bench import Terms, bench
from milr.runs.journal import read_lines
from milr.runs.methods import METHODS
from runs_toy import install_redness
from toy_milr.backbone import ToyBackbone
from toy_milr.benchmark import tasks


@pytest.fixture(autouse=True)
def redness(monkeypatch):
    install_redness(monkeypatch)


def run(folder, methods=METHODS[1:3], n=3, **terms):
    terms = Terms(**{"budget": 4, "critic": "redness", **terms})
    bench(ToyBackbone(), tasks(n, 7), folder, terms, methods=methods, baseline=methods[0].name)
    return write_report(folder)


def test_a_finished_run(tmp_path):
    report = run(tmp_path / "run")
    reading = read_run(tmp_path / "run")
    assert [one.done for one in reading.standings.values()] == [3, 3]
    assert reading.methods == METHODS[1:3]
    assert sum(one.drafts for one in reading.standings.values()) == sum(
        row["drafts"] for row in report["searches"].values()
    )
    first, *others = describe(reading)
    assert first.endswith("finished")
    assert len(others) == 2
    assert report_of([read_run(tmp_path / "run")]) == report


def test_how_latents_moved_is_averaged_over_searches_step_by_step(tmp_path):
    report = run(tmp_path / "run", METHODS[3:5], n=4)
    drafts = [line for line in read_lines(tmp_path / "run") if "draft" in line and line["method"] == "milr official"]
    first = [line["draft"]["ask"]["note"]["text_gradient"] for line in drafts if line["draft"]["number"] == 1]
    flow = report["searches"]["milr official"]["gradient_flow"]
    assert flow["text_gradient"][0] == [1, pytest.approx(sum(first) / len(first)), len(first)]
    assert flow["text_cosine"][0][0] == 2, "the first step has none before it"
    assert run(tmp_path / "other", METHODS[:1])["searches"]["single"]["gradient_flow"] == {}


def test_an_unfinished_run_stands_somewhere_and_has_no_report(tmp_path):
    run(tmp_path / "run")
    journal = tmp_path / "run" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]) + b'{"torn')
    reading = read_run(tmp_path / "run")
    assert [one.done for one in reading.standings.values()] == [3, 2]
    assert "left" in next(describe(reading))
    with pytest.raises(UserError, match="1 searches of 'best-of-n sampled text' are missing"):
        report_of([read_run(tmp_path / "run")])


def test_runs_on_the_same_prompts_stand_side_by_side(tmp_path):
    both = run(tmp_path / "both")
    run(tmp_path / "a", METHODS[1:2])
    run(tmp_path / "b", METHODS[2:3])
    report = report_of([read_run(tmp_path / "a"), read_run(tmp_path / "b")])
    assert (report["searches"], report["pairs"]) == (both["searches"], both["pairs"])
    run(tmp_path / "c", METHODS[2:3], seed=1)
    with pytest.raises(UserError, match="has another seed than"):
        report_of([read_run(tmp_path / "a"), read_run(tmp_path / "c")])
    with pytest.raises(UserError, match="give one of them a LABEL="):
        report_of([read_run(tmp_path / "a"), read_run(tmp_path / "both")])
    with pytest.raises(UserError, match="baseline 'x' is none of the methods"):
        report_of([read_run(tmp_path / "a")], "x")


def test_parts_made_with_other_versions_are_said(tmp_path):
    run(tmp_path / "run")
    journal = tmp_path / "run" / "journal.jsonl"
    first, second, rest = journal.read_text().split("\n", 2)
    started = json.loads(first)
    started["started"]["versions"]["torch"] = "1.0"
    other = json.dumps(started)
    journal.write_text("\n".join((other, first, second, rest)))
    assert report_of([read_run(tmp_path / "run")])["warnings"] == []  # the first start drew nothing
    journal.write_text("\n".join((first, second, other, rest)))
    warnings = report_of([read_run(tmp_path / "run")])["warnings"]
    assert warnings == ["parts of the run were made with other versions (torch)"]


def test_reading_while_it_runs(milr):  # noqa: F811
    process = milr.start_and_wait(*bench_command())
    shown = milr("runs", "r")
    as_json = milr("runs", "r", "--json")
    assert process.poll() is None
    assert shown.returncode == 0, shown.stderr
    assert "best-of-n: " in shown.stdout
    assert json.loads(as_json.stdout)["methods"][0]["searches"] == 4
    wrong = milr("runs", "nowhere")
    assert wrong.returncode == 2
    assert "is no run of milr" in wrong.stderr


def test_why_drafts_have_no_score_is_counted(tmp_path, monkeypatch):
    class Moody:
        name = "redness"

        def score(self, images, tasks):
            raise RuntimeError("no network")

    monkeypatch.setattr(runs_toy.Critics, "make", staticmethod(lambda backbone: Moody()))
    report = run(tmp_path / "run", METHODS[:1])
    assert report["warnings"]
    assert any(
        "3 drafts without a score: critic 'redness' failed" in line for line in describe(read_run(tmp_path / "run"))
    )
