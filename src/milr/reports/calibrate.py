"""How far a critic can be trusted: its scores of many drafts beside the verdicts of an oracle.

For each critic: AUC (the chance that it prefers a right picture to a wrong one), over all drafts and among drafts of
the same prompt (which is all that a search asks of it); calibration (how often pictures of a score are right), as
numbers and as a reliability plot; rank agreement with the other critics; seconds a picture. Drafts are single ones with
sampled texts, so no critic has been climbed. Knows critics, models and prompts; no search.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from milr.backbones.base import Backbone
from milr.critics.base import Critic, content_of, judge
from milr.drafts import Ask, Order, Sample, Task, reaches
from milr.reports.report import INKS
from milr.searches.driver import draft_stream
from milr.statistics import auc, wilson

if TYPE_CHECKING:
    from PIL.Image import Image

    from milr.runs.verdicts import Verdicts

KEPT = {"batch", "critic", "pictures", "values", "reasons", "seconds"}  # of a line of the record
BATCH = 64
BINS = 10
RESAMPLES = 1000


def calibrate(
    backbone: Backbone,
    critics: Sequence[Critic],
    oracle: Critic,
    tasks: Sequence[Task],
    each: int,
    seed: int = 0,
    tell: Callable[[int, int], None] = lambda done, of: None,
    record: Verdicts | None = None,
) -> dict[str, Any]:
    """Draw `each` drafts of every task and let everyone judge them. A draft is right where the oracle says 1.

    What is on `record` is not judged again, but for abstentions: what kept a critic from judging may be mended.

    Drafts on which the oracle abstains are left out; those on which a critic abstains are left out for that critic.
    """
    jobs = [(number, task, index) for number, task in enumerate(tasks) for index in range(each)]
    prompt_of = [number for number, _, _ in jobs]
    everyone = (oracle, *critics)
    found: dict[str, list[float]] = {critic.name: [] for critic in everyone}
    seconds = dict.fromkeys(found, 0.0)
    reasons: dict[str, str] = {}  # of each critic's first abstention
    known = _on_record(record)
    for start in range(0, len(jobs), BATCH):
        some = jobs[start : start + BATCH]
        lines = {critic.name: known.get((start, critic.name, content_of(critic))) for critic in everyone}
        if any(line is None or len(line["values"]) != len(some) or None in line["values"] for line in lines.values()):
            # Drawn in the same batches as at first, so that what was judged before is what is judged now.
            images = [drawn.image for drawn in backbone.draw([_order(seed, task, index) for _, task, index in some])]
            lines = {
                critic.name: _judged(critic, start, images, [task for _, task, _ in some], lines[critic.name], record)
                for critic in everyone
            }
        for name, line in lines.items():
            assert line is not None
            found[name] += [np.nan if value is None else value for value in line["values"]]
            seconds[name] += line["seconds"]
            why = next((why for value, why in zip(line["values"], line["reasons"], strict=True) if value is None), None)
            if why is not None:
                reasons.setdefault(name, why)
        tell(min(start + BATCH, len(jobs)), len(jobs))
    truth = found[oracle.name]
    said = {critic.name: found[critic.name] for critic in critics}
    prompts, values = np.array(prompt_of), np.array(truth)
    judged = np.isfinite(values)
    scores_of = {name: np.array(scores)[judged] for name, scores in said.items()}
    prompts, values = prompts[judged], values[judged]
    right = np.array([reaches(value) for value in values], dtype=bool)
    return {
        "format": "milr-calibration/1",
        "model": backbone.info.name,
        "oracle": oracle.name,
        "seed": seed,
        "prompts": len(tasks),
        "drafts": len(right),
        "right": _share(right),
        "critics": {
            name: {**_trust(scores, right, prompts), "spearman_with_oracle": _spearman(scores, values),
                   "seconds_a_picture": round(seconds[name] / max(1, len(jobs)), 5),
                   **({"abstained_because": reasons[name]} if name in reasons else {})}
            for name, scores in scores_of.items()
        },
        "agreement": {
            name: {other: _spearman(scores, others) for other, others in scores_of.items() if other != name}
            for name, scores in scores_of.items()
        },
    }  # fmt: skip


def asked(backbone: str, oracle: str, tasks: Sequence[Task], each: int, seed: int) -> dict[str, Any]:
    """What a calibration asks, as the head of its record: other critics may join later, nothing else may change."""
    every = json.dumps([asdict(task) for task in tasks], sort_keys=True, default=str).encode()
    return {
        "format": "milr-calibration-run/1", "model": backbone, "oracle": oracle, "prompts": len(tasks),
        "prompts_digest": hashlib.sha256(every).hexdigest(), "drafts": each, "seed": seed,
    }  # fmt: skip


def _on_record(record: Verdicts | None) -> dict[tuple[int, str, str], Mapping[str, Any]]:
    """The last line of each batch and critic, with what the critic's name leaves out."""
    lines = () if record is None else record.lines
    return {(line["batch"], line["critic"], line.get("content", "")): line for line in lines if line.keys() >= KEPT}


