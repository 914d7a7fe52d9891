"""Measures what docs/performance.md tells, and puts it there: no number on that page is typed by hand.

    python tools/performance.py --measure           all of it on this machine, an hour with the embedded model
    python tools/performance.py --measure --quick   the same with few tokens, prompts and drafts, in some minutes
    python tools/performance.py --measure --part stages   only one of its parts (stages, text, steps, prompts, journal,
                                                    memory); the others stay as they were measured
    python tools/performance.py                     the page from docs/data/performance.json and gpu/results.json
    python tools/performance.py --check             exit 1 if the page does not say what its data say

The page says `<!-- performance NAME -->`; what stands from there to `<!-- end -->` is replaced. gpu/results.json comes
from a machine with a GPU (gpu/README.md): a list of {size, what, images, image_token_ms, share, ...}. What it lacks is
'not measured'.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
DATA = ROOT / "docs" / "data" / "performance.json"
GPU = ROOT / "gpu" / "results.json"
BLOCK = re.compile(r"<!-- performance (\S+) -->\n.*?<!-- end -->", re.DOTALL)

BATCHES = (1, 2, 4, 8, 16, 32, 64)
TEXTS = (0, 8, 16, 32, 64)
STEPS = (1, 2, 4, 8, 16)
PROMPTS = (1, 4, 16, 64)
NEVER = 2.0  # a threshold that no reward reaches: the search uses up its budget

# The arithmetic for a large run: GenEval's prompts, MILR's budget, a reasoning of 50 words.
GENEVAL, CALLS, TEXT_TOKENS, IMAGE_TOKENS = 553, 20, 100, 576
SOON = 2.2  # calls a search with early stopping: repair on the embedded model's 600 prompts of `scenes`
PIXELS = 0.0066  # seconds an image at 16 of them: the VQ decoder of Janus-Pro on an H100, measured once


# --- Measuring ------------------------------------------------------------------------------------------------------


def measure(model: str, quick: bool, say: Callable[[str], None], parts: Sequence[str] = ()) -> dict[str, Any]:
    """Everything of this machine, or only these parts of it."""
    from milr.backbones import load

    backbone: Any = load(model)
    found: dict[str, Any] = {"quick": quick}
    for part in parts or PARTS:
        say(f"== {part}")
        found |= PARTS[part](backbone, quick, say)
    return found


def _stages(backbone: Any, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """What drafts cost in batches of many sizes, and beside rivals."""
    from milr.backbones import speed
    from milr.runs.bench import machine_of

    tokens = 8 if quick else None
    say("stages and rivals")
    found = speed.measure(backbone, 8 if quick else 32, tokens, say=say)
    probe = speed._Probe(backbone, found.tokens)
    batches = BATCHES[:4] if quick else BATCHES
    stages = []
    for images in batches:
        say(f"{images} at once")
        with speed._one_token_a_pass(backbone):
            one = speed._with_shares(backbone, probe.stages(images), probe, found.copy_bytes_per_second)
        draft = one.draft(found.text_tokens, found.image_tokens)
        stages.append({"images": images, "wall": draft.wall, "cpu": draft.cpu, "image_share": one.image_share})
    leaps = speed._leaps(backbone, [(one["images"], one["wall"]) for one in stages if one["images"] <= 16], say)
    return {
        "machine": machine_of(backbone, found.stages[-1].images),
        "model": found.model,
        "text_tokens": found.text_tokens,
        "image_tokens": found.image_tokens,
        "batch": stages,
        "leaps": [asdict(one) for one in leaps],
        "against": speed.to_json(found)["against"],
        "width": found.width,
    }


PARTS: dict[str, Callable[[Any, bool, Callable[[str], None]], dict[str, Any]]] = {
    "stages": _stages,
    "text": lambda backbone, quick, say: {"text": _texts(backbone, TEXTS[:3] if quick else TEXTS, say)},
    "steps": lambda backbone, quick, say: {
        "steps": _steps(backbone, STEPS[:3] if quick else STEPS, 2 if quick else 16, say)
    },
    "prompts": lambda backbone, quick, say: {"prompts": _prompts(backbone, PROMPTS[:2] if quick else PROMPTS, say)},
    "journal": lambda backbone, quick, say: {"journal": _journal(8 if quick else 64, say)},
    "memory": lambda backbone, quick, say: {"memory": _memory(backbone, 60 if quick else 5000, say)},
}


def _timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    return time.perf_counter() - wall, time.process_time() - cpu, found


def _texts(backbone: Any, lengths: Sequence[int], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A picture after a text of so many tokens that is given: what the longer prompt costs the image stage."""
    from milr.drafts import Ask, Forced, Order

    words = backbone.encode_text("a red fox and a blue bird beside a green tree " * 20)
    found = []
    for length in lengths:
        say(f"a text of {length} tokens")
        ask = Ask(text=Forced((*words[:length], backbone.text_end())))
        orders = [Order("a red fox", ask, stream) for stream in range(4)]
        backbone.draw(orders)
        wall, cpu, _ = min(
            (_timed(lambda orders=orders: backbone.draw(orders)) for _ in range(3)), key=lambda one: one[1]
        )
        found.append({"tokens": length, "wall": wall / 4, "cpu": cpu / 4})
    return found


