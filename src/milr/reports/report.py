"""What a run says: success with intervals at every number of calls, paired differences, costs, tables, curves.

Success after k calls is what a user would hold then: does the returned draft's reward reach the threshold? With
held-out critics, what *they* say of the returned draft (a score of 1) stands beside it. Several seeds of a prompt are
not independent, so every interval is over prompts: a prompt counts with its mean over seeds.

The report is one JSON object: `searches` by name, and `pairs` of every two of them at equal calls, equal decoded tokens
and equal seconds. Tables (`to_markdown`) and pictures (`curves`) are made from it alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate, combinations
from typing import Any

from milr.drafts import Task
from milr.runs.journal import Outcome
from milr.runs.methods import BASELINE, Method
from milr.statistics import clustered_share, holm, paired_means, prompts_needed, sign_test

FORMAT = "milr-report/1"
CALLS = (1, 4, 8, 16, 20)
MAX_ABSTAIN = 0.05  # share of drafts without a score from which on a report cannot be trusted

Groups = Sequence[Sequence[Outcome]]  # of each prompt the outcomes of its seeds


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
        about: says at least `budget`; goes into the report as it is.
        baseline: the method that tables compare the others with; pairs of it come for every number of calls.
        overall: the benchmark's own score out of the means of its categories.
        max_abstain: share of drafts without a score above which the report says that it cannot be trusted.
    """
    budget, seeds = int(about["budget"]), int(about.get("seeds", 1))
    calls = sorted({count for count in CALLS if count < budget} | {budget})
    found = {outcome.key: outcome for outcome in outcomes}
    table = {
        method.name: [[found[method.name, task.id, index] for index in range(seeds)] for task in tasks]
        for method in methods
    }
    maker = _Maker(budget, float(about.get("threshold", 1.0)), tuple(about.get("held_out") or ()))
    searches = {method.name: maker.search(method, table[method.name], overall) for method in methods}
    names = [method.name for method in methods]
    for name in names:
        if baseline in names and name != baseline:
            searches[name]["to_reach_baseline"] = _to_reach(searches[name], searches[baseline])
    abstained = {name: row["abstained"] for name, row in searches.items() if row["abstained"] > max_abstain}
    return {
        "format": FORMAT,
        **about,
        "prompts": len(tasks),
        "seeds": seeds,
        "baseline": baseline if baseline in names else None,
        "calls": calls,
        "warnings": [
            f"{name}: {share:.0%} of the drafts have no score (more than {max_abstain:.0%}): do not trust its numbers"
            for name, share in abstained.items()
        ],
        "searches": searches,
        "pairs": maker.pairs(methods, table, baseline, calls),
    }


