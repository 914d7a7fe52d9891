"""What a run says: success with intervals at every number of calls, paired differences, costs, curves.

Success at k calls is what a user would hold after k calls: did the returned draft have reward 1? Several seeds of a
prompt are not independent, so every interval is over prompts: a prompt counts with its mean over seeds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from milr.drafts import Task
from milr.statistics import clustered_share, paired_means, sign_test

BASELINE = "best-of-n sampled text"
CALLS = (1, 4, 8, 16, 20)


@dataclass(frozen=True)
class Method:
    """A search with a preset; `settings` win over it. `returns_last`: the user gets the last draft, not the best."""

    name: str
    search: str
    preset: str | None = None
    settings: tuple[tuple[str, str], ...] = ()
    returns_last: bool = False

    @property
    def spec(self) -> str:
        """SEARCH:PRESET,SETTING=VALUE,..."""
        preset = f":{self.preset}" if self.preset else ""
        return f"{self.search}{preset}" + "".join(f",{name}={value}" for name, value in self.settings)


@dataclass(frozen=True)
class Outcome:
    """One search, as the journal keeps it: of each draft its reward, decoded tokens, seconds and the search's move."""

    method: str
    spec: str
    task: str
    seed_index: int
    category: str
    rewards: tuple[float | None, ...]
    tokens: tuple[int, ...]
    seconds: tuple[float, ...]
    moves: tuple[str, ...]
    returned: int
    held_out: float | None
    stopped: str

    def success_at(self, calls: int, returns_last: bool = False) -> bool:
        """Whether the draft that the user holds after this many calls is right in every check."""
        seen = self.rewards[:calls]
        return seen[-1] == 1 if returns_last else any(reward == 1 for reward in seen)


def make_report(
    outcomes: Sequence[Outcome],
    methods: Sequence[Method],
    tasks: Sequence[Task],
    about: Mapping[str, Any],
    baseline: str = BASELINE,
) -> dict[str, Any]:
    """Numbers for every method, paired with the baseline prompt by prompt. Searches that a method lacks are an error.

    `about` says at least the budget; it goes into the report as it is.
    """
    budget, seeds = int(about["budget"]), int(about.get("seeds", 1))
    calls = sorted({count for count in CALLS if count < budget} | {budget})
    found = {(outcome.method, outcome.task, outcome.seed_index): outcome for outcome in outcomes}
    table = {
        method.name: [[found[method.name, task.id, index] for index in range(seeds)] for task in tasks]
        for method in methods
    }
    against = next((method for method in methods if method.name == baseline), None)
    rows = {method.name: _row(method, table[method.name], calls, budget) for method in methods}
    for method in methods:
        mine, row = table[method.name], rows[method.name]
        if against is not None and method is not against:
            theirs = table[baseline]
            row["against_baseline"] = {
                str(limit): _paired(_solved(method, mine, limit), _solved(against, theirs, limit)) for limit in calls
            }
            row["categories_against_baseline"] = {
                category: _paired(
                    _solved(method, [mine[index] for index in chosen], budget),
                    _solved(against, [theirs[index] for index in chosen], budget),
                )
                for category, chosen in _by_category(mine).items()
            }
            row["to_reach_baseline"] = _to_reach(row, rows[baseline])
            if (held_out := _held_out_pair(mine, theirs)) is not None:
                row["held_out"]["against_baseline"] = held_out
    return {
        **about, "prompts": len(tasks), "seeds": seeds, "baseline": baseline if against is not None else None,
        "calls": calls, "methods": list(rows.values()),
    }  # fmt: skip


def _solved(method: Method, outcomes: Sequence[Sequence[Outcome]], limit: int) -> list[float]:
    """Of each prompt the share of its seeds that are solved within so many calls."""
    return [sum(one.success_at(limit, method.returns_last) for one in group) / len(group) for group in outcomes]


