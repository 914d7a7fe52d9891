"""What a run says: the benchmark's number at every number of calls, with intervals; paired differences, costs, tables.

The *number* is what the benchmark's score is made of (`milr.benchmarks.base`): success, the share of prompts whose
draft reaches the threshold, or the mean score. Everything that is compared is this number: headline, curves, pairs,
categories, verdicts. After k calls it is that of the draft that a user would hold then; at the end, of the returned
one. With held-out critics the headline is what the first of *them* says of the returned draft; curves are always the
climbed critic's, since nobody else sees the drafts on the way. Who judged stands beside every number (`judge`).

Success is `milr.drafts.reaches`: the run's threshold for the climbed critic, 1 for a held-out one. A draft without a
score is no success; from a mean it is left out, since abstaining is never 0. Several seeds of a prompt are not
independent, so every interval is over prompts: a prompt counts with its mean over seeds.

The report is one JSON object: `searches` by name, and `pairs` of every two of them at equal calls, equal decoded tokens
and equal seconds. Tables (`to_markdown`) and pictures (`curves`) are made from it alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, combinations
from typing import Any

from milr.drafts import RIGHT, ROUNDING, Task, reaches
from milr.runs.journal import Outcome
from milr.runs.methods import BASELINE, Method, looks_at_budget, width_of
from milr.statistics import (
    clustered_share,
    holm,
    mean_interval,
    paired_means,
    prompts_needed,
    sign_flip_test,
    sign_test,
)

FORMAT = "milr-report/2"
CALLS = (1, 4, 8, 16, 20)
MAX_ABSTAIN = 0.05  # share of drafts without a score from which on a report cannot be trusted
TESTS = {"success": "McNemar's exact test", "mean": "a permutation test (signs flipped)"}
LEVEL = 0.05  # of the corrected p below which a difference is called one

Groups = Sequence[Sequence[Outcome]]  # of each prompt the outcomes of its seeds
Scores = Sequence[Sequence[float | None]]  # of each prompt the scores of its seeds; None: without one


def make_report(
    outcomes: Iterable[Outcome],
    methods: Sequence[Method],
    tasks: Sequence[Task],
    about: Mapping[str, Any],
    baseline: str = BASELINE,
    *,
    overall: Callable[[Mapping[str, float]], float] | None = None,
    max_abstain: float = MAX_ABSTAIN,
) -> dict[str, Any]:
    """Numbers for every method, and for every two of them, prompt by prompt. Searches that a method lacks are an error.

    Args:
        about: says at least `budget`, and `number` where it is not success; goes into the report as it is.
        baseline: the method that tables compare the others with; pairs of it come for every number of calls.
        overall: the benchmark's own score out of the numbers of its categories.
        max_abstain: share of drafts without a score above which the report says that it cannot be trusted.
    """
    budget, seeds = int(about["budget"]), int(about.get("seeds", 1))
    calls = sorted({count for count in CALLS if count < budget} | {budget})
    found = {outcome.key: outcome for outcome in outcomes}
    table = {
        method.name: [[found[method.name, task.id, index] for index in range(seeds)] for task in tasks]
        for method in methods
    }
    maker = _Maker(
        about.get("number", "success"),
        budget,
        seeds,
        float(about.get("threshold", RIGHT)),
        str(about.get("critic", "")),
        tuple(about.get("held_out") or ()),
    )
    searches = {method.name: maker.search(method, table[method.name], overall) for method in methods}
    names = [method.name for method in methods]
    for name in names:
        if baseline in names and name != baseline:
            searches[name]["to_reach_baseline"] = _to_reach(searches[name], searches[baseline])
    return {
        "format": FORMAT,
        **about,
        "number": maker.number,
        "threshold": maker.threshold,
        "judge": maker.judge,
        "test": TESTS[maker.number],
        "prompts": len(tasks),
        "seeds": seeds,
        "baseline": baseline if baseline in names else None,
        "calls": calls,
        "warnings": list(maker.warnings(searches, max_abstain)),
        "notes": [*maker.notes(searches), *not_a_budget(searches, budget), *several_at_once(searches)],
        "searches": searches,
        "pairs": maker.pairs(methods, table, baseline, calls),
    }


@dataclass
class _Comparison:
    """Two searches by one judge. `family`: the comparisons that are looked at, and corrected, together."""

    about: dict[str, Any]
    mine: Scores
    theirs: Scores
    family: tuple[str, str]
    more: Mapping[str, Any] = field(default_factory=dict)


class _Maker:
    """Makes the parts of a report; holds what all of them need."""

    def __init__(
        self, number: str, budget: int, seeds: int, threshold: float, critic: str, held_out: tuple[str, ...]
    ) -> None:
        self.number, self.budget, self.seeds, self.threshold = number, budget, seeds, threshold
        self.critic, self.held_out = critic, held_out
        self.judge = held_out[0] if held_out else critic

    # The number

    def success_of(self, scores: Sequence[float | None], judge: str) -> float | None:
        """Of one prompt the share of its seeds that are right; None where a held-out critic judged none."""
        if judge == self.critic:  # a draft that it could not score is no success
            return _mean(reaches(score, self.threshold) for score in scores)
        known = [score for score in scores if score is not None]
        return _mean(reaches(score) for score in known) if known else None

    def number_of(self, scores: Sequence[float | None], judge: str) -> float | None:
        """The number of one prompt, over its seeds; None where there is nothing to go by."""
        return _mean_of(scores) if self.number == "mean" else self.success_of(scores, judge)

    def told(self, scores: Scores, judge: str) -> dict[str, Any]:
        """The number over all prompts with its interval, success, and the mean score. None: nothing was judged."""
        numbers = _known(self.number_of(of, judge) for of in scores)
        successes, means = _known(self.success_of(of, judge) for of in scores), _known(map(_mean_of, scores))
        interval: tuple[float | None, float | None, float | None] = (None, None, None)
        if numbers:
            interval = mean_interval(numbers) if self.number == "mean" else clustered_share(numbers, self.seeds)
        return {
            **dict(zip(("value", "low", "high"), interval, strict=True)),
            "success": _mean(successes) if successes else None,
            "reward" if judge == self.critic else "score": _mean(means) if means else None,
            "prompts": len(numbers),
        }

    def held(self, method: Method, groups: Groups, calls: int) -> Scores:
        """The rewards of the drafts that a user holds after so many calls, at least one."""
        return [[held_reward(method, one, calls) for one in group] for group in groups]

    def held_within(self, method: Method, groups: Groups, axis: str, cap: float) -> Scores:
        """The same after so many decoded tokens or seconds, and at most the full budget of calls."""
        return [[held_reward(method, one, _calls_within(one, axis, cap)) for one in group] for group in groups]

    def headline(self, method: Method, groups: Groups) -> dict[str, Any]:
        """The number at the full budget, as the first held-out critic sees it, or without one the critic climbed."""
        if self.held_out:
            return self.told(_judged(groups, self.judge), self.judge)
        return self.told(self.held(method, groups, self.budget), self.critic)

    # One search

    def search(
        self, method: Method, groups: Groups, overall: Callable[[Mapping[str, float]], float] | None
    ) -> dict[str, Any]:
        flat = [outcome for group in groups for outcome in group]
        solving = Counter(move for outcome in flat if (move := self._solving_move(outcome)))
        moves: Counter[str] = Counter(move for outcome in flat for move in outcome.moves[1:])
        by_category = {
            category: {**self.headline(method, chosen), "n": len(chosen) * self.seeds}
            for category, chosen in _by_category(groups).items()
        }
        drafts = sum(len(o.rewards) for o in flat)
        row: dict[str, Any] = {
            "spec": method.spec,
            "search": method.search,
            "preset": method.preset,
            "settings": dict(method.settings),
            "n": len(flat),
            **self.headline(method, groups),
            "optimised": self.told(self.held(method, groups, self.budget), self.critic),
            "held_out": {
                critic: {**self.told(_judged(groups, critic), critic), **_gap(groups, critic)}
                for critic in self.held_out
                if any(_known(of) for of in _judged(groups, critic))
            },
            "calls": _mean(len(o.rewards) for o in flat),
            "decoded_tokens": _mean(sum(o.tokens) for o in flat),
            # Read in one pass, not chosen: a search that repairs a picture reads all of it. None: an older journal.
            "prefilled_tokens": _mean(sum(o.prefilled) for o in flat) if all(o.prefilled for o in flat) else None,
            # Of the model, prompts included: several tokens may be chosen in one. None: an older journal, or no tokens.
            "passes": _mean(sum(o.passes) for o in flat) if all(any(o.passes) for o in flat) else None,
            # Floating point operations, and how often a flow model's drawing network was run. None: an older journal.
            "work": _mean(sum(o.work) for o in flat) if _knows_work(flat) else None,
            "evaluations": _mean(sum(o.evaluations) for o in flat) if any(any(o.evaluations) for o in flat) else None,
            "seconds": _mean(sum(o.all_seconds) for o in flat),
            "seconds_a_draft": _seconds_a_draft(flat),
            "by_category": by_category,
            "by_calls": self._by_calls(method, groups),
            "looks_at_budget": self._looks_at_budget(method, flat),
            "width": width_of(method),
            "drafts": drafts,
            "abstained": sum(reward is None for o in flat for reward in o.rewards) / drafts,
            "moves": {move: {"drafts": count, "solved": solving[move]} for move, count in moves.items() if move},
        }
        numbers = {category: of["value"] for category, of in by_category.items()}
        if overall is not None and None not in numbers.values():
            row["benchmark_score"] = overall(numbers)
        return row

    def _solving_move(self, outcome: Outcome) -> str:
        """The move that drew the first draft at the threshold, '' where that is the first of all, or none is. Where
        several are drawn at a time others may follow it."""
        moves = zip(outcome.moves, outcome.rewards, strict=True)
        solved = next((number for number, (_, reward) in enumerate(moves) if reaches(reward, self.threshold)), 0)
        return outcome.moves[solved] if solved else ""

    def _by_calls(self, method: Method, groups: Groups) -> dict[str, dict[str, Any]]:
        """For every budget what a user spends on average who sets it, and what it brings. One pass over the drafts."""
        flat = [outcome for group in groups for outcome in group]
        steps = [
            zip(
                held_rewards(method, o), accumulate(o.tokens), accumulate(o.all_seconds),
                accumulate(o.work or [0.0] * len(o.rewards)), strict=True,
            ) for o in flat
        ]  # fmt: skip
        held: list[float | None] = [None] * len(flat)
        tokens, seconds, work, calls = [0.0] * len(flat), [0.0] * len(flat), [0.0] * len(flat), [0] * len(flat)
        found: dict[str, dict[str, Any]] = {}
        drawing = list(range(len(flat)))  # the searches that have a draft more
        for count in range(1, self.budget + 1):
            drawing = [index for index in drawing if len(flat[index].rewards) >= count]
            for index in drawing:
                held[index], tokens[index], seconds[index], work[index] = next(steps[index])
                calls[index] = count
            if not drawing and found:
                found[str(count)] = dict(found[str(count - 1)])
                continue
            of_prompts = iter(held)
            found[str(count)] = {
                **self.told([[next(of_prompts) for _ in group] for group in groups], self.critic),
                "calls": _mean(calls),
                "decoded_tokens": _mean(tokens),
                "seconds": _mean(seconds),
                **({"work": _mean(work)} if _knows_work(flat) else {}),
            }
        return found

    def _looks_at_budget(self, method: Method, outcomes: Sequence[Outcome]) -> str:
        """Why its numbers at fewer calls are not those of a smaller budget, in words; '' where they are."""
        says = looks_at_budget(method)
        if says == "always":
            return LOOKS["always"]
        ended = [one for one in outcomes if one.stopped != "threshold"]
        chose = says == "without checks" and any(self.critic not in one.failed for one in ended)
        return LOOKS["without checks"] if chose else ""

    def warnings(self, searches: Mapping[str, Mapping[str, Any]], max_abstain: float) -> Iterable[str]:
        """What a reader must know before any number."""
        for name, row in searches.items():
            if row["abstained"] > max_abstain:
                yield (
                    f"{name}: {row['abstained']:.0%} of the drafts have no score (more than {max_abstain:.0%}): do not "
                    "trust its numbers"
                )
            missing = row["n"] // self.seeds - row["prompts"]
            if missing:
                yield f"{name}: {missing} prompts have no score of {self.judge} and are left out of its numbers"

    def notes(self, searches: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
        """Where success says nothing: a critic of grades that no returned picture brings to the threshold."""
        for judge in (self.critic, *self.held_out):
            rows = searches.values()
            ends = [row["optimised"] if judge == self.critic else row["held_out"].get(judge) or {} for row in rows]
            graded = any(of.get("reward" if judge == self.critic else "score") for of in ends)
            if self.number == "success" and graded and not any(of.get("success") for of in ends):
                right = _plain(self.threshold if judge == self.critic else RIGHT)
                cure = "; --threshold sets what counts" if judge == self.critic else ""
                yield (
                    f"no returned picture has a score of {right} from {judge}, so its verdicts tell no methods apart "
                    f"by success; look at its mean scores{cure}"
                )

    # Two searches

    def pairs(
        self, methods: Sequence[Method], table: Mapping[str, Groups], baseline: str, calls: Sequence[int]
    ) -> list[dict[str, Any]]:
        """Every two searches: at the full budget of calls, at equal tokens (of flow models: equal work, as their drafts
        differ in that and have few tokens), at equal seconds; with the baseline also at
        fewer calls, and by category (as the first held-out critic sees it, if there is one); each held-out critic at
        the full budget. b is the baseline, or the earlier one.

        Every verdict is corrected (Holm) over all that are looked at together: the pairs of one axis and judge at the
        full budget; the pairs with the baseline at fewer calls, all counts together; the categories of all methods.
        """
        found: list[_Comparison] = []
        for first, second in combinations(methods, 2):
            b, a = (second, first) if second.name == baseline else (first, second)
            mine, theirs = table[a.name], table[b.name]
            about = {"a": a.name, "b": b.name, "axis": "calls", "at": self.budget, "judge": self.critic}
            for count in calls if b.name == baseline else (self.budget,):
                kind = "calls" if count == self.budget else "fewer calls"
                found.append(
                    _Comparison(
                        {**about, "at": count}, self.held(a, mine, count), self.held(b, theirs, count),
                        (kind, self.critic),
                    )
                )  # fmt: skip
            for axis in _costs([*mine, *theirs]):
                cap = min(self._exhausted(mine, axis), self._exhausted(theirs, axis))
                found.append(
                    _Comparison(
                        {**about, "axis": axis, "at": round(cap, 4)},
                        self.held_within(a, mine, axis, cap),
                        self.held_within(b, theirs, axis, cap),
                        (axis, self.critic),
                    )
                )
            if b.name == baseline:
                of_mine, of_theirs = _by_category(mine), _by_category(theirs)
                for category in of_mine:
                    found.append(
                        _Comparison(
                            {**about, "category": category, "judge": self.judge},
                            self._returned(a, of_mine[category]),
                            self._returned(b, of_theirs[category]),
                            ("categories", self.judge),
                        )
                    )
            for critic in self.held_out:
                gaps = _gap_pair(mine, theirs, critic)
                if gaps:
                    found.append(
                        _Comparison(
                            {**about, "critic": critic, "judge": critic},
                            _judged(mine, critic), _judged(theirs, critic), ("calls", critic), gaps,
                        )
                    )  # fmt: skip
        families = Counter(one.family for one in found)
        pairs = [self._pair(one, families[one.family]) for one in found]
        correct(pairs, [one.family for one in found])
        return [{**pair, "verdict": verdict(pair)} for pair in pairs]

    def _returned(self, method: Method, groups: Groups) -> Scores:
        """What the judge of the headline says of the returned drafts."""
        return _judged(groups, self.judge) if self.held_out else self.held(method, groups, self.budget)

    def _pair(self, one: _Comparison, comparisons: int) -> dict[str, Any]:
        """The mean difference over the prompts where both have a number, with its interval and test; prompts won and
        lost."""
        judge = str(one.about["judge"])
        numbers = [
            (self.number_of(a, judge), self.number_of(b, judge)) for a, b in zip(one.mine, one.theirs, strict=True)
        ]
        both = [(a, b) for a, b in numbers if a is not None and b is not None]
        differences = [a - b if abs(a - b) > ROUNDING else 0.0 for a, b in both]
        won, lost = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
        pair: dict[str, Any] = {**one.about, "difference": None, "low": None, "high": None, "won": won, "lost": lost,
                                "prompts": len(both), "p": 1.0, "prompts_needed": None, **one.more}  # fmt: skip
        if not both:
            return pair
        if self.number == "mean":
            # Of differences that are all alike (mostly: none at all) Student's t would know the mean exactly.
            alike = len(set(differences)) == 1
            interval = paired_means(differences) if alike else mean_interval(differences, least=-1.0)
            pair["difference"], pair["low"], pair["high"] = interval
            pair["p"] = sign_flip_test(differences)
        else:
            pair["difference"], pair["low"], pair["high"] = paired_means(differences)
            pair["p"] = sign_test(won, lost)
            pair["failures"] = [len(both) - math.fsum(side) for side in zip(*both, strict=True)]
        pair["prompts_needed"] = prompts_needed(differences, comparisons)
        return pair

    def _exhausted(self, groups: Groups, axis: str) -> float:
        """What a search that uses up its budget spends on average (all searches, where none does)."""
        flat = [outcome for group in groups for outcome in group]
        chosen = [one for one in flat if len(one.rewards) >= self.budget] or flat
        return _mean(sum(_spent(one, axis)) for one in chosen)


LOOKS = {
    "always": "what it draws depends on the budget",
    "without checks": "it chooses at the end of its budget which draft to return, since the critic gives no checks",
}


def held_reward(method: Method, outcome: Outcome, calls: int) -> float | None:
    """The reward of the draft that a user holds after so many calls, at least one: the returned draft where the search
    is over by then, else the best so far, or the last of a method that returns its last. None: it has no score."""
    if calls >= len(outcome.rewards):
        return outcome.rewards[outcome.returned]
    seen = outcome.rewards[: max(1, calls)]
    if method.returns_last and outcome.returned < len(seen):
        return outcome.rewards[outcome.returned]  # it solved, and others of its round came behind it
    return seen[-1] if method.returns_last else max(_known(seen), default=None)


def held_rewards(method: Method, outcome: Outcome) -> Iterator[float | None]:
    """`held_reward` after one call, after two, and so on to the end of the search."""
    best: float | None = None
    for number, reward in enumerate(outcome.rewards[:-1]):
        if reward is not None:
            best = reward if best is None else max(best, reward)
        # What solved may have others of its round behind it.
        yield outcome.rewards[min(number, outcome.returned)] if method.returns_last else best
    yield outcome.rewards[outcome.returned]


def correct(pairs: Sequence[dict[str, Any]], families: Sequence[Any]) -> None:
    """Holm's correction of each pair's p within its family; says too how many comparisons that were."""
    for family in dict.fromkeys(families):
        mine = [pair for pair, other in zip(pairs, families, strict=True) if other == family]
        for pair, p in zip(mine, holm([pair["p"] for pair in mine]), strict=True):
            pair["p_holm"], pair["comparisons"] = p, len(mine)


def pair_of(report: Mapping[str, Any], name: str, axis: str = "calls", **where: Any) -> dict[str, Any] | None:
    """The pair of this search with the baseline; `at` is the full budget where it is not given."""
    wanted = {"a": name, "b": report["baseline"], "axis": axis, "critic": None, "category": None, **where}
    if axis == "calls":
        wanted.setdefault("at", report["calls"][-1])
    return next((p for p in report["pairs"] if all(p.get(key) == value for key, value in wanted.items())), None)


def _by_category(groups: Groups) -> dict[str, list[Sequence[Outcome]]]:
    found: dict[str, list[Sequence[Outcome]]] = {}
    for group in groups:
        found.setdefault(group[0].category or "all", []).append(group)
    return found


def _calls_within(outcome: Outcome, axis: str, cap: float) -> int:
    """How many drafts a search gets for so many tokens or seconds; the first is always drawn."""
    return max(1, sum(total <= cap * (1 + 1e-9) for total in accumulate(_spent(outcome, axis))))


def _spent(outcome: Outcome, axis: str) -> Sequence[float]:
    """Tokens, seconds or work of each draft."""
    if axis == "work":
        return outcome.work
    return outcome.all_seconds if axis == "seconds" else outcome.tokens


def _knows_work(outcomes: Iterable[Outcome]) -> bool:
    """Whether it is on record how many operations every draft took."""
    return all(any(one.work) for one in outcomes)


def _costs(groups: Groups) -> tuple[str, str]:
    """What searches are compared at, beside calls."""
    flat = [one for group in groups for one in group]
    return ("work" if any(any(one.evaluations) for one in flat) and _knows_work(flat) else "tokens"), "seconds"


def _seconds_a_draft(outcomes: Sequence[Outcome]) -> dict[str, float | None]:
    """Mean seconds of drawing, judging and searching a draft took; None where an older journal does not say."""
    drafts = sum(len(one.rewards) for one in outcomes)
    known = all(one.judging for one in outcomes)
    return {
        "drawing": math.fsum(math.fsum(one.seconds) for one in outcomes) / drafts,
        "judging": math.fsum(math.fsum(one.judging) for one in outcomes) / drafts if known else None,
        "searching": math.fsum(math.fsum(one.searching) for one in outcomes) / drafts if known else None,
    }


def _judged(groups: Groups, critic: str) -> Scores:
    """What a held-out critic says of the returned drafts."""
    return [[one.held_out.get(critic) for one in group] for group in groups]


def _gaps(group: Sequence[Outcome], critic: str) -> tuple[float, float] | None:
    """Of a prompt the mean hacking gap (reward minus held-out score) over the seeds that have both, and the mean
    held-out score."""
    both = [
        (score, reward)
        for one in group
        if (score := one.held_out.get(critic)) is not None and (reward := one.rewards[one.returned]) is not None
    ]
    return (_mean(reward - score for score, reward in both), _mean(score for score, _ in both)) if both else None


def _gap(groups: Groups, critic: str) -> dict[str, Any]:
    found = [of for group in groups if (of := _gaps(group, critic)) is not None]
    if not found:
        return {"gap": None, "gap_low": None, "gap_high": None}
    gap, low, high = paired_means([gap for gap, _ in found])
    return {"gap": gap, "gap_low": low, "gap_high": high}


def _gap_pair(mine: Groups, theirs: Groups, critic: str) -> dict[str, Any]:
    """Hacking gap and mean held-out score against the other's, over the prompts where both have them."""
    pairs = [(_gaps(a, critic), _gaps(b, critic)) for a, b in zip(mine, theirs, strict=True)]
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    if not both:
        return {}
    gap, low, high = paired_means([a[0] - b[0] for a, b in both])
    score, score_low, score_high = mean_interval([a[1] - b[1] for a, b in both], least=-1.0)
    return {
        "gap_difference": gap, "gap_low": low, "gap_high": high,
        "score_difference": score, "score_low": score_low, "score_high": score_high,
    }  # fmt: skip


