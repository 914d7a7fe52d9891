"""Reports by hand: what counts as success, costs, pairs, held-out critics, warnings."""

import json
import random
from dataclasses import replace

import pytest

from command import ROOT
from milr.drafts import Task
from milr.reports.report import curves, held_reward, leading, make_report, pair_of, to_markdown, upgraded
from milr.runs.journal import Outcome
from milr.runs.methods import BASELINE, METHODS, Method
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


def test_what_several_drafts_at_a_time_are_to_a_report():
    """The solving draft is not always the last, and a method that returns its last one returns that which solved."""
    wide = Method("wide", "repair", settings=(("width", "3"),))
    last = Method("last", "milr", "official", settings=(("width", "3"),), returns_last=True)
    outcomes = [
        replace(outcome("wide", "1", 0.5, 0.2, 1.0, 0.4, stopped="threshold"), moves=("", "text", "image", "again")),
        outcome("last", "1", 0.5, 0.95, 0.2, 0.3, returned=1),
    ]
    report = make_report(outcomes, (wide, last), prompts(1), {**ABOUT, "budget": 4}, "none")
    row = report["searches"]["wide"]
    assert row["moves"]["image"] == {"drafts": 1, "solved": 1}
    assert [row["by_calls"][str(k)]["reward"] for k in (1, 2, 3, 4)] == [0.5, 0.5, 1.0, 1.0]
    assert [report["searches"]["last"]["by_calls"][str(k)]["reward"] for k in (1, 2, 3, 4)] == [0.5, 0.95, 0.95, 0.95]
    assert (row["width"], report["searches"]["last"]["width"]) == (3, 3)
    (note,) = report["notes"][-1:]
    assert note.startswith("wide draws 3 drafts at a time, last draws 3 drafts at a time after the first one")
    assert "@k is the best of its first k drafts" in to_markdown(report)
    one = make_report([outcome("m", "1", 1.0)], (Method("m", "repair"),), prompts(1), ABOUT)
    assert "at a time" not in to_markdown(one)


def test_seconds_are_those_of_drawing_judging_and_searching():
    """Drawing takes a second a draft; the critic of `dear` takes three more. At equal seconds it gets fewer drafts."""
    told = {"judging": (3.0,) * 3, "searching": (0.5,) * 3}
    dear = [replace(outcome("dear", str(k), 0.0, 0.0, 1.0), **told) for k in (1, 2)]
    cheap = [replace(outcome("cheap", str(k), 0.0, 0.0, 0.0), judging=(0.0,) * 3, searching=(0.0,) * 3) for k in (1, 2)]
    methods = (Method("dear", "repair"), Method("cheap", "best-of-n"))
    report = make_report([*dear, *cheap], methods, prompts(2), ABOUT, "cheap")
    row = report["searches"]["dear"]
    assert row["seconds_a_draft"] == {"drawing": 1.0, "judging": 3.0, "searching": 0.5}
    assert (row["seconds"], row["by_calls"]["2"]["seconds"]) == (13.5, 9.0)
    assert (pair_of(report, "dear")["won"], pair_of(report, "dear", "seconds")["won"]) == (2, 0)
    assert "drawing + judging + searching: dear 1.000 + 3.000 + 0.500, cheap 1.000 + 0.000" in to_markdown(report)


def test_journals_of_before_know_seconds_of_drawing_alone():
    older = [outcome("old", "1", 0.0, 1.0)]
    newer = [replace(outcome("new", "1", 0.0, 1.0), judging=(1.0, 1.0), searching=(0.0, 0.0))]
    report = make_report([*older, *newer], (Method("old", "repair"), Method("new", "repair")), prompts(1), ABOUT)
    assert (report["searches"]["old"]["seconds"], report["searches"]["new"]["seconds"]) == (2.0, 4.0)
    assert "Of old only drawing is on record, and counted." in to_markdown(report)
    report = make_report(older, (Method("old", "repair"),), prompts(1), ABOUT)
    assert report["searches"]["old"]["seconds_a_draft"] == {"drawing": 1.0, "judging": None, "searching": None}
    assert "judging" not in to_markdown(report)


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


def won(method, wins, n, category="", **more):
    """Of n prompts the first `wins` are solved."""
    return [outcome(method, str(k), 1.0 if k <= wins else 0.0, category=category, **more) for k in range(1, n + 1)]


