"""Reports by hand: what counts as success, costs, pairs, held-out critics, warnings."""

import pytest

from milr.reports.report import curves, make_report, pair_of, to_markdown
from milr.runs.journal import Outcome
from milr.runs.methods import BASELINE, Method
from toy_milr.benchmark import tasks

ABOUT = {"budget": 3, "model": "toy", "critic": "redness", "seed": 0}
BASE = Method(BASELINE, "best-of-n")


def outcome(method, task, *rewards, index=0, held_out=None, tokens=10, category="", returned=None, stopped="budget"):
    n, best = len(rewards), max(range(len(rewards)), key=lambda i: rewards[i] or 0)
    best = best if returned is None else returned
    moves = ("", *("text",) * (n - 1))
    return Outcome(
        method, method, task, index, category, rewards, (tokens,) * n, (1.0,) * n, moves, best, stopped,
        {} if held_out is None else {"scene": held_out},
    )  # fmt: skip


def prompts(n):
    return [type(task)(task.prompt, id=str(k + 1)) for k, task in enumerate(tasks(n, 0))]


def test_numbers_by_hand():
    """Two prompts: the method wins one, and returns its last draft (right at 1 call, wrong at 3)."""
    method = Method("m", "milr", returns_last=True)
    outcomes = [
        outcome("m", "1", 1.0, 0.5, 0.25, returned=2),
        outcome("m", "2", None, 0.0, 1.0, returned=2),
        outcome(BASELINE, "1", 0.0, 0.0, 0.0),
        outcome(BASELINE, "2", 0.0, 0.0, 0.5),
    ]
    report = make_report(outcomes, (method, BASE), prompts(2), ABOUT)
    row = report["searches"]["m"]
    assert row["by_calls"]["1"]["success"] == row["by_calls"]["3"]["success"] == row["success"] == 0.5
    assert row["low"] < 0.5 < row["high"]
    assert (row["optimised"]["success"], row["optimised"]["reward"], row["value"]) == (0.5, 0.625, 0.5)
    pair = pair_of(report, "m")
    assert (pair["won"], pair["lost"], pair["p"], pair["failures"]) == (1, 0, 1.0, [1, 2])
    assert (row["calls"], row["decoded_tokens"], row["abstained"], row["n"]) == (3, 30, 1 / 6, 2)
    assert report["searches"][BASELINE]["by_calls"]["3"]["reward"] == 0.25


def test_a_report_with_too_many_abstentions_says_that_it_cannot_be_trusted():
    outcomes = [outcome("m", "1", None, 1.0), outcome("m", "2", 0.5, 1.0)]
    report = make_report(outcomes, (Method("m", "repair"),), prompts(2), ABOUT)
    assert report["warnings"] == ["m: 25% of the drafts have no score (more than 5%): do not trust its numbers"]
    assert to_markdown(report).startswith("**m: 25% of the drafts")
    lenient = make_report(outcomes, (Method("m", "repair"),), prompts(2), ABOUT, max_abstain=0.25)
    assert lenient["warnings"] == []


def test_seeds_of_a_prompt_count_once():
    """Two prompts with two seeds: the method solves one seed of each more than the baseline."""
    outcomes = [
        outcome("m", "1", 1.0, index=0), outcome("m", "1", 0.0, 1.0, index=1),
        outcome("m", "2", 0.0, 1.0, index=0), outcome("m", "2", 0.0, 0.0, index=1),
        outcome(BASELINE, "1", 0.0, 1.0, index=0), outcome(BASELINE, "1", 0.0, 0.0, index=1),
        outcome(BASELINE, "2", 0.0, 0.0, index=0), outcome(BASELINE, "2", 0.0, 0.0, index=1),
    ]  # fmt: skip
    report = make_report(outcomes, (Method("m", "repair"), BASE), prompts(2), {**ABOUT, "budget": 2, "seeds": 2})
    row = report["searches"]["m"]
    assert row["success"] == 0.75
    pair = pair_of(report, "m")
    assert (pair["won"], pair["lost"], pair["difference"]) == (2, 0, 0.5)
    reached = row["to_reach_baseline"]
    assert (reached["budget"], reached["share_of_decoded_tokens"], reached["share_of_seconds"]) == (1, 0.5, 0.5)
    assert reached["beyond_first"] == 0
    assert row["moves"] == {"text": {"drafts": 3, "solved": 2}}