def verdict(pair: Mapping[str, Any]) -> str:
    """The pair as a sentence: who beats whom by how much, or why they cannot be told apart."""
    a, b, difference = pair["a"], pair["b"], pair["difference"]
    if difference is None:
        return f"{a} and {b} cannot be compared: no prompt has a score of both"
    low, high, p, corrected = pair["low"], pair["high"], pair["p"], pair["p_holm"]
    if corrected < LEVEL and low > 0:
        return f"{a} beats {b} by {100 * difference:.1f} points [{100 * low:.1f}, {100 * high:.1f}]"
    if corrected < LEVEL and high < 0:
        return f"{b} beats {a} by {-100 * difference:.1f} points [{-100 * high:.1f}, {-100 * low:.1f}]"
    found, so = f"{100 * difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]", ""
    if (low > 0 or high < 0) and p < LEVEL:  # by itself it is a difference; of many, some are by chance
        so = f" after correction for {pair['comparisons']} comparisons"
        found = f"Holm p {_p(corrected)}; by itself {found}, p {_p(p)}"
    elif low > 0 or high < 0:
        found += f", but p {_p(p)}"
    needed = pair["prompts_needed"]
    more = f"; about {needed:,} prompts would show a difference of this size" if needed else ""
    return f"{a} and {b} cannot be told apart{so} ({found}){more}"


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean_of(scores: Iterable[float | None]) -> float | None:
    """The mean of the scores that there are."""
    known = _known(scores)
    return _mean(known) if known else None


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return math.fsum(numbers) / len(numbers)