class _Maker:
    """Makes the parts of a report; holds what all of them need."""

    def __init__(self, budget: int, threshold: float, held_out: tuple[str, ...]) -> None:
        self.budget, self.threshold, self.held_out = budget, threshold, held_out

    # One search

    def search(
        self, method: Method, groups: Groups, overall: Callable[[Mapping[str, float]], float] | None
    ) -> dict[str, Any]:
        flat = [outcome for group in groups for outcome in group]
        seeds = len(groups[0])
        solving = Counter(o.moves[-1] for o in flat if len(o.moves) > 1 and o.rewards[-1] == 1)
        moves: Counter[str] = Counter(move for outcome in flat for move in outcome.moves[1:])
        by_category = {
            category: {
                **self._headline(method, chosen, seeds),
                "n": len(chosen) * seeds,
            }
            for category, chosen in _by_category(groups).items()
        }
        drafts = sum(len(o.rewards) for o in flat)
        row: dict[str, Any] = {
            "spec": method.spec,
            "search": method.search,
            "preset": method.preset,
            "settings": dict(method.settings),
            "n": len(flat),
            **self._headline(method, groups, seeds),
            "optimised": {
                **_share_of(self._solved(method, groups, self.budget), seeds),
                "reward": _mean(o.rewards[o.returned] or 0.0 for o in flat),
            },
            "held_out": {
                critic: judged for critic in self.held_out if (judged := _judged(groups, critic, seeds)) is not None
            },
            "calls": _mean(len(o.rewards) for o in flat),
            "decoded_tokens": _mean(sum(o.tokens) for o in flat),
            # Read in one pass, not chosen: a search that repairs a picture reads all of it. None: an older journal.
            "prefilled_tokens": _mean(sum(o.prefilled) for o in flat) if all(o.prefilled for o in flat) else None,
            "seconds": _mean(sum(o.seconds) for o in flat),
            "by_category": by_category,
            "by_calls": {str(k): self._after(method, groups, k) for k in range(1, self.budget + 1)},
            "drafts": drafts,
            "abstained": sum(reward is None for o in flat for reward in o.rewards) / drafts,
            "moves": {move: {"drafts": count, "solved": solving[move]} for move, count in moves.items() if move},
        }
        if overall is not None:
            row["benchmark_score"] = overall({category: of["success"] for category, of in by_category.items()})
        return row

    def _headline(self, method: Method, groups: Groups, seeds: int) -> dict[str, Any]:
        """Success at the full budget, as the first held-out critic sees it, or without one the critic climbed."""
        if self.held_out and (judged := _judged(groups, self.held_out[0], seeds)) is not None:
            return {key: judged[key] for key in ("success", "low", "high")}
        return _share_of(self._solved(method, groups, self.budget), seeds)

    def _after(self, method: Method, groups: Groups, calls: int) -> dict[str, Any]:
        """What a user spends on average who sets the budget to `calls`, and what it brings."""
        flat = [outcome for group in groups for outcome in group]
        return {
            **_share_of(self._solved(method, groups, calls), len(groups[0])),
            "reward": _mean(max((r for r in o.rewards[:calls] if r is not None), default=0.0) for o in flat),
            "calls": _mean(len(o.rewards[:calls]) for o in flat),
            "decoded_tokens": _mean(sum(o.tokens[:calls]) for o in flat),
            "seconds": _mean(sum(o.seconds[:calls]) for o in flat),
        }

    def _solved(self, method: Method, groups: Groups, calls: int) -> list[float]:
        """Of each prompt the share of its seeds that hold a solved draft after so many calls."""
        return [_mean(self.is_solved(method, one, calls) for one in group) for group in groups]

    def _solved_within(self, method: Method, groups: Groups, axis: str, cap: float) -> list[float]:
        """The same after so many decoded tokens or seconds, and at most the full budget of calls."""
        return [_mean(self.is_solved(method, one, _calls_within(one, axis, cap)) for one in group) for group in groups]

    def is_solved(self, method: Method, outcome: Outcome, calls: int) -> bool:
        """Whether the draft that the user holds after so many calls reaches the threshold. At least one call."""
        seen = outcome.rewards[: max(1, calls)]
        seen = seen[-1:] if method.returns_last else seen
        return any(reward is not None and reward >= self.threshold for reward in seen)

    # Two searches

    def pairs(
        self, methods: Sequence[Method], table: Mapping[str, Groups], baseline: str, calls: Sequence[int]
    ) -> list[dict[str, Any]]:
        """Every two searches: at the full budget of calls, at equal tokens, at equal seconds; with the baseline also at
        fewer calls, and by category (as the first held-out critic sees it, if there is one); each held-out critic at
        the full budget. b is the baseline, or the earlier one.

        Holm's correction is over the pairs of one axis and critic at the full budget.
        """
        found: list[dict[str, Any]] = []
        for first, second in combinations(methods, 2):
            b, a = (second, first) if second.name == baseline else (first, second)
            mine, theirs = table[a.name], table[b.name]
            about = {"a": a.name, "b": b.name, "axis": "calls", "at": self.budget}
            for count in calls if b.name == baseline else (self.budget,):
                pair = _paired(self._solved(a, mine, count), self._solved(b, theirs, count))
                found.append({**about, "at": count, **pair})
            for axis in ("tokens", "seconds"):
                cap = min(self._exhausted(mine, axis), self._exhausted(theirs, axis))
                pair = _paired(self._solved_within(a, mine, axis, cap), self._solved_within(b, theirs, axis, cap))
                found.append({**about, "axis": axis, "at": round(cap, 4), **pair})
            if b.name == baseline:
                of_mine, of_theirs = _by_category(mine), _by_category(theirs)
                for category in of_mine:
                    chosen, others = of_mine[category], of_theirs[category]
                    by_category = _held_out_pair(chosen, others, self.held_out[0]) if self.held_out else None
                    if by_category is None:
                        by_category = _paired(
                            self._solved(a, chosen, self.budget), self._solved(b, others, self.budget)
                        )
                    found.append({**about, "category": category, **by_category})
            for critic in self.held_out:
                judged = _held_out_pair(mine, theirs, critic)
                if judged is not None:
                    found.append({**about, "critic": critic, **judged})
        kinds: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for pair in found:
            if "category" not in pair and (pair["axis"] != "calls" or pair["at"] == self.budget):
                kinds.setdefault((pair["axis"], pair.get("critic")), []).append(pair)
        for of_kind in kinds.values():
            for pair, p in zip(of_kind, holm([pair["p_mcnemar"] for pair in of_kind]), strict=True):
                pair["p_holm"] = p
        for pair in found:
            pair["verdict"] = _verdict(pair)
        return found

    def _exhausted(self, groups: Groups, axis: str) -> float:
        """What a search that uses up its budget spends on average (all searches, where none does)."""
        flat = [outcome for group in groups for outcome in group]
        chosen = [one for one in flat if len(one.rewards) >= self.budget] or flat
        return _mean(sum(getattr(one, axis)) for one in chosen)


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


