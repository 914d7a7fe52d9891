"""report.html: one self-contained page that says which search won, by how much, at what cost, and how sure that is.

First the answer in sentences and one table; all comparisons are there, folded. No table mixes judges without naming
them above the columns.

Like trajectory.html: no request leaves it, no script is in it, whatever a prompt, a text or a critic says is text.
Knows reports and readings of runs.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from milr.drafts import RIGHT, reaches
from milr.reports.reading import Reading
from milr.reports.report import INKS, curves, leading, pair_of, what_is_counted
from milr.reports.signs import Ends
from milr.runs.journal import read_image
from milr.runs.page import data_uri, environment

SIDE_BY_SIDE = 6  # prompts that one search draws better than another
FAILURES = 18
FLOW_PANELS = {
    "Gradient norm": "gradient",
    "Cosine of the gradients of two steps in a row; of text and image": "cosine",
    "Searched tokens that changed": "changed_tokens",
}


def render_report(report: Mapping[str, Any], readings: Sequence[Reading]) -> str:
    """The page as HTML. `report` is of these readings."""
    folders = {name: reading for reading in readings for name in (method.name for method in reading.methods)}
    names = list(report["searches"])
    ranked = sorted(names, key=lambda name: -(report["searches"][name]["value"] or 0.0))
    rivals = [name for name in ranked if name != report["baseline"]]
    gallery = _Gallery(report, folders)
    against = report["baseline"]
    return str(
        environment("milr.reports")
        .get_template("report.html")
        .render(
            report=report,
            names=names,
            ranked=ranked,
            leading=leading(report),
            counted=what_is_counted(report),
            what="mean" if report["number"] == "mean" else "success",
            judge=report["judge"],
            judged_by=report["judge"] if report["held_out"] else None,
            curves="data:image/svg+xml;base64," + base64.b64encode(curves(report).encode()).decode(),
            verdicts=sorted(report["pairs"], key=lambda pair: (pair["b"] != report["baseline"], "category" in pair)),
            pair_of=lambda name, **where: pair_of(report, name, **where),
            categories=list(next(iter(report["searches"].values()))["by_category"]),
            comparisons=[
                {"a": better, "b": worse, "prompts": list(gallery.better(better, worse))}
                for better, worse in ([(rivals[0], against), (against, rivals[0])] if rivals and against else [])
            ],
            failures=[{"name": name, "shown": list(gallery.failures(name))} for name in (rivals or names)[:1]],
            flows={
                title: _lines(
                    {
                        f"{name}: {kind.replace('_', ' and ') if kind == 'text_image' else kind}": points
                        for name, row in report["searches"].items()
                        for kind in ("text", "image", "text_image")
                        if len(points := row.get("gradient_flow", {}).get(f"{kind}_{what}", [])) > 1
                    }
                )
                for title, what in FLOW_PANELS.items()
            },
            signs={name: row["signs"] for name, row in report["searches"].items() if "signs" in row},
        )
    )


def _lines(series: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Any] | None:
    """A panel of lines against steps, in SVG units; None where there is nothing to draw."""
    if not series:
        return None
    steps = [point[0] for points in series.values() for point in points]
    values = [point[1] for points in series.values() for point in points]
    low, high = min(0.0, *values), max(values)
    wide, tall = max(1, max(steps) - min(steps)), max(1e-9, high - low)

    def place(point: Sequence[float]) -> str:
        x = 40 + 320 * (point[0] - min(steps)) / wide
        y = 150 - 130 * (point[1] - low) / tall
        return f"{x:.1f},{y:.1f}"

    return {
        "low": f"{low:.3g}", "high": f"{high:.3g}", "first": min(steps), "last": max(steps),
        "lines": [
            {"name": name, "ink": INKS[index % len(INKS)], "points": " ".join(map(place, points))}
            for index, (name, points) in enumerate(series.items())
        ],
    }  # fmt: skip


class _Gallery:
    """Chooses searches worth a look and loads their pictures."""

    def __init__(self, report: Mapping[str, Any], readings: Mapping[str, Reading]) -> None:
        self.report, self.readings = report, readings
        self.tasks = {task.id: task for reading in readings.values() for task in reading.tasks}

    def better(self, a: str, b: str) -> Iterator[dict[str, Any]]:
        """Prompts where a's returned draft is better than b's, the largest difference first."""
        of_a, of_b = self._ends(a), self._ends(b)
        differences = [
            (mine - theirs, key)
            for key, one in of_a.items()
            if key in of_b and (mine := self._worth(one)) is not None and (theirs := self._worth(of_b[key])) is not None
        ]
        for difference, key in sorted(differences, key=lambda pair: -pair[0])[:SIDE_BY_SIDE]:
            if difference > 0:
                yield {
                    "prompt": self.tasks[key[0]].prompt,
                    "a": self._shown(a, of_a[key]),
                    "b": self._shown(b, of_b[key]),
                }

    def failures(self, name: str) -> Iterator[dict[str, Any]]:
        """Returned drafts that are no success, those with the same failed check beside each other; where the number is
        a mean, the lowest."""
        right = RIGHT if self.report["held_out"] else float(self.report["threshold"])
        scored = [(worth, one) for one in self._ends(name).values() if (worth := self._worth(one)) is not None]
        failed = [one for worth, one in scored if not reaches(worth, right)]
        if self.report["number"] == "mean":
            lowest = sorted(scored, key=lambda pair: (pair[0], pair[1].outcome.task))[:FAILURES]
            failed = [one for worth, one in lowest if not reaches(worth, right)]
        failed.sort(key=lambda one: (sorted(self._failed(one)), one.outcome.task))
        step = max(1, len(failed) // FAILURES)
        for one in failed[::step][:FAILURES]:
            yield {"prompt": self.tasks[one.outcome.task].prompt, **self._shown(name, one)}

    def _ends(self, name: str) -> dict[tuple[str, int], Ends]:
        reading = self.readings[name]
        return {key[1:]: one for key, one in reading.ends.items() if key[0] == name}

    def _worth(self, one: Ends) -> float | None:
        """What the judge of the headline says of the returned draft; None where it said nothing."""
        if self.report["held_out"]:
            return one.outcome.held_out.get(self.report["judge"])
        return one.outcome.rewards[one.outcome.returned]

    def _failed(self, one: Ends) -> list[str]:
        """Failed checks in words: of the first critic that gives any."""
        critics = (*self.report["held_out"], self.report["critic"])
        return next((list(texts) for critic in critics if (texts := one.outcome.failed.get(critic))), [])

    def _shown(self, name: str, one: Ends) -> dict[str, Any]:
        image = read_image(self.readings[name].folder, one.returned_image)
        return {
            "picture": data_uri(image) if image is not None else None,
            "reward": one.outcome.rewards[one.outcome.returned],
            "held_out": dict(one.outcome.held_out),
            "calls": len(one.outcome.rewards),
            "text": one.returned_text,
            "failed": self._failed(one),
        }