def _search(backbone: Any, name: str, prompts: int, budget: int) -> Callable[[], Any]:
    """A search on so many prompts, all of its budget used up; no journal."""
    from milr.benchmarks.scenes import tasks
    from milr.critics import naming
    from milr.runs.bench import Terms, plan_of
    from milr.runs.methods import choose_methods
    from milr.searches.driver import drive

    (method,) = choose_methods([name])
    plan = plan_of(method, Terms(budget=budget))
    critic, chosen = naming.make("scene", backbone), tasks(prompts, 31_099)
    return lambda: drive(backbone, critic, chosen, plan.search, plan.settings, budget=budget, threshold=NEVER)


def _steps(backbone: Any, budgets: Sequence[int], prompts: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    found = []
    for name in ("best-of-n:sampled-text", "milr:repaired", "repair"):
        for budget in budgets:
            say(f"{name}, {budget} calls")
            wall, cpu, drawn = _timed(_search(backbone, name, prompts, budget))
            drafts = sum(len(one.drafts) for one in drawn)
            found.append({"search": name, "calls": budget, "wall": wall / drafts, "cpu": cpu / drafts})
    return found


def _prompts(backbone: Any, counts: Sequence[int], say: Callable[[str], None]) -> list[dict[str, Any]]:
    found = []
    for count in counts:
        say(f"{count} prompts")
        wall, cpu, drawn = _timed(_search(backbone, "repair", count, 4))
        drafts = sum(len(one.drafts) for one in drawn)
        found.append({"prompts": count, "wall": wall / drafts, "cpu": cpu / drafts})
    return found


def _journal(count: int, say: Callable[[str], None]) -> dict[str, Any]:
    """What keeping a draft of 384 x 384 pixels (made up, as smooth as a photograph) takes of the thread that draws, and
    of all processors."""
    import numpy as np
    from PIL import Image

    from milr.drafts import Ask, Cost, Draft, Drawn, Score
    from milr.runs.journal import Journal

    say("the journal")
    rng = np.random.default_rng(0)

    def picture() -> Image.Image:
        large = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).resize((384, 384))
        noisy = np.asarray(large, dtype=np.float32) + rng.normal(0, 1, (384, 384, 3))
        return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))

    def draft(number: int) -> Draft:
        drawn = Drawn("a red fox", (1,) * 60, True, (2,) * 576, picture(), None, 5.0, Cost())
        return Draft(number, Ask(), 1, drawn, Score(0.5))

    drafts = [draft(number) for number in range(count)]
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "run", {}) as journal:
        began = time.thread_time(), time.process_time(), time.perf_counter()
        for one in drafts:
            journal.foresee(one.drawn.image)
            journal.add_draft("method", "task", 0, one)
        journal.sync()
        ended = time.thread_time(), time.process_time(), time.perf_counter()
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.png"))
    thread, cpu, wall = ((end - begin) / count for begin, end in zip(began, ended, strict=True))
    return {"thread": thread, "cpu": cpu, "wall": wall, "bytes": size / count}