def _by_category(outcomes: Sequence[Sequence[Outcome]]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for index, group in enumerate(outcomes):
        found.setdefault(group[0].category or "all", []).append(index)
    return found


def _share_of(solved: Sequence[float], seeds: int) -> dict[str, Any]:
    share, low, high = clustered_share(solved, seeds)
    return {"successes": round(sum(solved) * seeds), "share": share, "interval": [low, high]}


def _row(method: Method, outcomes: Sequence[Sequence[Outcome]], calls: Sequence[int], budget: int) -> dict[str, Any]:
    flat = [outcome for group in outcomes for outcome in group]
    seeds = len(outcomes[0])
    moves: Counter[str] = Counter(move for outcome in flat for move in outcome.moves[1:])
    solving = Counter(o.moves[-1] for o in flat if len(o.moves) > 1 and o.rewards[-1] == 1)
    # What a user spends on average who sets the budget to k, and what it brings: k = 1 ... budget.
    curve = [
        {
            "calls": limit,
            "success": _mean(_solved(method, outcomes, limit)),
            "mean_calls": _mean(len(o.rewards[:limit]) for o in flat),
            "mean_tokens": _mean(sum(o.tokens[:limit]) for o in flat),
            "mean_seconds": _mean(sum(o.seconds[:limit]) for o in flat),
        }
        for limit in range(1, budget + 1)
    ]
    row: dict[str, Any] = {
        "name": method.name,
        "search": method.search,
        "preset": method.preset,
        "settings": dict(method.settings),
        "success": {str(limit): _share_of(_solved(method, outcomes, limit), seeds) for limit in calls},
        "categories": {
            category: {
                **_share_of(_solved(method, [outcomes[i] for i in chosen], budget), seeds),
                "searches": len(chosen) * seeds,
            }
            for category, chosen in _by_category(outcomes).items()
        },
        "curve": curve,
        "mean_calls": curve[-1]["mean_calls"],
        "mean_decoded_tokens": curve[-1]["mean_tokens"],
        "mean_seconds": curve[-1]["mean_seconds"],
        "abstentions": sum(reward is None for o in flat for reward in o.rewards),
        "moves": {move: {"drafts": count, "solved": solving[move]} for move, count in moves.items() if move},
    }
    judged = [found for group in outcomes if (found := _held_out(group)) is not None]
    if judged:
        gap, low, high = paired_means([gap for _, gap in judged])
        row["held_out"] = {
            **_share_of([right for right, _ in judged], seeds),
            "gap": gap,
            "gap_interval": [low, high],
        }
    return row


def _held_out(group: Sequence[Outcome]) -> tuple[float, float] | None:
    """Of one prompt, over its seeds: the share that the held-out critic calls right, and the mean hacking gap (reward
    minus held-out score). None where that critic abstained on all."""
    judged = [(o.held_out, o.rewards[o.returned] or 0.0) for o in group if o.held_out is not None]
    if not judged:
        return None
    return _mean(value == 1 for value, _ in judged), _mean(reward - value for value, reward in judged)


def _held_out_pair(mine: Sequence[Sequence[Outcome]], theirs: Sequence[Sequence[Outcome]]) -> dict[str, Any] | None:
    """Held-out success and hacking gap against the baseline's, over the prompts where both were judged."""
    pairs = [(_held_out(a), _held_out(b)) for a, b in zip(mine, theirs, strict=True)]
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    if not both:
        return None
    gap, low, high = paired_means([a[1] - b[1] for a, b in both])
    success = _paired([a[0] for a, _ in both], [b[0] for _, b in both])
    return {**success, "gap_difference": gap, "gap_interval": [low, high]}


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)