def _to_reach(row: Mapping[str, Any], baseline: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the method spends until it is as good as the baseline at its full budget, as the climbed critic judges; None
    if it never is.

    `beyond_first`: the same shares of what is spent after the first draft, which both draw alike.
    """
    goal = list(baseline["by_calls"].values())[-1]
    for calls, point in row["by_calls"].items():
        if point["value"] is not None and goal["value"] is not None and point["value"] >= goal["value"] - ROUNDING:
            return {
                "budget": int(calls),
                **{
                    f"share_of_{axis}": point[axis] / max(1e-12, goal[axis])
                    for axis in ("calls", "decoded_tokens", "seconds", "work")
                    if axis in point and axis in goal
                },
                "beyond_first": (point["calls"] - 1) / max(1e-12, goal["calls"] - 1),
            }
    return None


def upgraded(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """A report of format 1 (which knew success alone, and left verdicts at fewer calls and of categories uncorrected)
    as one of the present format; others as they are."""
    if report["format"] != "milr-report/1":
        return report

    def told(found: Mapping[str, Any]) -> dict[str, Any]:
        return {**found, "value": found["success"]}

    searches = {}
    for name, row in report["searches"].items():
        method = Method(name, row["search"], row["preset"], tuple(row["settings"].items()))
        says, last = looks_at_budget(method), list(row["by_calls"].values())[-1]
        best, returned = last.get("reward", 0.0), row["optimised"].get("reward", 0.0)
        chose = says == "without checks" and best - returned > ROUNDING
        searches[name] = {
            **told(row),
            "optimised": told(row["optimised"]),
            "held_out": {critic: told(of) for critic, of in row["held_out"].items()},
            "by_category": {category: told(of) for category, of in row["by_category"].items()},
            "by_calls": {count: told(of) for count, of in row["by_calls"].items()},
            "looks_at_budget": LOOKS[says] if says == "always" or chose else "",
        }
    budget, judge = report["calls"][-1], (report.get("held_out") or [report["critic"]])[0]
    pairs, families = [], []
    for pair in report["pairs"]:
        of = pair.get("critic", judge if "category" in pair else report["critic"])
        fewer = pair["axis"] == "calls" and pair["at"] != budget
        families.append(("categories" if "category" in pair else "fewer calls" if fewer else pair["axis"], of))
        pairs.append({**pair, "judge": of, "p": pair["p_mcnemar"], "prompts": report["prompts"]})
    correct(pairs, families)
    return {
        **report, "format": FORMAT, "number": "success", "judge": judge, "test": TESTS["success"],
        "threshold": report.get("threshold", RIGHT), "searches": searches, "notes": not_a_budget(searches, budget),
        "pairs": [{**pair, "verdict": verdict(pair)} for pair in pairs],
    }  # fmt: skip


# --- Tables ---------------------------------------------------------------------------------------------------


def to_markdown(report: Mapping[str, Any]) -> str:
    """The report as tables, as they go into the README and docs/results.md."""
    report = upgraded(report)
    calls, seeds, rows = report["calls"], report["seeds"], report["searches"]
    searches = f"{report['prompts']} prompts" + (f" x {seeds} seeds" if seeds > 1 else "")
    paired = (
        f"; difference in points against {report['baseline']}, paired by prompt, with {report['test']}"
        if report["baseline"]
        else ""
    )
    held_out, is_mean = report.get("held_out") or [], report["number"] == "mean"
    lines = [f"**{warning}.**" for warning in report["warnings"]]
    lines += [
        f"{searches}, {report['budget']} reward calls, model {report['model']}, critic {report['critic']}, "
        f"seed {report['seed']}. {what_is_counted(report)} with 95 % intervals over prompts{paired}."
        + (f" All as {report['critic']} judges, which is climbed." if held_out else "")
        + (f" {report['caveat']}" if report.get("caveat") else ""),
        "",
        "| method | "
        + " | ".join(f"@{count}" for count in calls)
        + (f" | at least {_plain(report['threshold'])}" if is_mean else "")
        + " | against baseline | calls | tokens | s |",
        "|---|" + "---|" * (len(calls) + 4 + is_mean),
    ]
    for name, row in rows.items():
        star = "*" if row["looks_at_budget"] else ""
        cells = [name]
        cells += [_share_cell(row["by_calls"][str(count)]) + (star if 1 < count < calls[-1] else "") for count in calls]
        cells += [_share(row["optimised"]["success"])] if is_mean else []
        cells += [
            _paired_cell(pair_of(report, name)),
            f"{row['calls']:.1f}",
            f"{row['decoded_tokens']:.0f}",
            f"{row['seconds']:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    abstained = sum(round(row["abstained"] * row["drafts"]) for row in rows.values())
    lines += [
        "",
        "calls, tokens, s: mean per search of reward calls, decoded tokens and wall seconds (shared within a batch)."
        + _passes_line(rows)
        + _work_line(rows)
        + _seconds_line(rows)
        + (f" The critic abstained {abstained} times." if abstained else ""),
        *(f"\n{line[0].upper()}{line[1:]}." for line in report["notes"]),
        "",
    ]
    lines += _category_table(report)
    for critic in held_out:
        lines += _held_out_table(report, critic)
    lines += [line for name, row in rows.items() if (line := _cost_line(name, row, report))]
    if report.get("expected"):
        lines += [*([""] if lines[-1] else []), f"{report['paper']}. The paper says: {report['expected']}."]
    return "\n".join([*lines, ""])


def what_is_counted(report: Mapping[str, Any]) -> str:
    """The number in words, with the threshold that success means, and where a search stops."""
    threshold = _plain(report["threshold"])
    if report["number"] == "mean":
        return f"Mean reward of the draft that a user holds (a search stops at a reward of {threshold})"
    return f"Success (a reward of {threshold}, where a search stops)"


def leading(report: Mapping[str, Any]) -> list[str]:
    """The answer in sentences: which method is best, by how much against the baseline, at what cost."""
    rows, baseline, judge = report["searches"], report["baseline"], report["judge"]
    ranked = sorted((name for name in rows if rows[name]["value"] is not None), key=lambda name: -rows[name]["value"])
    if not ranked:
        return [f"No picture has a score of {judge}: nothing can be said of the methods."]
    level = [name for name in ranked if rows[ranked[0]]["value"] - rows[name]["value"] <= ROUNDING]
    best = next((name for name in level if name == baseline), level[0])
    found = _share_cell(rows[best])
    what = f"a mean {'score' if report['held_out'] else 'reward'} of {found}"
    if report["number"] == "success":
        what = f"success on {found} of the prompts"
    who = f"{' and '.join(level)} {'come' if len(level) > 1 else 'comes'} out highest"
    if len(level) == len(ranked) > 2:
        who = f"All {len(level)} come out alike"
    said = [f"{who} at {report['budget']} calls, as {judge} judges: {what}."]
    if alike := _not_told_apart(report, best):
        said.append(f"It cannot be told apart from {' or '.join(alike)}.")
    said += [f"{note[0].upper()}{note[1:]}." for note in report["notes"] if not note.startswith("*")]
    if baseline is None or len(rows) < 2:
        return said
    rival = best if best != baseline else next((name for name in ranked if name != baseline), None)
    pair = pair_of(report, rival, critic=judge if report["held_out"] else None) if rival else None
    if rival is None or pair is None:
        return said
    said.append(f"{pair['verdict']}.")
    reached, row, base = rows[rival]["to_reach_baseline"], rows[rival], rows[baseline]
    said.append(
        f"A search of {rival} takes {row['calls']:.1f} calls, {row['decoded_tokens']:.0f} decoded tokens and "
        f"{row['seconds']:.2f} s on average, one of {baseline} {base['calls']:.1f}, {base['decoded_tokens']:.0f} and "
        f"{base['seconds']:.2f} s."
    )
    if reached is not None:
        star = "*" if row["looks_at_budget"] and 1 < reached["budget"] < report["calls"][-1] else ""
        said.append(
            f"As {report['critic']} judges, {rival} is as good as {baseline} with a budget of "
            f"{reached['budget']}{star}, "
            f"for {_share_of_its(reached, row)} and {reached['share_of_seconds']:.0%} of its "
            "seconds."
        )
    return said


def _not_told_apart(report: Mapping[str, Any], best: str) -> list[str]:
    """The methods but the baseline (of which the answer speaks anyway) that no verdict tells from the best one, each
    with the difference and its interval."""
    found = []
    judge = report["judge"] if report["held_out"] else None
    for pair in report["pairs"]:
        whole = pair["axis"] == "calls" and pair["at"] == report["budget"] and "category" not in pair
        if not whole or pair.get("critic") != judge or best not in (pair["a"], pair["b"]) or pair["difference"] is None:
            continue
        other, sign = (pair["b"], 1) if pair["a"] == best else (pair["a"], -1)
        if other != report["baseline"] and pair["difference"] and "cannot be told apart" in pair["verdict"]:
            low, high = sorted(100 * sign * end for end in (pair["low"], pair["high"]))
            found.append(f"{other} ({100 * sign * pair['difference']:+.1f} points [{low:+.1f}, {high:+.1f}])")
    return found


def not_a_budget(searches: Mapping[str, Mapping[str, Any]], budget: int) -> list[str]:
    """For which methods @k is not what a user with a budget of k gets, and why, by reason."""
    reasons: dict[str, list[str]] = {}
    cost = "work" if any(row.get("evaluations") for row in searches.values()) else "tokens"
    for name, row in searches.items():
        if row["looks_at_budget"]:
            reasons.setdefault(row["looks_at_budget"], []).append(name)
    return [
        f"*: not what a user of {', '.join(names)} with a budget of k gets, since {why}; it is the best of the first k "
        f"drafts of a search with a budget of {budget} (so is what stands at equal {cost} and seconds)"
        for why, names in reasons.items()
    ]


def _seconds_line(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """What the seconds are made of; '' for a report of before that was measured."""
    found = {name: row.get("seconds_a_draft", {}) for name, row in rows.items()}
    known = {name: of for name, of in found.items() if of.get("judging") is not None}
    if not known:
        return ""
    said = ", ".join(
        f"{name} {of['drawing']:.3f} + {of['judging']:.3f} + {of['searching']:.3f}" for name, of in known.items()
    )
    others = [name for name in found if name not in known]
    return f" Seconds a draft of drawing + judging + searching: {said}." + (
        f" Of {', '.join(others)} only drawing is on record, and counted." if others else ""
    )


def _passes_line(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """How often the model was run; '' for a report of before that was counted."""
    known = {name: row for name, row in rows.items() if row.get("passes") is not None}
    said = ", ".join(
        f"{name} {row['passes']:.0f} ({row['decoded_tokens'] / row['passes']:.1f})" for name, row in known.items()
    )
    return f" Passes of the model a search, prompts included (tokens chosen a pass): {said}." if known else ""


def _work_line(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """What drawing took in operations, of models that draw by evaluations of a network; '' for others."""
    known = {name: row for name, row in rows.items() if row.get("evaluations") and row.get("work")}
    said = ", ".join(f"{name} {row['work'] / 1e9:,.1f} ({row['evaluations']:.1f})" for name, row in known.items())
    return f" GFLOP a search (evaluations of the drawing network): {said}." if known else ""


def several_at_once(searches: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Which methods draw several drafts at a time, and how their numbers at fewer calls are to be read."""
    found = [f"{name} draws {row['width']} drafts at a time" for name, row in searches.items() if row["width"] > 1]
    return [
        f"{', '.join(found)} after the first one, without the rewards of one another; @k is the best of its first k "
        "drafts, also where k ends within a round: that is what a budget of k draws, the last round being cut to it"
    ] if found else []  # fmt: skip


def _cost_line(name: str, row: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """What is left to gain at the full budget, and what it takes to be as good as the baseline."""
    pair = pair_of(report, name)
    if pair is None:
        return ""
    if report["number"] == "mean":
        mine, theirs = (_share(report["searches"][of]["optimised"]["value"]) for of in (name, report["baseline"]))
        line, what = f"- {name} has a mean reward of {mine}, the baseline {theirs}", "which"
    else:
        mine, theirs = (str(round(failures * report["seeds"])) for failures in pair["failures"])
        line = f"- {name} leaves {mine} failures of {report['prompts'] * report['seeds']}, the baseline {theirs}"
        what = "whose success"
    reached = row["to_reach_baseline"]
    if reached is None:
        return f"{line}, {what} it does not reach."
    star = "*" if row["looks_at_budget"] and 1 < reached["budget"] < report["calls"][-1] else ""
    return (
        f"{line}, {what} it reaches with a budget of {reached['budget']}{star}: "
        f"{_share_of_its(reached, row)}, {reached['share_of_seconds']:.0%} of its seconds "
        f"({reached['beyond_first']:.0%} of the calls after the first)."
    )


def _share_of_its(reached: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """The share of the baseline's tokens, or of its work where a model draws with other means."""
    if row.get("evaluations") and "share_of_work" in reached:
        return f"{reached['share_of_work']:.0%} of its work"
    return f"{reached['share_of_decoded_tokens']:.0%} of its tokens"


def _category_table(report: Mapping[str, Any]) -> list[str]:
    rows = report["searches"]
    categories = list(next(iter(rows.values()))["by_category"])
    if len(categories) < 2:
        return []
    scored = any("benchmark_score" in row for row in rows.values())
    pairs = [pair_of(report, name, category=category) for name in rows for category in categories]
    looked = next((pair["comparisons"] for pair in pairs if pair), 0)
    what = "Mean score" if report["number"] == "mean" else "Success"
    lines = [
        f"{what} at {report['budget']} calls by category, as {report['judge']} judges"
        + (
            "; in brackets prompts won and lost against the baseline, bold where that is a difference after Holm's "
            f"correction over these {looked} comparisons."
            if looked
            else "."
        )
        + (
            f" Benchmark's score: the formula of {report.get('benchmark', 'the benchmark')} over these "
            f"{report['prompts']} prompts."
            if scored
            else ""
        ),
        "",
        "| method | " + " | ".join(categories) + (" | benchmark's score |" if scored else " |"),
        "|---|" + "---|" * (len(categories) + scored),
    ]
    for name, row in rows.items():
        cells = []
        for category in categories:
            pair = pair_of(report, name, category=category)
            counts = f"({pair['won']}/{pair['lost']})" if pair else ""
            counts = f" **{counts}**" if pair and pair["p_holm"] < LEVEL else f" {counts}"
            cells.append((_share(row["by_category"][category]["value"]) + counts).strip())
        if scored:
            cells.append(_share(row.get("benchmark_score")))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _held_out_table(report: Mapping[str, Any], critic: str) -> list[str]:
    is_mean, rows = report["number"] == "mean", report["searches"].values()
    scored = not is_mean and all("score" in row["held_out"].get(critic, {"score"}) for row in rows)
    lines = [
        f"Judged by the held-out critic {critic}: {'mean score' if is_mean else 'success (a score of 1)'} of the "
        "returned draft"
        + (", its mean score" if scored else "")
        + ", and the hacking gap (mean reward minus mean held-out score).",
        "",
        f"| method | held-out {'mean' if is_mean else 'success'} | against baseline | "
        + ("mean score | " if scored else "")
        + "gap | gap against baseline |",
        "|---|---|---|---|---|" + ("---|" if scored else ""),
    ]
    for name, row in report["searches"].items():
        if critic in row["held_out"]:
            found, pair = row["held_out"][critic], pair_of(report, name, critic=critic)
            cells = [name, _share_cell(found), _paired_cell(pair)]
            cells += [_share(found["score"])] if scored else []
            cells.append(_signed(found["gap"], found["gap_low"], found["gap_high"]))
            cells.append(_signed(pair["gap_difference"], pair["gap_low"], pair["gap_high"]) if pair else "")
            lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def _signed(value: float | None, low: float, high: float) -> str:
    return "none" if value is None else f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def _share_cell(found: Mapping[str, Any]) -> str:
    if found["value"] is None:
        return "none"
    return f"{_share(found['value'])} [{_share(found['low'])}, {_share(found['high'])}]"


def _share(value: float | None) -> str:
    if value is None:
        return "none"
    return f"{value:.3f}".removeprefix("0") if value < 0.9995 else "1.00"


def _plain(value: float) -> str:
    return f"{value:g}".removeprefix("0") if 0 < value < 1 else f"{value:g}"


def _p(value: float) -> str:
    return "< .001" if value < 0.001 else f"= {value:.3f}".replace("0.", ".", 1)


def _paired_cell(pair: Mapping[str, Any] | None) -> str:
    if pair is None:
        return "(baseline)"
    if pair["difference"] is None:
        return "none"
    return (
        f"{100 * pair['difference']:+.1f} [{100 * pair['low']:+.1f}, {100 * pair['high']:+.1f}], "
        f"{pair['won']} won / {pair['lost']} lost, p {_p(pair['p'])}"
    )


# --- Curves ---------------------------------------------------------------------------------------------------

INKS = ("#0550ae", "#cf222e", "#1a7f37", "#8250df", "#bf8700", "#57606a", "#0a7ea4", "#d4459b")
PANEL, HEIGHT, MARGIN = 380, 320, 48


def curves(report: Mapping[str, Any]) -> str:
    """The number against calls, decoded tokens and seconds (means for each budget from 1 on), as an SVG picture."""
    report = upgraded(report)
    rows = report["searches"]
    points = {
        name: [point for point in row["by_calls"].values() if point["value"] is not None] for name, row in rows.items()
    }
    values = [point["value"] for of in points.values() for point in of] or [0.0]
    low = max(0.0, math.floor(10 * min(values) - 0.01) / 10)
    top = max(low + 0.1, min(1.0, math.ceil(10 * max(values) + 0.01) / 10))
    number = "mean reward" if report["number"] == "mean" else "success"
    columns = max(1, min(3, 3 * PANEL // (40 + 7 * max(map(len, rows)))))  # names of the legend side by side
    width, legend = 3 * PANEL, 18 * math.ceil(len(rows) / columns)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT + legend + 8}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{HEIGHT + legend + 8}" fill="white"/>',
    ]
    second = ("decoded_tokens", "decoded tokens")
    if all(row.get("evaluations") and row.get("work") for row in rows.values()):
        second = ("work", "floating point operations")
    panels = (("calls", "reward calls"), second, ("seconds", "seconds"))
    for panel, (key, words) in enumerate(panels):
        most = max((point[key] for of in points.values() for point in of), default=0.0) or 1.0
        left, right, upper, bottom = panel * PANEL + MARGIN, (panel + 1) * PANEL - 12, 24, HEIGHT - MARGIN
        for tick in range(round(low * 10), round(top * 10) + 1):
            y = bottom - (bottom - upper) * (tick / 10 - low) / (top - low)
            parts.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#d0d7de"/>')
            parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick / 10:.1f}</text>')
        for share in (0, 0.5, 1):
            x, anchor = left + (right - left) * share, ("start", "middle", "end")[round(2 * share)]
            parts.append(f'<text x="{x:.0f}" y="{bottom + 16}" text-anchor="{anchor}">{most * share:.3g}</text>')
        if panel == 0:
            judge = _escaped(str(report["critic"]))
            parts.append(f'<text x="{left - 30}" y="12">{number}, as {judge} judges</text>')
        middle = (left + right) / 2
        parts.append(f'<text x="{middle:.0f}" y="{bottom + 34}" text-anchor="middle">{words}, mean a search</text>')
        for index, of in enumerate(points.values()):
            line = " ".join(
                f"{left + (right - left) * point[key] / most:.1f},"
                f"{bottom - (bottom - upper) * (point['value'] - low) / (top - low):.1f}"
                for point in of
            )
            ink = INKS[index % len(INKS)]
            dash = ' stroke-dasharray="5 3"' if index >= len(INKS) else ""
            parts.append(f'<polyline points="{line}" fill="none" stroke="{ink}" stroke-width="1.8"{dash}/>')
    for index, label in enumerate(rows):
        x, y = MARGIN + index % columns * (width // columns), HEIGHT + 18 * (index // columns) + 4
        name = _escaped(label)
        parts.append(f'<rect x="{x}" y="{y - 9}" width="14" height="4" fill="{INKS[index % len(INKS)]}"/>')
        parts.append(f'<text x="{x + 20}" y="{y - 2}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