def _share_of(solved: Sequence[float], seeds: int) -> dict[str, Any]:
    share, low, high = clustered_share(solved, seeds)
    return {"success": share, "low": low, "high": high}


def _calls_within(outcome: Outcome, axis: str, cap: float) -> int:
    """How many drafts a search gets for so many tokens or seconds; the first is always drawn."""
    spent: Sequence[float] = getattr(outcome, axis)
    return max(1, sum(total <= cap * (1 + 1e-9) for total in accumulate(spent)))


def _judged(groups: Groups, critic: str, seeds: int) -> dict[str, Any] | None:
    """What a held-out critic says of the returned drafts: success, mean score, and the hacking gap (mean reward minus
    mean score). None where it abstained on all."""
    judged = [found for group in groups if (found := _of_prompt(group, critic)) is not None]
    if not judged:
        return None
    gap, low, high = paired_means([gap for _, gap, _ in judged])
    shares = [right for right, _, _ in judged]
    score = _mean(score for _, _, score in judged)
    return {
        **_share_of(shares, seeds), "prompts": len(judged), "score": score, "gap": gap, "gap_low": low, "gap_high":
        high,
    }  # fmt: skip


def _of_prompt(group: Sequence[Outcome], critic: str) -> tuple[float, float, float] | None:
    """Over the seeds of a prompt: the share that the held-out critic calls right, the mean gap, its mean score."""
    judged = [(o.held_out[critic], o.rewards[o.returned] or 0.0) for o in group if o.held_out.get(critic) is not None]
    scores = [(score, reward) for score, reward in judged if score is not None]
    if not scores:
        return None
    return (
        _mean(score == 1 for score, _ in scores),
        _mean(reward - score for score, reward in scores),
        _mean(score for score, _ in scores),
    )


def _held_out_pair(mine: Groups, theirs: Groups, critic: str) -> dict[str, Any] | None:
    """Held-out success and hacking gap against the other's, over the prompts where both were judged."""
    pairs = [(_of_prompt(a, critic), _of_prompt(b, critic)) for a, b in zip(mine, theirs, strict=True)]
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    if not both:
        return None
    gap, low, high = paired_means([a[1] - b[1] for a, b in both])
    success = _paired([a[0] for a, _ in both], [b[0] for _, b in both])
    return {**success, "gap_difference": gap, "gap_low": low, "gap_high": high}


def _paired(mine: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """The mean difference over prompts with its interval; prompts won and lost, with McNemar's exact test."""
    differences = [a - b for a, b in zip(mine, theirs, strict=True)]
    won, lost = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    difference, low, high = paired_means(differences)
    return {
        "difference": difference,
        "low": low,
        "high": high,
        "won": won,
        "lost": lost,
        "p_mcnemar": sign_test(won, lost),
        "failures": [len(mine) - sum(mine), len(theirs) - sum(theirs)],
        "prompts_needed": prompts_needed(differences),
    }


def _verdict(pair: Mapping[str, Any]) -> str:
    a, b, difference = pair["a"], pair["b"], pair["difference"]
    inside = f"[{100 * pair['low']:.1f}, {100 * pair['high']:.1f}]"
    if pair["low"] > 0 and pair.get("p_holm", pair["p_mcnemar"]) < 0.05:
        return f"{a} beats {b} by {100 * difference:.1f} points {inside}"
    if pair["high"] < 0 and pair.get("p_holm", pair["p_mcnemar"]) < 0.05:
        return f"{b} beats {a} by {-100 * difference:.1f} points [{-100 * pair['high']:.1f}, {-100 * pair['low']:.1f}]"
    needed = pair["prompts_needed"]
    more = f"; about {needed:,} prompts would show a difference of this size" if needed else ""
    return f"{a} and {b} cannot be told apart ({100 * difference:+.1f} {inside}){more}"


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)