def _paired(mine: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """The mean difference over prompts with its interval; prompts won and lost, with the exact sign test."""
    differences = [a - b for a, b in zip(mine, theirs, strict=True)]
    won, lost = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    difference, low, high = paired_means(differences)
    return {
        "won": won,
        "lost": lost,
        "difference": difference,
        "interval": [low, high],
        "sign_test_p": sign_test(won, lost),
        "failures": [len(mine) - sum(mine), len(theirs) - sum(theirs)],
    }


def _to_reach(row: Mapping[str, Any], baseline: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the method spends until it is as good as the baseline at its full budget; None if it never is."""
    goal = baseline["curve"][-1]
    reached = next((point for point in row["curve"] if point["success"] >= goal["success"]), None)
    if reached is None:
        return None
    ratios = {name: reached[f"mean_{name}"] / max(1e-12, goal[f"mean_{name}"]) for name in ("tokens", "seconds")}
    return {"budget": reached["calls"], "share_of_tokens": ratios["tokens"], "share_of_seconds": ratios["seconds"]}


# --- Tables ---------------------------------------------------------------------------------------------------


def to_markdown(report: Mapping[str, Any]) -> str:
    """The report as tables, as they go into the README and docs/results.md."""
    calls, seeds = report["calls"], report["seeds"]
    searches = f"{report['prompts']} prompts" + (f" x {seeds} seeds" if seeds > 1 else "")
    paired = f"; difference in points against {report['baseline']}, paired by prompt" if report["baseline"] else ""
    lines = [
        f"{searches}, {report['budget']} reward calls, model {report['model']}, critic {report['critic']}, "
        f"seed {report['seed']}. Success with 95 % intervals over prompts{paired}, with an exact sign test.",
        "",
        "| method | " + " | ".join(f"@{count}" for count in calls) + " | against baseline | calls | tokens | s |",
        "|---|" + "---|" * (len(calls) + 4),
    ]
    for row in report["methods"]:
        cells = [row["name"], *(_share_cell(row["success"][str(count)]) for count in calls)]
        pair = row.get("against_baseline", {}).get(str(calls[-1]))
        cells += [
            _paired_cell(pair),
            f"{row['mean_calls']:.1f}",
            f"{row['mean_decoded_tokens']:.0f}",
            f"{row['mean_seconds']:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    abstained = sum(row["abstentions"] for row in report["methods"])
    lines += [
        "",
        "calls, tokens, s: mean per search of reward calls, decoded tokens and wall seconds (shared within a batch)."
        + (f" The critic abstained {abstained} times." if abstained else ""),
        "",
    ]
    lines += _category_table(report)
    if any("held_out" in row for row in report["methods"]):
        lines += _held_out_table(report)
    lines += [line for row in report["methods"] if (line := _cost_line(row, report))]
    return "\n".join([*lines, ""])


def _cost_line(row: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """Failures left at the full budget, and what it takes to be as good as the baseline."""
    pair = row.get("against_baseline", {}).get(str(report["calls"][-1]))
    if pair is None:
        return ""
    mine, theirs = (round(failures * report["seeds"]) for failures in pair["failures"])
    line = f"- {row['name']} leaves {mine} failures of {report['prompts'] * report['seeds']}, the baseline {theirs}"
    reached = row["to_reach_baseline"]
    if reached is None:
        return f"{line}, whose success it does not reach."
    return (
        f"{line}, whose success it reaches with a budget of {reached['budget']}: "
        f"{reached['share_of_tokens']:.0%} of its tokens, {reached['share_of_seconds']:.0%} of its seconds."
    )


def _category_table(report: Mapping[str, Any]) -> list[str]:
    categories = list(report["methods"][0]["categories"])
    if len(categories) < 2:
        return []
    lines = [
        f"Success at {report['budget']} calls by category; in brackets prompts won and lost against the baseline.",
        "",
        "| method | " + " | ".join(categories) + " |",
        "|---|" + "---|" * len(categories),
    ]
    for row in report["methods"]:
        cells = []
        for category in categories:
            pair = row.get("categories_against_baseline", {}).get(category)
            cells.append(
                _share(row["categories"][category]["share"]) + (f" ({pair['won']}/{pair['lost']})" if pair else "")
            )
        lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _held_out_table(report: Mapping[str, Any]) -> list[str]:
    lines = [
        f"Judged by the held-out critic {report['held_out']}: success of the returned draft, and the hacking gap "
        "(mean reward minus mean held-out score).",
        "",
        "| method | held-out success | against baseline | gap | gap against baseline |",
        "|---|---|---|---|---|",
    ]
    for row in report["methods"]:
        if "held_out" in row:
            found, pair = row["held_out"], row["held_out"].get("against_baseline")
            gap = _signed(found["gap"], found["gap_interval"])
            more = _signed(pair["gap_difference"], pair["gap_interval"]) if pair else ""
            lines.append(f"| {row['name']} | {_share_cell(found)} | {_paired_cell(pair)} | {gap} | {more} |")
    return [*lines, ""]


def _signed(value: float, interval: Sequence[float]) -> str:
    return f"{value:+.3f} [{interval[0]:+.3f}, {interval[1]:+.3f}]"


def _share_cell(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    return f"{_share(found['share'])} [{_share(low)}, {_share(high)}]"


def _share(value: float) -> str:
    return f"{value:.3f}".removeprefix("0") if value < 0.9995 else "1.00"


def _paired_cell(pair: Mapping[str, Any] | None) -> str:
    if pair is None:
        return "(baseline)"
    low, high = pair["interval"]
    p = pair["sign_test_p"]
    return (
        f"{100 * pair['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}], "
        f"{pair['won']} won / {pair['lost']} lost, p {'< .001' if p < 0.001 else f'= {p:.3f}'.replace('0.', '.', 1)}"
    )


# --- Curves ---------------------------------------------------------------------------------------------------

INKS = ("#0550ae", "#cf222e", "#1a7f37", "#8250df", "#bf8700", "#57606a", "#0a7ea4", "#d4459b")
PANEL, HEIGHT, MARGIN = 380, 320, 48


def curves(report: Mapping[str, Any]) -> str:
    """Success against calls, decoded tokens and seconds (means for each budget from 1 on), as an SVG picture."""
    rows = report["methods"]
    shares = [point["success"] for row in rows for point in row["curve"]]
    low = max(0.0, math.floor(10 * min(shares) - 0.01) / 10)
    width, legend = 3 * PANEL, 18 * math.ceil(len(rows) / 3)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT + legend + 8}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{HEIGHT + legend + 8}" fill="white"/>',
    ]
    panels = (("mean_calls", "reward calls"), ("mean_tokens", "decoded tokens"), ("mean_seconds", "seconds"))
    for panel, (key, words) in enumerate(panels):
        most = max(point[key] for row in rows for point in row["curve"]) or 1.0
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
        for index, row in enumerate(rows):
            points = " ".join(
                f"{left + (right - left) * point[key] / most:.1f},"
                f"{bottom - (bottom - top) * (point['success'] - low) / (1 - low):.1f}"
                for point in row["curve"]
            )
            ink = INKS[index % len(INKS)]
            dash = ' stroke-dasharray="5 3"' if index >= len(INKS) else ""
            parts.append(f'<polyline points="{points}" fill="none" stroke="{ink}" stroke-width="1.8"{dash}/>')
    for index, row in enumerate(rows):
        x, y = MARGIN + index % 3 * PANEL, HEIGHT + 18 * (index // 3) + 4
        name = row["name"].replace("&", "&amp;").replace("<", "&lt;")
        parts.append(f'<rect x="{x}" y="{y - 9}" width="14" height="4" fill="{INKS[index % len(INKS)]}"/>')
        parts.append(f'<text x="{x + 20}" y="{y - 2}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])
