import json

import pytest

from milr import registry
from milr.drafts import UserError
from milr.runs.bench import METHODS, Journal, bench, choose_methods
from milr.runs.report import BASELINE, CALLS, Method, Outcome, curves, make_report, to_markdown
from toy_milr.backbone import ToyBackbone
from toy_milr.benchmark import tasks
from toy_milr.critic import Redness

FEW = (METHODS[0], METHODS[1], METHODS[2], METHODS[4])


class CountingBackbone(ToyBackbone):
    drawn = 0

    def _draw(self, order):
        type(self).drawn += 1
        return super()._draw(order)


@pytest.fixture
def redness(monkeypatch):
    class Critics:
        @staticmethod
        def make(backbone):
            return Redness()

    find = registry.find
    part = registry.Part("critic", "redness", "", "redness")
    monkeypatch.setattr(registry, "find", lambda kind, name: part if name == "redness" else find(kind, name))
    load = registry.load
    monkeypatch.setattr(registry, "load", lambda one: Critics if one is part else load(one))


def run(folder, backbone=None, methods=FEW, n=6, **options):
    return bench(backbone or ToyBackbone(), tasks(n, 7), folder, methods=methods, budget=5, critic="redness", **options)


def test_a_report_counts_what_happened(redness, tmp_path):
    report = run(tmp_path)
    rows = {row["name"]: row for row in report["methods"]}
    assert list(rows) == [method.name for method in FEW]
    assert report["calls"] == [1, 4, 5]
    first = {name: row["success"]["1"]["successes"] for name, row in rows.items()}
    assert len(set(first.values())) == 1, "all methods share their first draft"
    for row in rows.values():
        assert row["success"]["5"]["interval"][0] <= row["success"]["5"]["share"] <= row["success"]["5"]["interval"][1]
        assert row["categories"] == {"toy": {**row["success"]["5"], "searches": 6}}
        assert [point["calls"] for point in row["curve"]] == [1, 2, 3, 4, 5]
        assert row["curve"][-1]["mean_tokens"] == row["mean_decoded_tokens"]
    assert rows["single"]["mean_calls"] == 1
    assert "against_baseline" not in rows[BASELINE]
    table = (tmp_path / "report.md").read_text()
    assert table.count("\n| ") == len(FEW) + 1
    assert json.loads((tmp_path / "report.json").read_text())["methods"] == report["methods"]


def test_a_killed_run_goes_on_and_ends_the_same(redness, tmp_path):
    whole = run(tmp_path / "whole")

    class Killed(BaseException):
        pass

    def kill(method, done, searches):
        if method == BASELINE and done == 3:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path / "cut", tell=kill)
    journal = tmp_path / "cut" / "journal.jsonl"
    with journal.open("ab") as stream:
        stream.write(b'{"method": "single", "task": "7-0", "rew')  # torn by a second kill
    kept = len(journal.read_bytes().splitlines()) - 2
    CountingBackbone.drawn = 0
    resumed = run(tmp_path / "cut", CountingBackbone())
    assert without_seconds(resumed) == without_seconds(whole)
    assert CountingBackbone.drawn > 0
    lines = [json.loads(line) for line in journal.read_bytes().splitlines()[1:]]
    assert len({(line["method"], line["task"]) for line in lines}) == len(lines) == 4 * 6
    assert kept < len(lines)
    CountingBackbone.drawn = 0
    run(tmp_path / "cut", CountingBackbone())
    assert CountingBackbone.drawn == 0, "nothing is left to draw"


def without_seconds(report):
    rows = json.loads(json.dumps(report["methods"]))
    for row in rows:
        row["mean_seconds"] = row["to_reach_baseline"] = None
        for point in row["curve"]:
            point["mean_seconds"] = None
    return rows


def test_another_run_is_not_mixed_in(redness, tmp_path):
    run(tmp_path, n=2)
    with pytest.raises(UserError, match="another tasks"):
        run(tmp_path, n=3)
    with pytest.raises(UserError, match="another seed"):
        run(tmp_path, n=2, seed=1)
    (tmp_path / "journal.jsonl").write_text("shopping list\n")
    with pytest.raises(UserError, match="no journal"):
        run(tmp_path, n=2)


def test_one_writer_at_a_time(tmp_path):
    with (
        Journal(tmp_path / "journal.jsonl", {}),
        pytest.raises(UserError, match="Another run is writing"),
        Journal(tmp_path / "journal.jsonl", {}),
    ):
        pass


def outcome(method, task, *rewards, index=0, held_out=None):
    n, best = len(rewards), max(range(len(rewards)), key=lambda i: rewards[i] or 0)
    moves = ("", *("text",) * (n - 1))
    return Outcome(method, method, task, index, "", rewards, (10,) * n, (1.0,) * n, moves, best, held_out, "budget")