def _order(seed: int, task: Task, index: int) -> Order:
    return Order(task.prompt, Ask(Sample(), Sample()), draft_stream(seed, task.id, index, 0))


def _judged(
    critic: Critic,
    start: int,
    images: Sequence[Image],
    tasks: Sequence[Task],
    line: Mapping[str, Any] | None,
    record: Verdicts | None,
) -> Mapping[str, Any]:
    """What a critic says of a batch: what is on record of these very pictures, and the rest asked now, and kept."""
    names = [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
    values: list[float | None] = [None] * len(images)
    reasons, seconds = [""] * len(images), 0.0
    if line is not None and line["pictures"] == names:
        values, reasons, seconds = list(line["values"]), list(line["reasons"]), line["seconds"]
    missing = [index for index, value in enumerate(values) if value is None]
    if not missing and line is not None:
        return line
    began = time.perf_counter()
    scores = judge(critic, [images[index] for index in missing], [tasks[index] for index in missing])
    seconds += time.perf_counter() - began
    for index, score in zip(missing, scores, strict=True):
        values[index], reasons[index] = score.value, score.reason
    kept = {
        "batch": start, "critic": critic.name, "content": content_of(critic), "pictures": names, "values": values,
        "reasons": reasons, "seconds": seconds,
    }  # fmt: skip
    if record is not None:
        record.add(kept)
    return kept


def _trust(scores: np.ndarray[Any, Any], right: np.ndarray[Any, Any], prompts: np.ndarray[Any, Any]) -> dict[str, Any]:
    judged = np.isfinite(scores)
    found: dict[str, Any] = {"judged": int(judged.sum()), "abstained": int((~judged).sum())}
    scores, right, prompts = scores[judged], right[judged], prompts[judged]
    if not len(scores):
        return found
    groups = [np.flatnonzero(prompts == prompt) for prompt in np.unique(prompts)]
    within = [value for group in groups if (value := auc(scores[group], right[group])) is not None]
    rng = np.random.default_rng(0)
    # A prompt's drafts come together: the bootstrap draws prompts.
    drawn = [np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))]) for _ in range(RESAMPLES)]
    again = [value for rows in drawn if (value := auc(scores[rows], right[rows])) is not None]
    middle = auc(scores, right)
    found["auc"] = None if middle is None else _interval(middle, again)
    found["auc_within_prompts"] = _within(within)
    found["brier"] = round(float(((scores - right) ** 2).mean()), 4)
    edges = np.minimum((scores * BINS).astype(int), BINS - 1)
    found["bins"] = [
        {"from": bin / BINS, "mean": round(float(scores[edges == bin].mean()), 4), **_share(right[edges == bin])}
        for bin in range(BINS)
        if (edges == bin).any()
    ]
    return found


def _within(values: Sequence[float]) -> dict[str, Any] | None:
    """Mean over the prompts that have both right and wrong drafts; the interval is Student's."""
    if len(values) < 2:
        return None
    mean, half = float(np.mean(values)), float(stats.sem(values) * stats.t.ppf(0.975, len(values) - 1))
    return {"value": round(mean, 4), "low": round(mean - half, 4), "high": round(min(1.0, mean + half), 4),
            "prompts": len(values)}  # fmt: skip