def test_of_many_comparisons_a_difference_that_is_one_by_itself_is_none_after_holm():
    """6 won to 0: p = 2/64, and the interval is above 0. Of three comparisons, p = 3 x 2/64."""
    n, two = 40, (Method("a", "repair"), BASE)
    alone = make_report([*won("a", 6, n), *won(BASELINE, 0, n)], two, prompts(n), {**ABOUT, "budget": 1})
    assert pair_of(alone, "a")["verdict"].startswith(f"a beats {BASELINE} by 15.0 points [")
    outcomes = [*won("a", 6, n), *won(BASELINE, 0, n), *won("c", 3, n)]
    report = make_report(outcomes, (*two, Method("c", "single")), prompts(n), {**ABOUT, "budget": 1})
    pair = pair_of(report, "a")
    assert (pair["low"] > 0, pair["p"], pair["p_holm"], pair["comparisons"]) == (True, 0.03125, 0.09375, 3)
    assert pair["verdict"] == (
        f"a and {BASELINE} cannot be told apart after correction for 3 comparisons (Holm p = .094; by itself +15.0 "
        f"[{100 * pair['low']:+.1f}, {100 * pair['high']:+.1f}], p = .031); about {pair['prompts_needed']} prompts "
        "would show a difference of this size"
    )
    assert pair["prompts_needed"] > pair_of(alone, "a")["prompts_needed"]