def _memory(backbone: Any, drafts: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """What the process holds (resident bytes) in a run with its journal, until it has drawn so many drafts."""
    from milr.benchmarks.scenes import tasks
    from milr.runs.bench import Terms, bench
    from milr.runs.methods import choose_methods

    say(f"memory over {drafts} drafts")
    found: list[dict[str, Any]] = []
    page = os.sysconf("SC_PAGE_SIZE")

    class Enough(Exception):
        pass

    def look(progress: Any) -> None:
        if progress.drafts >= len(found) * max(1, drafts // 20):
            held = int(Path("/proc/self/statm").read_text().split()[1]) * page
            found.append({"drafts": progress.drafts, "bytes": held})
        if progress.drafts >= drafts:
            raise Enough

    methods = choose_methods(["repair"])
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Enough):
        bench(
            backbone, tasks(drafts, 31_098), Path(folder) / "run", Terms(), methods=methods, baseline=methods[0].name,
            tell=look,
        )  # fmt: skip
    return found


# --- The page -------------------------------------------------------------------------------------------------------


def filled(page: str, data: Mapping[str, Any], gpu: Sequence[Mapping[str, Any]]) -> str:
    """The page with its tables. Raises KeyError for a name that is none."""

    def table(match: re.Match[str]) -> str:
        name = match[1]
        lines = GPU_TABLES[name](gpu) if name in GPU_TABLES else TABLES[name](data)
        return "\n".join([f"<!-- performance {name} -->", *lines, "<!-- end -->"])

    return BLOCK.sub(table, page)


def _machine(data: Mapping[str, Any]) -> list[str]:
    machine = data["machine"]
    lines = [
        f"{data['model']} ({data['text_tokens']} text and {data['image_tokens']} image tokens a draft) in "
        f"{machine['dtype']} on {machine['name']}, {_count(machine['threads'], 'thread')}. Seconds on the clock, "
        "and of the processors in brackets; a machine that does other work beside is compared by the latter."
    ]
    if data["quick"]:
        lines += ["", "**A quick look (`--quick`): few tokens, prompts and drafts. Not for quoting.**"]
    return lines


def _batch(data: Mapping[str, Any]) -> list[str]:
    rows = [
        [one["images"], _seconds(one), f"{data['batch'][0]['cpu'] / one['cpu']:.1f}x", _share(one["image_share"])]
        for one in data["batch"]
    ]
    said = f"Drafts of one prompt that take less than twice the time of one: {data['width']}."
    return [
        *_table(("images at once", "one draft", "against one alone, CPU", "share of the copy bandwidth"), rows),
        "",
        said,
    ]


def _leaps(data: Mapping[str, Any]) -> list[str]:
    if not data.get("leaps"):
        return ["not measured"]
    which = {"first": "nothing was drawn before", "later": "after three others of the prompt"}
    rows = [
        [
            one["images"],
            which[one["drafts"]],
            f"{one['image_passes']:.1f} for {one['image_tokens']}",
            f"{one['text_passes']:.1f} for {one['text_tokens']:.1f}",
            _seconds(one["draft"]),
            _seconds(one["without"]),
            f"{one['without']['cpu'] / one['draft']['cpu']:.1f}x",
        ]
        for one in data["leaps"]
    ]
    heads = ("images at once", "drafts", "passes, image tokens", "passes, text", "one draft", "one token a pass",
             "quicker, CPU")  # fmt: skip
    return _table(heads, rows)


def _against(data: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            one["rival"],
            one["what"],
            one["images"],
            f"not measured ({one['note']})" if one["wall"] is None else f"{one['wall']:.1f}x",
            "" if one["cpu"] is None else f"{one['cpu']:.1f}x",
        ]
        for one in data["against"]
    ]
    return _table(("rival", "what", "images at once", "milr is faster by", "in CPU seconds"), rows)


def _text(data: Mapping[str, Any]) -> list[str]:
    return _table(
        ("text tokens before the picture", "one picture"), [[one["tokens"], _seconds(one)] for one in data["text"]]
    )


def _step(data: Mapping[str, Any]) -> list[str]:
    names = list(dict.fromkeys(one["search"] for one in data["steps"]))
    calls = sorted({one["calls"] for one in data["steps"]})
    cells = {(one["search"], one["calls"]): _seconds(one) for one in data["steps"]}
    return _table(
        ("search", *(_count(count, "call") for count in calls)), [[n, *(cells[n, c] for c in calls)] for n in names]
    )


def _prompt(data: Mapping[str, Any]) -> list[str]:
    return _table(("prompts", "one draft"), [[one["prompts"], _seconds(one)] for one in data["prompts"]])


