"""Numbers in prose, from the same data as the tables: `tools/results_page.py` fills and checks them.

A page says `<!-- n REPORT WHAT ... -->TEXT<!-- /n -->`; TEXT is made anew from docs/data/REPORT.json. WHAT is one of

    success METHOD [at=CALLS] [category=NAME]      .980 [.968, .988]
    share METHOD [at=CALLS] [category=NAME]        .980
    failures METHOD, searches METHOD               24, 1200
    points METHOD [BASE] [at=CALLS] [category=NAME] [critic=NAME]   +3.8 [+2.0, +5.5]
    won METHOD ..., lost METHOD ..., p METHOD ...  28, 0, < .001 (of the same pair)
    mean METHOD calls|decoded_tokens|seconds       2.2
    reach METHOD tokens|seconds|later-calls|budget  54 % (of the baseline's, for its success)
    percent METHOD of METHOD                       35 % (of the failures)
    configurations [PREFIX]                        8 (methods in the report whose name begins so)
    prompts, seeds, budget                         600, 2, 20

A method with spaces stands in quotes; `base` is the report's baseline. Any other interval in prose, `x [low, high]`,
must be one that the data hold:
`unknown_intervals` lists those that are not.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[1] / "docs" / "data"
MARK = re.compile(r"<!-- n (.+?) -->(.*?)<!-- /n -->", re.DOTALL)
TABLE = re.compile(r"<!-- table .*?<!-- end -->|```.*?```|^\|.*?$", re.DOTALL | re.MULTILINE)
INTERVAL = re.compile(r"(?<![\w.])([+-]?\d*\.\d+|[+-]?\d+)(?: %| points)? \[([+-]?\d*\.?\d+), ([+-]?\d*\.?\d+)\]")


def filled(text: str) -> str:
    """The page with every marked number made anew."""
    return MARK.sub(lambda mark: f"<!-- n {mark[1]} -->{value(mark[1])}<!-- /n -->", text)


def value(asked: str) -> str:
    """What belongs at a mark, e.g. 'main points repair at=4'."""
    name, what, *rest = shlex.split(asked)
    report = json.loads((DATA / f"{name}.json").read_text())
    options = dict(word.split("=", 1) for word in rest if re.match(r"(at|category|critic)=", word))
    words = [word for word in rest if not re.match(r"(at|category|critic)=", word)]
    words = [report["baseline"] if word == "base" else word for word in words]
    return _WAYS[what](report, words, options)


def _row(report: Mapping[str, Any], method: str, options: Mapping[str, str]) -> Mapping[str, Any]:
    row = report["searches"][method]
    if "category" in options:
        return row["by_category"][options["category"]]
    return row["by_calls"][options["at"]] if "at" in options else row


def _pair(report: Mapping[str, Any], words: list[str], options: Mapping[str, str]) -> Mapping[str, Any]:
    """The pair of a method with the baseline or another, seen from the first one."""
    a, b = words[0], words[1] if len(words) > 1 else report["baseline"]
    at = int(options.get("at", report["calls"][-1]))
    for pair in report["pairs"]:
        place = pair.get("axis") == "calls" and pair["at"] == at
        same = pair.get("category") == options.get("category") and pair.get("critic") == options.get("critic")
        if place and same and {pair["a"], pair["b"]} == {a, b}:
            if pair["a"] == a:
                return pair
            turned = {"difference": -pair["difference"], "low": -pair["high"], "high": -pair["low"]}
            return {**pair, **turned, "won": pair["lost"], "lost": pair["won"]}
    raise KeyError(f"no pair of {a} and {b} with {options}")


def _three(number: float) -> str:
    return f"{number:.3f}".removeprefix("0") if number < 1 else f"{number:.2f}"


def _success(report: Any, words: list[str], options: Mapping[str, str]) -> str:
    row = _row(report, words[0], options)
    return f"{_three(row['success'])} [{_three(row['low'])}, {_three(row['high'])}]"


def _points(report: Any, words: list[str], options: Mapping[str, str]) -> str:
    pair = _pair(report, words, options)
    return f"{100 * pair['difference']:+.1f} [{100 * pair['low']:+.1f}, {100 * pair['high']:+.1f}]"


def _failures(report: Any, method: str) -> int:
    row = report["searches"][method]
    return round(row["n"] * (1 - row["success"]))


def _p(report: Any, words: list[str], options: Mapping[str, str]) -> str:
    pair = _pair(report, words, options)
    p = float(pair["p"] if "p" in pair else pair["p_mcnemar"])  # as reports of before called it
    return "< .001" if p < 0.001 else f"= {p:.3f}".replace("0.", ".", 1)


def _mean(report: Any, words: list[str], options: Mapping[str, str]) -> str:
    number = float(_row(report, words[0], options)[words[1]])
    return f"{number:.0f}" if number >= 20 else f"{number:.1f}" if number >= 1 else f"{number:.2f}"


def _reach(report: Any, words: list[str], options: Mapping[str, str]) -> str:
    reached = report["searches"][words[0]]["to_reach_baseline"]
    if words[1] == "budget":
        return str(reached["budget"])
    shares = {"tokens": "share_of_decoded_tokens", "seconds": "share_of_seconds", "later-calls": "beyond_first"}
    return f"{100 * reached[shares[words[1]]]:.0f} %"


_WAYS: Mapping[str, Callable[[Any, list[str], Mapping[str, str]], str]] = {
    "success": _success,
    "share": lambda report, words, options: _three(_row(report, words[0], options)["success"]),
    "failures": lambda report, words, options: str(_failures(report, words[0])),
    "searches": lambda report, words, options: str(report["searches"][words[0]]["n"]),
    "points": _points,
    "won": lambda report, words, options: str(_pair(report, words, options)["won"]),
    "lost": lambda report, words, options: str(_pair(report, words, options)["lost"]),
    "p": _p,
    "mean": _mean,
    "reach": _reach,
    "percent": lambda report, words, options: (
        f"{100 * _failures(report, words[0]) / _failures(report, words[2]):.0f} %"
    ),
    "configurations": lambda report, words, options: str(
        sum(name.startswith(words[0] if words else "") for name in report["searches"])
    ),
    "prompts": lambda report, words, options: str(report["prompts"]),
    "seeds": lambda report, words, options: str(report["seeds"]),
    "budget": lambda report, words, options: str(report["calls"][-1]),
}


# --- Intervals that nobody marked -----------------------------------------------------------------------------------


def unknown_intervals(text: str) -> list[str]:
    """Intervals in the prose of a page that stand in no file of docs/data, as shares or in points."""
    prose = TABLE.sub("", MARK.sub("", text))
    known = {triple for file in DATA.glob("*.json") for triple in _triples(json.loads(file.read_text()))}
    return [quote[0] for quote in INTERVAL.finditer(prose) if not _is_known(quote, known)]


def _is_known(quote: re.Match[str], known: set[tuple[float, float, float]]) -> bool:
    numbers = [float(quote[part]) for part in (1, 2, 3)]
    places = [len(quote[part].partition(".")[2]) for part in (1, 2, 3)]
    for scale in (1, -1, 100, -100):
        for triple in known:
            ends = triple if scale > 0 else (triple[0], triple[2], triple[1])
            if all(
                abs(round(scale * number, digits) - said) < 1e-9
                for number, digits, said in zip(ends, places, numbers, strict=True)
            ):
                return True
    return False


def _triples(data: Any) -> Iterator[tuple[float, float, float]]:
    """(value, low, high) of every interval in a report: `low` and `high` beside a value, or `x_low` and `x_high`."""
    if isinstance(data, list):
        for one in data:
            yield from _triples(one)
    if not isinstance(data, dict):
        return
    for key, low in data.items():
        high = data.get(key.removesuffix("low") + "high") if key.endswith("low") else None
        if isinstance(low, int | float) and isinstance(high, int | float):
            yield from ((v, low, high) for v in data.values() if isinstance(v, int | float) and low <= v <= high)
    for one in data.values():
        yield from _triples(one)
