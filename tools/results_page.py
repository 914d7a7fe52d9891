"""Puts the tables into docs/results.md and README.md, from the raw numbers in docs/data: no number is typed by hand.

    python tools/results_page.py                      the pages from docs/data
    python tools/results_page.py out/results          first take what tools/results.sh left there
    python tools/results_page.py out/recipes          and what 'milr bench --recipe' left in out/recipes/NAME
    python tools/results_page.py --check              exit 1 if a page does not say what its data say

A page says `<!-- table NAME -->`, `<!-- table NAME brief -->` for the first table with its footnotes, or `<!-- table
NAME held-out -->` for the held-out critic's; what stands from there to `<!-- end -->` is replaced. NAME is a file of
docs/data.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from milr.reports.calibrate import to_markdown as calibration_table
from milr.reports.report import to_markdown
from milr.statistics import paired_means, sign_test

sys.path.insert(0, str(Path(__file__).parent))  # also where this file is loaded by its path
from quoted import filled as filled_prose
from quoted import unknown_intervals

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")
DATA = ROOT / "docs" / "data"
BLOCK = re.compile(r"<!-- table (\S+)( brief| held-out)? -->\n.*?<!-- end -->", re.DOTALL)
RATIO = re.compile(r"text_ratio=([\d.]+),image_ratio=([\d.]+)")


def take(results: Path) -> None:
    """Copy finished reports, diagnoses and calibrations of a folder of runs into docs/data, and the plots that a page
    shows into docs/images. Reports of before the present format are left where they are."""
    pages = "".join(page.read_text() for page in PAGES)

    def keep(name: str, source: Path) -> None:
        if not {"searches", "critics", "before_and_after"} & set(json.loads(source.read_text())):
            print(f"left out, of an older format: {source}")
            return
        (DATA / f"{name}.json").write_bytes(source.read_bytes())
        for plot in (source.with_name("curves.svg"), source.with_suffix(".svg")):
            if plot.exists() and f"images/{name}.svg" in pages:
                (ROOT / "docs" / "images" / f"{name}.svg").write_bytes(plot.read_bytes())

    for report in sorted(results.glob("*/report.json")):
        keep(report.parent.name, report)
    for report in sorted(results.glob("*/*/report.json")):  # a recipe's folder holds one folder a run
        recipe, run = report.parts[-3:-1]
        keep(f"recipe-{recipe}" if run == "scenes" else f"recipe-{recipe}-{run}", report)
    for single in sorted([*results.glob("diagnosis-*.json"), *results.glob("calibration*.json")]):
        keep(single.stem, single)


def table(name: str) -> str:
    """What belongs between the marks."""
    if name == "trust":
        return trust()
    if name == "pooled":
        return pooled()
    found = json.loads((DATA / f"{name}.json").read_text())
    if found.get("format", "").startswith("milr-calibration"):
        return calibration_table(found).strip()
    if "before_and_after" in found:
        return diagnosis(found)
    if len({RATIO.sub("", name) for name in found["searches"]}) == 1 and RATIO.search(next(iter(found["searches"]))):
        return grid(found)
    return to_markdown(found).strip()


def trust() -> str:
    """Each critic as the reward, judged by the oracle: success of best-of-n and of repair, and the hacking gap."""
    rows, spread = [], {"best-of-n": [], "repair": []}
    for file in sorted(DATA.glob("trust-*.json")):
        report = json.loads(file.read_text())
        best, repair = (report["searches"][name] for name in ("best-of-n:sampled-text", "repair"))
        judged = [search["held_out"].get("scene", search["optimised"]) for search in (best, repair)]
        gaps = [
            f"{of['gap']:+.3f} [{of['gap_low']:+.3f}, {of['gap_high']:+.3f}]" if "gap" in of else "" for of in judged
        ]
        shares = [f"{of['success']:.3f} [{of['low']:.3f}, {of['high']:.3f}]" for of in judged]
        rows.append((judged[1]["success"], f"| {report['critic']} | {' | '.join([*shares, *gaps])} |"))
        if report["critic"] != "scene":
            spread["best-of-n"].append(judged[0]["success"])
            spread["repair"].append(judged[1]["success"])
    lines = [
        f"{report['prompts']} prompts, {report['budget']} calls; success as scene judges, 95 % intervals; gap: mean "
        "reward minus mean held-out score.",
        "",
        "| reward | best-of-n | repair | gap of best-of-n | gap of repair |",
        "|---|---|---|---|---|",
        *(row for _, row in sorted(rows, reverse=True)),
        "",
        f"Over the {len(spread['repair'])} critics but the oracle: "
        + "; ".join(
            f"{name} from {min(of):.3f} to {max(of):.3f}, standard deviation {statistics.stdev(of):.3f}"
            for name, of in spread.items()
        )
        + ".",
    ]
    return "\n".join(lines)


def pooled() -> str:
    """Repair against best-of-n under a critic that errs, over every report on it (one search a prompt each)."""
    reports = {
        "scene-lite": ("critic-scene-lite", "recipe-critics-scene-lite", "trust-scene-lite"),
        "self": ("critic-self", "regularisers", "recipe-critics-self", "trust-self"),
    }
    lines = ["| reward | reports | prompts | won / lost | difference in points | p |", "|---|---|---|---|---|---|"]
    for critic, names in reports.items():
        prompts = won = lost = 0
        for name in names:
            report = json.loads((DATA / f"{name}.json").read_text())
            (pair,) = [
                pair
                for pair in report["pairs"]
                if (pair["a"], pair["b"]) == ("repair", "best-of-n:sampled-text")
                and pair["axis"] == "calls"
                and pair.get("critic") == "scene"
            ]
            prompts, won, lost = prompts + report["prompts"], won + pair["won"], lost + pair["lost"]
        mean, low, high = paired_means([1] * won + [-1] * lost + [0] * (prompts - won - lost))
        p = sign_test(won, lost)
        lines.append(
            f"| {critic} | {len(names)} | {prompts} | {won} / {lost} | {100 * mean:+.1f} [{100 * low:+.1f}, "
            f"{100 * high:+.1f}] | {'< .001' if p < 0.001 else f'{p:.3f}'} |"
        )
    return "\n".join(lines)


def grid(report: Mapping[str, Any]) -> str:
    """Success at the full budget for every pair of ratios."""
    budget = str(report["calls"][-1])
    cells: dict[tuple[str, str], str] = {}
    for name, row in report["searches"].items():
        match = RATIO.search(name)
        assert match is not None
        after = row["by_calls"][budget]
        cells[match[1], match[2]] = f"{after['success']:.3f} [{after['low']:.3f}, {after['high']:.3f}]"
    texts, images = (sorted({pair[side] for pair in cells}, key=float) for side in (0, 1))
    search = next(iter(report["searches"].values()))["spec"].split(",")[0]
    head = f"{search}: success at {budget} calls of {report['prompts']} prompts, 95 % intervals"
    lines = [
        f"{head}; rows lambda_t, columns lambda_v.",
        "",
        "| | " + " | ".join(images) + " |",
        "|---|" + "---|" * len(images),
        *(f"| **{text}** | " + " | ".join(cells[text, image] for image in images) + " |" for text in texts),
    ]
    return "\n".join(lines)


def diagnosis(found: Mapping[str, Any]) -> str:
    """Readings and drawings before and after, and what each move brought."""

    def share(value: Mapping[str, Any]) -> str:
        return f"{value['share']:.3f} [{value['low']:.3f}, {value['high']:.3f}]" if value["of"] else "none"

    states = found["before_and_after"]
    first, returned = states["first"], states["returned"]
    ways = ", ".join(f"{way} {count}" for way, count in states["from_to"].items())
    lines = [
        f"`{found['search']}`, {found['prompts']} prompts of seed {found['seed']}.",
        "",
        "| | first draft | returned draft |",
        "|---|---|---|",
        *(f"| {state} | {share(first[state])} | {share(returned[state])} |" for state in first),
        "",
        f"From first to returned draft: {ways}.",
        "",
        "| move | drafts | better than all before | solved | tokens |",
        "|---|---|---|---|---|",
        *(
            f"| {move} | {row['drafts']} | {share(row['better'])} | {share(row['solved'])} | {row['mean_tokens']} |"
            for move, row in found["moves"].items()
        ),
    ]  # fmt: skip
    if "latents" in found:
        lines += ["", "| quantiles .05, .5, .95 | text latents | image latents |", "|---|---|---|"]
        words = {
            "step_to_latent": "length of a step / length of the latents",
            "cosine_of_steps": "cosine of steps in a row",
            "way_to_path": "way from first to last / length of the path",
        }
        rows = [(words[key], *(found["latents"][kind][key] for kind in ("text", "image"))) for key in words]
        rows.append(("gradient norm", *(found["gradient_norms"][kind] for kind in ("text", "image"))))
        for name, *kinds in rows:
            cells = [", ".join(map(str, kind["quantiles_.05_.5_.95"])) + f" (of {kind['of']})" for kind in kinds]
            lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def filled(page: Path) -> str:
    """The page with its tables made anew."""

    def fill(block: re.Match[str]) -> str:
        text, part = table(block[1]), block[2] or ""
        paragraphs = text.split("\n\n")
        if part == " brief":
            text = "\n\n".join(paragraphs[:2] + [one for one in paragraphs[2:] if one.startswith("*:")])
        elif part == " held-out":
            start = next(index for index, line in enumerate(paragraphs) if line.startswith("Judged by the held-out"))
            text = "\n\n".join(paragraphs[start : start + 2])
        return f"<!-- table {block[1]}{part} -->\n{text}\n<!-- end -->"

    return filled_prose(BLOCK.sub(fill, page.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description="Fill the tables of the pages from docs/data.")
    parser.add_argument("results", nargs="*", type=Path, help="folders of runs to take reports from first")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is out of date")
    options = parser.parse_args()
    for results in options.results:
        take(results)
    late = [page for page in PAGES if filled(page) != page.read_text()]
    for page in late:
        if not options.check:
            page.write_text(filled(page))
        print(f"{'out of date' if options.check else 'written'}: {page.relative_to(ROOT)}")
    wrong = {page: found for page in PAGES if (found := unknown_intervals(page.read_text()))}
    for page, found in wrong.items():
        print(f"{page.relative_to(ROOT)} quotes what no data say: {', '.join(found)}")
    if wrong or (options.check and late):
        sys.exit(1)


if __name__ == "__main__":
    main()