def _held(data: Mapping[str, Any]) -> list[str]:
    held = data["memory"]
    # The first tenth warms up: allocators, caches of prompts.
    later = [one["bytes"] for one in held if one["drafts"] >= held[-1]["drafts"] / 10]
    rows = [[f"{one['drafts']:,}", f"{one['bytes'] / 2**20:,.0f} MB"] for one in held[:: max(1, len(held) // 5)]]
    said = (
        f"Between {min(later) / 2**20:,.0f} and {max(later) / 2**20:,.0f} MB from the first tenth to the last of "
        f"{held[-1]['drafts']:,} drafts."
    )
    return [*_table(("drafts so far", "held"), rows), "", said]


def _kept(data: Mapping[str, Any]) -> list[str]:
    one = data["journal"]
    return [
        f"A draft of 384 x 384 pixels takes {1000 * one['thread']:.2g} ms of the thread that draws, "
        f"{1000 * one['cpu']:.3g} ms of the processors in all and {one['bytes'] / 1000:,.0f} kB (made-up photographs)."
    ]


TABLES: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "machine": _machine, "batch": _batch, "leaps": _leaps, "against": _against, "text": _text, "steps": _step,
    "prompts": _prompt, "journal": _kept, "memory": _held,
}  # fmt: skip


def _of_tokens(gpu: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What was measured of image tokens; gpu/results.json says more."""
    return [{**one, "size": str(one["size"]).upper()} for one in gpu if "image_token_ms" in one]


def _gpu(gpu: Sequence[Mapping[str, Any]]) -> list[str]:
    gpu = _of_tokens(gpu)
    if not gpu:
        return ["not measured"]
    kinds = list(dict.fromkeys(str(one["what"]) for one in gpu))
    keys = sorted({(str(one["size"]), int(one["images"])) for one in gpu})
    cells = {(str(one["size"]), int(one["images"]), str(one["what"])): one for one in gpu}

    def cell(one: Mapping[str, Any] | None) -> str:
        if one is None or one.get("image_token_ms") is None:
            return "not measured"
        share = one.get("share")
        return f"{one['image_token_ms']:.3g} ms" + ("" if share is None else f", share {_share(share)}")

    rows = [[size, images, *(cell(cells.get((size, images, kind))) for kind in kinds)] for size, images in keys]
    return _table(("size", "images at once", *kinds), rows)


def _large(gpu: Sequence[Mapping[str, Any]]) -> list[str]:
    """The arithmetic for GenEval and for a million prompts, at 7B on H100s."""
    ours = [one for one in _of_tokens(gpu) if one["size"] == "7B" and one["what"] == "whole pictures"]
    if not ours:
        return ["not measured"]
    best = min(ours, key=lambda one: one["image_token_ms"] / one["images"])
    tokens = TEXT_TOKENS + IMAGE_TOKENS
    draft = tokens * best["image_token_ms"] / 1000 / best["images"] + PIXELS
    hours = GENEVAL * CALLS * draft / 3600
    token, at_once = f"{best['image_token_ms']:.3g} ms", best["images"]
    days = 1e6 * draft / 86400
    rows = [
        ["an image token of 7B", f"{token}, {at_once} images at once ({best['what']})", "measured"],
        ["pixels", f"{1000 * PIXELS:.1f} ms an image", "measured once, 16 at once"],
        [
            "a draft",
            f"{tokens} tokens x {token} / {at_once} + pixels = {draft:.3f} s",
            f"reckoned: {TEXT_TOKENS} text tokens, each taken for an image token",
        ],
        [
            f"{GENEVAL} prompts x {CALLS} calls",
            f"{60 * hours:.0f} minutes on one GPU",
            "reckoned: no search stops early, critics wait for nothing",
        ],
        [f"1,000,000 prompts x {CALLS} calls", f"{days * CALLS:,.0f} GPU days", "reckoned: as above"],
        [
            f"1,000,000 prompts x {SOON} calls",
            f"{days * SOON:,.1f} GPU days, {days * SOON / 64:.2f} days on 64 GPUs",
            "reckoned: searches stop as early as the embedded model's, Ray costs nothing",
        ],
    ]
    return _table(("", "", "how that is known"), rows)


GPU_TABLES: dict[str, Callable[[Sequence[Mapping[str, Any]]], list[str]]] = {"gpu": _gpu, "large": _large}


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (head, *rows)]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]


def _seconds(one: Mapping[str, float]) -> str:
    return f"{one['wall']:.3g} ({one['cpu']:.3g}) s"


def _share(share: float | None) -> str:
    return "not known" if share is None else f"{share:.2f}".removeprefix("0")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--measure", action="store_true", help="measure on this machine first")
    parser.add_argument("--quick", action="store_true", help="with few tokens, prompts and drafts")
    parser.add_argument("--model", default="lab")
    parser.add_argument("--part", choices=PARTS, action="append", default=[], help="measure only this; repeatable")
    parser.add_argument("--check", action="store_true", help="only say whether the page says what its data say")
    options = parser.parse_args(arguments)
    if options.measure:
        found = measure(
            options.model, options.quick, lambda text: print(f"{text} ...", file=sys.stderr, flush=True), options.part
        )
        if options.part:
            found = {**json.loads(DATA.read_text()), **found}
        DATA.write_text(json.dumps(found, indent=1) + "\n")
    gpu = json.loads(GPU.read_text()) if GPU.exists() else []
    before = PAGE.read_text()
    after = filled(before, json.loads(DATA.read_text()), gpu)
    if options.check:
        if after != before:
            print(
                "docs/performance.md does not say what its data say; run python tools/performance.py", file=sys.stderr
            )
        return int(after != before)
    PAGE.write_text(after)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
