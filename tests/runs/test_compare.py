import json

import pytest

from milr import registry
from milr.drafts import UserError
from milr.runs import compare as module
from milr.runs.compare import BASELINE, METHODS, Journal, Method, Outcome, choose_methods, compare, make_report
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
    return compare(
        backbone or ToyBackbone(), tasks(n, 7), folder, methods=methods, budget=5, critic="redness", **options
    )


def test_a_report_counts_what_happened(redness, tmp_path):
    report = run(tmp_path)
    rows = {row["name"]: row for row in report["methods"]}
    assert list(rows) == [method.name for method in FEW]
    assert report["calls"] == [1, 4, 5]
    first = {name: row["success"]["1"]["successes"] for name, row in rows.items()}
    assert len(set(first.values())) == 1, "all methods share their first draft"
    for row in rows.values():
        assert row["success"]["5"]["interval"][0] <= row["success"]["5"]["share"] <= row["success"]["5"]["interval"][1]
        assert row["categories"] == {"toy": {"successes": row["success"]["5"]["successes"], "prompts": 6}}
    assert rows["single"]["mean_calls"] == 1
    assert "against_baseline" not in rows[BASELINE]
    table = (tmp_path / "report.md").read_text()
    assert table.count("\n| ") == len(FEW) + 1
    assert json.loads((tmp_path / "report.json").read_text())["methods"] == report["methods"]


def test_a_killed_comparison_goes_on_and_ends_the_same(redness, tmp_path):
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
    return [{key: value for key, value in row.items() if key != "mean_seconds"} for row in report["methods"]]


def test_another_comparison_is_not_mixed_in(redness, tmp_path):
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
        pytest.raises(UserError, match="Another comparison is writing"),
        Journal(tmp_path / "journal.jsonl", {}),
    ):
        pass


def outcome(method, task, *rewards):
    return Outcome(method, task, "", rewards, (10,) * len(rewards), 1.0, "budget")


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
    assert (row["against_baseline"]["won"], row["against_baseline"]["lost"]) == (1, 0)
    assert row["against_baseline"]["sign_test_p"] == 1.0
    assert (row["mean_calls"], row["mean_decoded_tokens"], row["abstentions"]) == (3, 30, 1)


def test_methods_by_name():
    assert choose_methods(["milr paper", "single", "milr:text-only"]) == (
        METHODS[3],
        METHODS[0],
        Method("milr:text-only", "milr", "text-only"),
    )
    with pytest.raises(UserError, match="Did you mean 'milr paper'"):
        choose_methods(["milr papre"])


def test_every_method_of_the_report_exists():
    for method in METHODS:
        part = registry.find("search", method.search)
        assert method.preset is None or method.preset in part.presets
    assert {method.name for method in METHODS if method.returns_last} == {"milr official"}
    assert module.CALLS == (1, 4, 8, 16, 20)