def test_equal_tokens_cut_the_dearer_search():
    """Searches that use up their budget cost 30 and 60 tokens: both get 30, one draft and a half of the dear one."""
    cheap = [outcome("cheap", "1", 0.0, 0.0, 0.0), outcome("cheap", "2", 0.0, 1.0)]
    dear = [outcome("dear", "1", 0.0, 0.0, 0.0, tokens=20), outcome("dear", "2", 0.0, 1.0, tokens=20)]
    methods = (Method("cheap", "repair"), Method("dear", "best-of-n"))
    report = make_report([*cheap, *dear], methods, prompts(2), ABOUT, "dear")
    assert pair_of(report, "cheap")["difference"] == 0
    tokens = pair_of(report, "cheap", "tokens")
    assert (tokens["at"], tokens["won"], tokens["lost"]) == (30, 1, 0)
    assert pair_of(report, "cheap", "seconds")["won"] == 0  # a second a draft for both


def test_verdicts_are_words_and_corrected_for_many_looks():
    n = 40
    right = [outcome("a", str(k), 1.0) for k in range(1, n + 1)]
    wrong = [outcome(BASELINE, str(k), 0.0) for k in range(1, n + 1)]
    same = [outcome("c", str(k), 1.0 if k <= 1 else 0.0) for k in range(1, n + 1)]
    methods = (Method("a", "repair"), BASE, Method("c", "single"))
    report = make_report([*right, *wrong, *same], methods, prompts(n), {**ABOUT, "budget": 1})
    assert pair_of(report, "a")["verdict"] == f"a beats {BASELINE} by 100.0 points [100.0, 100.0]"
    verdict = pair_of(report, "c")["verdict"]
    assert "cannot be told apart (+2.5 [" in verdict
    assert "prompts would show" in verdict
    three = [pair for pair in report["pairs"] if pair["axis"] == "calls" and "category" not in pair]
    assert len(three) == 3
    assert pair_of(report, "a")["p_holm"] == pytest.approx(3 * 2 / 2**n)
    a_c = next(pair for pair in three if {pair["a"], pair["b"]} == {"a", "c"})
    assert a_c["verdict"].startswith("a beats c by 97.5 points")


def test_held_out_judges_the_returned_draft():
    outcomes = [outcome("m", "1", 0.5, 1.0, held_out=0.5), outcome("m", "2", 1.0, held_out=1.0)]
    report = make_report(outcomes, (Method("m", "repair"),), prompts(2), {**ABOUT, "held_out": ["scene"]})
    row = report["searches"]["m"]
    assert (row["success"], row["optimised"]["success"]) == (0.5, 1.0)
    assert row["held_out"]["scene"]["gap"] == 0.25
    assert row["held_out"]["scene"]["score"] == 0.75
    assert "held-out critic scene" in to_markdown(report)
    assert curves(report).startswith("<svg")


def test_held_out_success_and_gap_are_paired_where_both_were_judged():
    outcomes = [
        outcome("base", "1", 1.0, held_out=0.5), outcome("base", "2", 0.5, held_out=0.5), outcome("base", "3", 1.0),
        outcome("m", "1", 1.0, held_out=1.0), outcome("m", "2", 1.0, held_out=1.0),
        outcome("m", "3", 1.0, held_out=0.0),
    ]  # fmt: skip
    about = {**ABOUT, "budget": 1, "held_out": ["scene"]}
    report = make_report(outcomes, (Method("base", "best-of-n"), Method("m", "repair")), prompts(3), about, "base")
    pair = pair_of(report, "m", critic="scene")
    assert (pair["won"], pair["lost"], pair["difference"], pair["gap_difference"]) == (2, 0, 1.0, -0.25)
    assert pair["gap_low"] < -0.25 < pair["gap_high"]
    assert pair_of(report, "base", critic="scene") is None


def test_the_benchmarks_own_score_is_made_of_its_categories():
    outcomes = [
        outcome("m", "1", 1.0, category="x"),
        outcome("m", "2", 0.0, category="y"),
        outcome("m", "3", 0.0, category="y"),
    ]
    report = make_report(
        outcomes, (Method("m", "repair"),), prompts(3), ABOUT, overall=lambda means: sum(means.values()) / len(means)
    )
    assert report["searches"]["m"]["benchmark_score"] == 0.5
    assert "benchmark's score" in to_markdown(report)