def _interval(value: float, resampled: Sequence[float]) -> dict[str, float]:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return {"value": round(value, 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def _share(flags: np.ndarray[Any, Any]) -> dict[str, Any]:
    low, high = wilson(int(flags.sum()), len(flags))
    return {"share": round(float(flags.mean()), 4), "low": round(low, 4), "high": round(high, 4), "of": len(flags)}


def _spearman(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float | None:
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 3 or len(np.unique(a[both])) < 2 or len(np.unique(b[both])) < 2:
        return None
    return round(float(stats.spearmanr(a[both], b[both]).statistic), 4)


# --- Showing it -----------------------------------------------------------------------------------------------------


def to_markdown(found: Mapping[str, Any]) -> str:
    """One table, and the rank agreement between the critics."""
    right = found["right"]
    lines = [
        f"{found['drafts']} drafts of {found['prompts']} prompts by {found['model']}, seed {found['seed']}; "
        f"{found['oracle']} calls {right['share']:.3f} [{right['low']:.3f}, {right['high']:.3f}] of them right. "
        "AUC with 95 % intervals (bootstrap over prompts), within prompts over those with right and wrong drafts.",
        "",
        "| critic | AUC | AUC within prompts | Spearman with the oracle's score | Brier | judged | ms a picture |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, of in found["critics"].items():
        within = of.get("auc_within_prompts")
        prompts = "" if within is None else f" ({within['prompts']} prompts)"
        lines.append(
            f"| {name} | {_cell(of.get('auc'))} | {_cell(within)}{prompts} | {_rank(of['spearman_with_oracle'])} | "
            f"{of.get('brier', '')} | {of['judged']} | {1000 * of['seconds_a_picture']:.1f} |"
        )
    names = list(found["critics"])
    lines += [
        "",
        "Rank agreement (Spearman) of every two:",
        "",
        f"| | {' | '.join(names)} |",
        "|---" * (1 + len(names)) + "|",
    ]
    for name in names:
        cells = ["" if other == name else _rank(found["agreement"][name][other]) for other in names]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        f"{'' if number else chr(10)}- {name} abstained on {of['abstained']}, first because: {of['abstained_because']}"
        for number, (name, of) in enumerate(
            (name, of) for name, of in found["critics"].items() if of.get("abstained_because")
        )
    ]
    return "\n".join(lines) + "\n"


def _rank(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _cell(value: Mapping[str, float] | None) -> str:
    return "none" if value is None else f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def reliability(found: Mapping[str, Any]) -> str:
    """How often pictures of a score are right, a line a critic, as an SVG picture. The diagonal is a perfect one."""
    side, margin = 320, 44
    rows = {name: of["bins"] for name, of in found["critics"].items() if of.get("bins")}
    height = side + 2 * margin + 18 * len(rows)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {side + 2 * margin} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{side + 2 * margin}" height="{height}" fill="white"/>',
        f'<line x1="{margin}" y1="{margin + side}" x2="{margin + side}" y2="{margin}" stroke="#8c959f" '
        'stroke-dasharray="4 4"/>',
    ]
    for tick in range(0, 11, 2):
        x, y = margin + side * tick / 10, margin + side * (1 - tick / 10)
        parts.append(f'<line x1="{margin}" x2="{margin + side}" y1="{y:.0f}" y2="{y:.0f}" stroke="#d0d7de"/>')
        parts.append(f'<text x="{margin - 6}" y="{y + 4:.0f}" text-anchor="end">{tick / 10:.1f}</text>')
        parts.append(f'<text x="{x:.0f}" y="{margin + side + 16}" text-anchor="middle">{tick / 10:.1f}</text>')
    parts.append(f'<text x="{margin + side / 2:.0f}" y="{margin + side + 34}" text-anchor="middle">mean score</text>')
    parts.append(f'<text x="{margin}" y="{margin - 12}">share that {found["oracle"]} calls right</text>')
    for index, (name, bins) in enumerate(rows.items()):
        ink = INKS[index % len(INKS)]
        dots = [(margin + side * one["mean"], margin + side * (1 - one["share"]), one["of"]) for one in bins]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in dots)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{ink}" stroke-width="1.8"/>')
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{2 + 8 * (of / found["drafts"]) ** 0.5:.1f}" fill="{ink}" '
            'fill-opacity="0.5"/>'
            for x, y, of in dots
        ]
        y, label = side + 2 * margin + 18 * index, name.replace("&", "&amp;").replace("<", "&lt;")
        parts.append(f'<rect x="{margin}" y="{y - 5}" width="14" height="4" fill="{ink}"/>')
        parts.append(f'<text x="{margin + 20}" y="{y + 2}">{label}</text>')
    return "\n".join([*parts, "</svg>", ""])
