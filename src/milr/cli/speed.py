"""`milr speed`: how fast a model draws on this machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from milr.cli.options import Device, Dtype, Json, check_model, progress_console

if TYPE_CHECKING:
    from milr.backbones.speed import Against, Leaps, Speed, Stages

BENCHMARK, BUDGET = "geneval", 20  # what the last line reckons
BUSY = 1.2  # times the CPU seconds: a quiet processor takes no longer than that


def speed(
    model: Annotated[
        str, typer.Argument(help="A name of 'milr list models', a hub id (owner/name) or a checkpoint's folder.")
    ] = "lab",
    images: Annotated[
        int | None,
        typer.Option(help="Images drawn at once, beside one alone.", show_default="a batch that suits the device"),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            help="Draw only so many tokens of each image and reckon the rest.",
            show_default="as many as a few seconds allow",
        ),
    ] = None,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Seconds an image here, alone and in a batch, against the memory's limit, transformers and a naive loop."""
    import time

    check_model(model)
    console = progress_console()

    def say(text: str) -> None:
        if not quiet:
            console.print(f"{text} ...", markup=False)

    say(f"loading {model}")
    from milr.backbones import load
    from milr.backbones.speed import measure, to_json
    from milr.runs.planned import choose_tasks

    began = time.perf_counter()
    backbone = load(model, device=device, dtype=dtype)
    found = measure(backbone, images, tokens, load_seconds=time.perf_counter() - began, say=say)
    drafts = len(choose_tasks(BENCHMARK)) * BUDGET
    if as_json:
        seconds = found.draft(found.best).wall * drafts
        print(json.dumps({**to_json(found), "bench": {"benchmark": BENCHMARK, "drafts": drafts, "seconds": seconds}}))
        return
    for line in _lines(found, drafts):
        print(line)


def _lines(found: Speed, drafts: int) -> list[str]:
    from milr.backbones.speed import against
    from milr.runs.planned import in_hours

    threads = ""
    if found.device.startswith("cpu"):
        threads = f", {found.threads} thread{'s' if found.threads > 1 else ''}"
    read = "wrote" if found.text_ended else "is reckoned with"
    drawn = "all" if found.tokens == found.image_tokens else f"{found.tokens} in the middle"
    lines = [
        f"{found.model} in {found.dtype} on {found.device} ({found.device_name}{threads}), loaded in "
        f"{found.load_seconds:.1f} s, {found.peak_bytes / 1e9:.1f} GB at the peak",
        f"a copy moves {found.copy_bytes_per_second / 1e9:,.1f} GB/s (read and written); shares are of that, for "
        "weights and cache read",
        f"a draft {read} {found.text_tokens} text tokens and has {found.image_tokens} image tokens, of which {drawn} "
        "were drawn",
        "",
        _row("wall (CPU) seconds", [f"{one.images} at once" for one in found.stages]),
    ]
    drafted = [found.draft(one) for one in found.stages]
    lines.append(_row("one draft", [f"{one.wall:.3g} ({one.cpu:.3g})" for one in drafted]))
    lines.append(_row("drafts a second", [f"{1 / one.wall:.3g}" for one in drafted]))
    for name, title in (
        ("prefill", "prompts (prefill)"),
        ("text_token", "a text token"),
        ("image_token", "an image token"),
        ("pixels", "pixels"),
    ):
        lines.append(_row(f"  {title}", [_stage(one, name) for one in found.stages]))
    lines += ["  (of all images of the batch together)", ""]
    lines += [_leap(one) for one in found.leaps]
    lines += [""] * bool(found.leaps)
    lines += [_against(one) for one in against(found)]
    lines.append(f"drafts of one prompt that are drawn in less than twice the time of one: {found.width}")
    alone = drafted[0]
    if found.device.startswith("cpu") and alone.wall > BUSY * alone.cpu:
        lines.append("other work ran on this machine meanwhile: compare the CPU seconds")
    best = found.best
    hours = found.draft(best).wall * drafts / 3600
    lines += [
        "",
        f"bench {BENCHMARK} --budget {BUDGET}: {drafts:,} drafts for each search, at most {in_hours(hours)} of drawing "
        f"in batches of {best.images}; less as searches stop early, more by what the critic takes",
    ]
    return lines


def _row(title: str, cells: list[str]) -> str:
    return f"{title:24}" + "".join(f"{cell:>30}" for cell in cells)


def _stage(stages: Stages, name: str) -> str:
    spent = getattr(stages, name)
    share = getattr(stages, name.replace("_token", "_share")) if name.endswith("_token") else None
    told = "" if share is None else f", share {share:.2f}"
    return f"{spent.wall:.3g} ({spent.cpu:.3g}){told}"


def _leap(one: Leaps) -> str:
    batch = "alone" if one.images == 1 else f"of {one.images} at once"
    which = "first drafts" if one.drafts == "first" else "drafts after three others of the prompt"
    return (
        f"several tokens a pass, {which} {batch}: {one.image_passes:.1f} passes for {one.image_tokens} image tokens, "
        f"{one.text_passes:.1f} for {one.text_tokens:.1f} of a text; {one.draft.wall:.3g} ({one.draft.cpu:.3g}) s a "
        f"draft where one token a pass takes {one.without.wall:.3g} ({one.without.cpu:.3g})"
    )


def _against(one: Against) -> str:
    batch = "one image" if one.images == 1 else f"{one.images} at once"
    if one.wall is None:
        return f"against {one.rival}, {batch}: not measured ({one.note or 'too quick'})"
    cpu = "" if one.cpu is None else f", {one.cpu:.1f}x in CPU seconds"
    return f"against {one.rival}, {batch}: {one.what} {one.wall:.1f}x as fast{cpu}"