def test_numbers_by_hand():
    """Two prompts: the method wins one, and returns its last draft (right at 1 call, wrong at 3)."""
    method, baseline = Method("m", "milr", returns_last=True), Method(BASELINE, "best-of-n")
    outcomes = [
        outcome("m", "1", 1.0, 0.5, 0.25),
        outcome("m", "2", None, 0.0, 1.0),
        outcome(BASELINE, "1", 0.0, 0.0, 0.0),
        outcome(BASELINE, "2", 0.0, 0.0, 0.5),
    ]
    prompts = [task for task in tasks(3, 0) if task.id in ("0-1", "0-2")]
    prompts = [type(task)(task.prompt, id=task.id[-1]) for task in prompts]
    report = make_report(outcomes, (method, baseline), prompts, {"budget": 3})
    row = report["methods"][0]
    assert row["success"]["1"]["successes"] == 1
    assert row["success"]["3"]["successes"] == 1
    pair = row["against_baseline"]["3"]
    assert (pair["won"], pair["lost"], pair["sign_test_p"], pair["failures"]) == (1, 0, 1.0, [1, 2])
    assert (row["mean_calls"], row["mean_decoded_tokens"], row["abstentions"]) == (3, 30, 1)


def test_methods_by_name():
    assert choose_methods(["milr paper", "single", "milr:text-only"]) == (
        METHODS[3],
        METHODS[0],
        Method("milr:text-only", "milr", "text-only"),
    )
    assert choose_methods(["cold=best-of-n:sampled-text,image_temperature=0.5"]) == (
        Method("cold", "best-of-n", "sampled-text", (("image_temperature", "0.5"),)),
    )
    with pytest.raises(UserError, match="put LABEL= before"):
        choose_methods(["single", "single"])
    with pytest.raises(UserError, match="Did you mean 'milr paper'"):
        choose_methods(["milr papre"])


def test_every_method_of_the_report_exists():
    for method in METHODS:
        part = registry.find("search", method.search)
        assert method.preset is None or method.preset in part.presets
    assert {method.name for method in METHODS if method.returns_last} == {"milr official"}
    assert CALLS == (1, 4, 8, 16, 20)


def test_seeds_of_a_prompt_count_once():
    """Two prompts with two seeds: the method solves one seed of each more than the baseline."""
    method, baseline = Method("m", "repair"), Method(BASELINE, "best-of-n")
    outcomes = [
        outcome("m", "1", 1.0, index=0), outcome("m", "1", 0.0, 1.0, index=1),
        outcome("m", "2", 0.0, 1.0, index=0), outcome("m", "2", 0.0, 0.0, index=1),
        outcome(BASELINE, "1", 0.0, 1.0, index=0), outcome(BASELINE, "1", 0.0, 0.0, index=1),
        outcome(BASELINE, "2", 0.0, 0.0, index=0), outcome(BASELINE, "2", 0.0, 0.0, index=1),
    ]  # fmt: skip
    prompts = [type(task)(task.prompt, id=str(n + 1)) for n, task in enumerate(tasks(2, 0))]
    report = make_report(outcomes, (method, baseline), prompts, {"budget": 2, "seeds": 2})
    row = report["methods"][0]
    assert row["success"]["2"]["share"] == 0.75
    pair = row["against_baseline"]["2"]
    assert (pair["won"], pair["lost"], pair["difference"]) == (2, 0, 0.5)
    assert row["to_reach_baseline"] == {"budget": 1, "share_of_tokens": 0.5, "share_of_seconds": 0.5}
    assert row["moves"] == {"text": {"drafts": 3, "solved": 2}}


def test_held_out_judges_the_returned_draft():
    outcomes = [outcome("m", "1", 0.5, 1.0, held_out=0.5), outcome("m", "2", 1.0, held_out=1.0)]
    prompts = [type(task)(task.prompt, id=str(n + 1)) for n, task in enumerate(tasks(2, 0))]
    about = {"budget": 2, "held_out": "scene", "model": "toy", "critic": "redness", "seed": 0}
    report = make_report(outcomes, (Method("m", "repair"),), prompts, about)
    assert report["methods"][0]["held_out"]["share"] == 0.5
    assert report["methods"][0]["held_out"]["gap"] == 0.25
    assert "held-out critic scene" in to_markdown(report)
    assert curves(report).startswith("<svg")


def test_held_out_success_and_gap_are_paired_with_the_baseline_where_both_were_judged():
    prompts = [type(task)(task.prompt, id=str(n + 1)) for n, task in enumerate(tasks(3, 0))]
    outcomes = [
        outcome("base", "1", 1.0, held_out=0.5), outcome("base", "2", 0.5, held_out=0.5), outcome("base", "3", 1.0),
        outcome("m", "1", 1.0, held_out=1.0), outcome("m", "2", 1.0, held_out=1.0),
        outcome("m", "3", 1.0, held_out=0.0),
    ]  # fmt: skip
    about = {"budget": 1, "held_out": "scene", "model": "toy", "critic": "redness", "seed": 0}
    report = make_report(outcomes, (Method("base", "best-of-n"), Method("m", "repair")), prompts, about, "base")
    pair = report["methods"][1]["held_out"]["against_baseline"]
    assert (pair["won"], pair["lost"], pair["difference"], pair["gap_difference"]) == (2, 0, 1.0, -0.25)
    low, high = pair["gap_interval"]
    assert low < -0.25 < high
    assert "against_baseline" not in report["methods"][0]["held_out"]


def test_a_name_means_one_thing_in_a_journal(redness, tmp_path):
    run(tmp_path, methods=(Method("m", "best-of-n"),), n=2)
    with pytest.raises(UserError, match="give it another LABEL="):
        run(tmp_path, methods=(Method("m", "best-of-n", None, (("image_temperature", "0.5"),)),), n=2)