def _to_reach(row: Mapping[str, Any], baseline: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the method spends until it is as good as the baseline at its full budget; None if it never is.

    `beyond_first`: the same shares of what is spent after the first draft, which both draw alike.
    """
    goal = list(baseline["by_calls"].values())[-1]
    for calls, point in row["by_calls"].items():
        if point["success"] >= goal["success"]:
            return {
                "budget": int(calls),
                **{
                    f"share_of_{axis}": point[axis] / max(1e-12, goal[axis])
                    for axis in ("calls", "decoded_tokens", "seconds")
                },
                "beyond_first": (point["calls"] - 1) / max(1e-12, goal["calls"] - 1),
            }
    return None


# --- Tables ---------------------------------------------------------------------------------------------------


def to_markdown(report: Mapping[str, Any]) -> str:
    """The report as tables, as they go into the README and docs/results.md."""
    calls, seeds, rows = report["calls"], report["seeds"], report["searches"]
    searches = f"{report['prompts']} prompts" + (f" x {seeds} seeds" if seeds > 1 else "")
    paired = f"; difference in points against {report['baseline']}, paired by prompt" if report["baseline"] else ""
    lines = [f"**{warning}.**" for warning in report["warnings"]]
    lines += [
        f"{searches}, {report['budget']} reward calls, model {report['model']}, critic {report['critic']}, "
        f"seed {report['seed']}. Success with 95 % intervals over prompts{paired}, with McNemar's exact test.",
        "",
        "| method | " + " | ".join(f"@{count}" for count in calls) + " | against baseline | calls | tokens | s |",
        "|---|" + "---|" * (len(calls) + 4),
    ]
    for name, row in rows.items():
        cells = [name, *(_share_cell(row["by_calls"][str(count)]) for count in calls)]
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
        + (f" The critic abstained {abstained} times." if abstained else ""),
        "",
    ]
    lines += _category_table(report)
    for critic in report.get("held_out") or ():
        lines += _held_out_table(report, critic)
    lines += [line for name, row in rows.items() if (line := _cost_line(name, row, report))]
    return "\n".join([*lines, ""])


def _cost_line(name: str, row: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """Failures left at the full budget, and what it takes to be as good as the baseline."""
    pair = pair_of(report, name)
    if pair is None:
        return ""
    mine, theirs = (round(failures * report["seeds"]) for failures in pair["failures"])
    line = f"- {name} leaves {mine} failures of {report['prompts'] * report['seeds']}, the baseline {theirs}"
    reached = row["to_reach_baseline"]
    if reached is None:
        return f"{line}, whose success it does not reach."
    return (
        f"{line}, whose success it reaches with a budget of {reached['budget']}: "
        f"{reached['share_of_decoded_tokens']:.0%} of its tokens, {reached['share_of_seconds']:.0%} of its seconds "
        f"({reached['beyond_first']:.0%} of the calls after the first)."
    )


def _category_table(report: Mapping[str, Any]) -> list[str]:
    rows = report["searches"]
    categories = list(next(iter(rows.values()))["by_category"])
    if len(categories) < 2:
        return []
    judge = (report.get("held_out") or [report["critic"]])[0]
    scored = any("benchmark_score" in row for row in rows.values())
    lines = [
        f"Success at {report['budget']} calls by category, as {judge} judges; in brackets prompts won and lost against "
        "the baseline.",
        "",
        "| method | " + " | ".join(categories) + (" | benchmark's score |" if scored else " |"),
        "|---|" + "---|" * (len(categories) + scored),
    ]
    for name, row in rows.items():
        cells = []
        for category in categories:
            pair = pair_of(report, name, category=category)
            cells.append(
                _share(row["by_category"][category]["success"]) + (f" ({pair['won']}/{pair['lost']})" if pair else "")
            )
        if scored:
            cells.append(_share(row["benchmark_score"]))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _held_out_table(report: Mapping[str, Any], critic: str) -> list[str]:
    lines = [
        f"Judged by the held-out critic {critic}: success of the returned draft, and the hacking gap "
        "(mean reward minus mean held-out score).",
        "",
        "| method | held-out success | against baseline | gap | gap against baseline |",
        "|---|---|---|---|---|",
    ]
    for name, row in report["searches"].items():
        if critic in row["held_out"]:
            found, pair = row["held_out"][critic], pair_of(report, name, critic=critic)
            gap = _signed(found["gap"], found["gap_low"], found["gap_high"])
            more = _signed(pair["gap_difference"], pair["gap_low"], pair["gap_high"]) if pair else ""
            lines.append(f"| {name} | {_share_cell(found)} | {_paired_cell(pair)} | {gap} | {more} |")
    return [*lines, ""]


def _signed(value: float, low: float, high: float) -> str:
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def _share_cell(found: Mapping[str, Any]) -> str:
    return f"{_share(found['success'])} [{_share(found['low'])}, {_share(found['high'])}]"


def _share(value: float) -> str:
    return f"{value:.3f}".removeprefix("0") if value < 0.9995 else "1.00"


def _paired_cell(pair: Mapping[str, Any] | None) -> str:
    if pair is None:
        return "(baseline)"
    p = pair["p_mcnemar"]
    return (
        f"{100 * pair['difference']:+.1f} [{100 * pair['low']:+.1f}, {100 * pair['high']:+.1f}], "
        f"{pair['won']} won / {pair['lost']} lost, p {'< .001' if p < 0.001 else f'= {p:.3f}'.replace('0.', '.', 1)}"
    )


# --- Curves ---------------------------------------------------------------------------------------------------

INKS = ("#0550ae", "#cf222e", "#1a7f37", "#8250df", "#bf8700", "#57606a", "#0a7ea4", "#d4459b")
PANEL, HEIGHT, MARGIN = 380, 320, 48


def curves(report: Mapping[str, Any]) -> str:
    """Success against calls, decoded tokens and seconds (means for each budget from 1 on), as an SVG picture."""
    rows = report["searches"]
    points = {name: list(row["by_calls"].values()) for name, row in rows.items()}
    shares = [point["success"] for of in points.values() for point in of]
    low = max(0.0, math.floor(10 * min(shares) - 0.01) / 10)
    width, legend = 3 * PANEL, 18 * math.ceil(len(rows) / 3)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT + legend + 8}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{HEIGHT + legend + 8}" fill="white"/>',
    ]
    panels = (("calls", "reward calls"), ("decoded_tokens", "decoded tokens"), ("seconds", "seconds"))
    for panel, (key, words) in enumerate(panels):
        most = max(point[key] for of in points.values() for point in of) or 1.0
        left, right, top, bottom = panel * PANEL + MARGIN, (panel + 1) * PANEL - 12, 16, HEIGHT - MARGIN
        for tick in range(round(low * 10), 11):
            y = bottom - (bottom - top) * (tick / 10 - low) / (1 - low)
            parts.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#d0d7de"/>')
            parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick / 10:.1f}</text>')
        for share in (0, 0.5, 1):
            x, anchor = left + (right - left) * share, ("start", "middle", "end")[round(2 * share)]
            parts.append(f'<text x="{x:.0f}" y="{bottom + 16}" text-anchor="{anchor}">{most * share:.3g}</text>')
        middle = (left + right) / 2
        parts.append(f'<text x="{middle:.0f}" y="{bottom + 34}" text-anchor="middle">{words}, mean a search</text>')
        for index, of in enumerate(points.values()):
            line = " ".join(
                f"{left + (right - left) * point[key] / most:.1f},"
                f"{bottom - (bottom - top) * (point['success'] - low) / (1 - low):.1f}"
                for point in of
            )
            ink = INKS[index % len(INKS)]
            dash = ' stroke-dasharray="5 3"' if index >= len(INKS) else ""
            parts.append(f'<polyline points="{line}" fill="none" stroke="{ink}" stroke-width="1.8"{dash}/>')
    for index, label in enumerate(rows):
        x, y = MARGIN + index % 3 * PANEL, HEIGHT + 18 * (index // 3) + 4
        name = label.replace("&", "&amp;").replace("<", "&lt;")
        parts.append(f'<rect x="{x}" y="{y - 9}" width="14" height="4" fill="{INKS[index % len(INKS)]}"/>')
        parts.append(f'<text x="{x + 20}" y="{y - 2}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])