def test_verdicts_of_categories_and_of_fewer_calls_are_corrected_too():
    """The same 6 to 0 in one of two categories, and at one of two numbers of calls."""
    n = 40
    mine = [outcome("a", str(k), float(k <= 6), category="x" if k <= n // 2 else "y") for k in range(1, n + 1)]
    theirs = [outcome(BASELINE, str(k), 0.0, category="x" if k <= n // 2 else "y") for k in range(1, n + 1)]
    two = (Method("a", "repair"), BASE)
    report = make_report([*mine, *theirs], two, prompts(n), {**ABOUT, "budget": 1})
    pair = pair_of(report, "a", category="x")
    assert (pair["p"], pair["p_holm"], pair["comparisons"]) == (0.03125, 0.0625, 2)
    assert "cannot be told apart after correction for 2 comparisons" in pair["verdict"]
    assert "over these 2 comparisons" in to_markdown(report)
    assert "**(" not in to_markdown(report)
    mine = [outcome("a", str(k), *([float(k <= 6)] * 5)) for k in range(1, n + 1)]
    theirs = [outcome(BASELINE, str(k), *([0.0] * 5)) for k in range(1, n + 1)]
    report = make_report([*mine, *theirs], two, prompts(n), {**ABOUT, "budget": 5})
    assert pair_of(report, "a", at=4)["p_holm"] == 0.0625  # at 1 and at 4 calls
    assert "after correction for 2 comparisons" in pair_of(report, "a", at=4)["verdict"]
    assert pair_of(report, "a")["verdict"].startswith("a beats")  # at the full budget it is the one comparison


def test_an_interval_that_the_test_does_not_bear_out_is_said():
    """Four of four prompts won: the interval is above 0, and p = 2/16."""
    report = make_report(
        [*won("a", 4, 4), *won(BASELINE, 0, 4)], (Method("a", "repair"), BASE), prompts(4), {**ABOUT, "budget": 1}
    )
    assert "cannot be told apart (+100.0 [" in pair_of(report, "a")["verdict"]
    assert "], but p = .125)" in pair_of(report, "a")["verdict"]


def test_rounding_is_no_failure():
    almost = 1 - 1e-16 * 2
    assert almost < 1
    outcomes = [outcome("m", "1", 0.0, almost, held_out=almost), outcome("m", "2", almost, held_out=almost)]
    report = make_report(outcomes, (Method("m", "repair"),), prompts(2), {**ABOUT, "held_out": ["scene"]})
    row = report["searches"]["m"]
    assert (row["success"], row["optimised"]["success"], row["moves"]["text"]["solved"]) == (1, 1, 1)


def test_success_and_solving_moves_go_by_the_runs_threshold():
    outcomes = [outcome("m", "1", 0.2, 0.85), outcome("m", "2", 0.7)]
    report = make_report(outcomes, (Method("m", "repair"),), prompts(2), {**ABOUT, "threshold": 0.8})
    assert (report["searches"]["m"]["success"], report["searches"]["m"]["moves"]["text"]["solved"]) == (0.5, 1)
    assert "Success (a reward of .8, where a search stops)" in to_markdown(report)


def test_where_success_says_nothing_the_report_says_so():
    report = make_report([outcome("m", "1", 0.2, 0.85)], (Method("m", "repair"),), prompts(1), ABOUT)
    assert "no returned picture has a score of 1 from redness" in report["notes"][0]
    solved = make_report([outcome("m", "1", 0.2, 1.0)], (Method("m", "repair"),), prompts(1), ABOUT)
    assert not [note for note in solved["notes"] if "no returned picture" in note]


@pytest.mark.parametrize(
    ("method", "has_checks", "is_marked"),
    [
        (Method("m", "milr", "text-then-image"), True, True),
        (Method("m", "milr", "paper"), False, False),
        (Method("m", "repair"), False, True),
        (Method("m", "repair"), True, False),
        (Method("m", "repair", None, (("caution", "0"), ("shrink", "0"))), False, False),
        (Method("m", "best-of-n", None, (("shrink", "0.5"),)), False, True),
        (Method("m", "best-of-n", "sampled-text"), False, False),
        (Method("m", "of-another-machine"), False, False),
    ],
)
def test_at_k_is_marked_where_it_is_not_what_a_budget_of_k_brings(method, has_checks, is_marked):
    found = [outcome("m", "1", 0.2, 0.5, 0.5, 0.5, 0.4), outcome("m", "2", 0.1, 0.2, 0.2, 0.3, 0.2)]
    if has_checks:
        found = [replace(one, failed={"redness": ["a corner is red"]}) for one in found]
    table = to_markdown(make_report(found, (method,), prompts(2), {**ABOUT, "budget": 5}))
    assert ("*: not what a user of m with a budget of k gets" in table) == is_marked
    row = next(line for line in table.splitlines() if line.startswith("| m |"))
    assert row.count("]*") == is_marked  # @4; the first draft is everybody's, and @5 is the budget


def test_a_mean_is_of_the_draft_that_is_returned():
    """At the end the search chose another draft than the best: 0.2, of 0.5 on the way."""
    about = {**ABOUT, "budget": 4, "number": "mean"}
    report = make_report(
        [outcome("m", "1", 0.1, 0.5, 0.2, 0.2, returned=2)], (Method("m", "repair"),), prompts(1), about
    )
    row = report["searches"]["m"]
    assert (row["value"], row["by_calls"]["3"]["value"], row["by_calls"]["4"]["value"]) == (0.2, 0.5, 0.2)


def test_a_report_of_the_format_before_reads_as_it_was():
    """Format 1, of a run that is nowhere any more."""
    old = json.loads((ROOT / "docs" / "data" / "recipe-table-4.json").read_text())
    assert old["format"] == "milr-report/1"
    new = upgraded(old)
    assert new["searches"]["milr:paper"]["value"] == old["searches"]["milr:paper"]["success"]
    assert pair_of(new, "milr:alternate")["p"] == pair_of(old, "milr:alternate")["p_mcnemar"]
    assert [pair["p_holm"] for pair in new["pairs"] if pair["axis"] == "tokens"] == [
        pair["p_holm"] for pair in old["pairs"] if pair["axis"] == "tokens"
    ]
    assert "*: not what a user of milr:text-then-image" in to_markdown(old)
    assert curves(old).startswith("<svg")


def test_the_answer_names_who_cannot_be_told_from_the_best():
    """Red before: the page said that repair comes out highest, and not that another is level with it."""
    report = json.loads((ROOT / "docs" / "data" / "main-2.json").read_text())
    first, second, *_ = leading(report)
    assert first.startswith("repair comes out highest at 20 calls")
    assert second == "It cannot be told apart from best-of-n:distinct,text_ratio=0.6 (+1.3 points [-0.2, +2.9])."


class Counted(tuple):
    """Counts how many of its numbers are read."""

    read = 0

    def __iter__(self):
        for number in super().__iter__():
            Counted.read += 1
            yield number

    def __getitem__(self, key):
        found = super().__getitem__(key)
        Counted.read += len(found) if isinstance(key, slice) else 1
        return found


@pytest.mark.parametrize("early", [False, True])
def test_numbers_at_every_budget_take_one_pass_over_the_drafts(early):
    """Twice the budget, twice the work; each number is that of the first drafts alone."""
    work = []
    for budget in (60, 120, 240):
        rng = random.Random(3)
        outcomes, tasks = [], [Task(f"p{n}", id=str(n)) for n in range(3)]
        for task in tasks:
            count = rng.randint(2, budget // 3) if early else budget
            rewards = [rng.choice([None, rng.random()]) for _ in range(count)]
            columns = [Counted(column) for column in (rewards, [7] * count, [0.25] * count)]
            outcomes.append(
                Outcome(METHODS[2].name, METHODS[2].spec, task.id, 0, "", *columns, ("",) * count, count - 1, "budget")
            )
        Counted.read = 0
        report = make_report(outcomes, METHODS[2:3], tasks, {"budget": budget, "critic": "x"})
        work.append(Counted.read / sum(len(one.rewards) for one in outcomes))
        after = report["searches"][METHODS[2].name]["by_calls"]
        assert list(after) == [str(count) for count in range(1, budget + 1)]
        for count in (1, 2, 3, budget // 2, budget):
            held = [held_reward(METHODS[2], one, count) for one in outcomes]
            known = [reward for reward in held if reward is not None]
            assert after[str(count)]["reward"] == (pytest.approx(sum(known) / len(known)) if known else None)
            spent = [min(count, len(one.rewards)) for one in outcomes]
            assert after[str(count)]["calls"] == pytest.approx(sum(spent) / 3)
            assert after[str(count)]["decoded_tokens"] == pytest.approx(7 * sum(spent) / 3)
            assert after[str(count)]["seconds"] == pytest.approx(0.25 * sum(spent) / 3)
    assert max(work) <= 1.5 * min(work)
