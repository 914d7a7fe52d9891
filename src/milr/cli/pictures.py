"""`milr score` and `milr export`: pictures of others, and pictures for the scorers of others."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from milr.cli.options import (
    Device,
    Dtype,
    ForceNew,
    Json,
    MaxJudgeCost,
    check_model,
    loading,
    one_line,
    progress_console,
    put_aside,
)
from milr.drafts import UserError


def score(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Pictures that any generator made.")],
    benchmark: Annotated[
        str, typer.Option(help="Whose prompts they show: geneval, wise, wise-verified, t2i-compbench.")
    ],
    critic: Annotated[
        list[str] | None, typer.Option(help="Who judges them; repeatable.", show_default="the benchmark's own")
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="FILE", help="Your copy of the prompts (wise).")] = None,
    model: Annotated[str, typer.Option(help="Model of the critic 'self'.")] = "lab",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the run, with scores.json; or FILE.json, with the run beside it.",
            show_default="out/scores-..., named by what is asked",
        ),
    ] = None,
    force_new: ForceNew = False,
    max_judge_cost: MaxJudgeCost = None,
    as_json: Json = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Judge a folder of pictures in a benchmark's own layout; killed, it goes on where it stopped (see docs/runs.md).

    Exit code 1: some pictures could not be read, the others are judged.
    """
    from milr import registry
    from milr.benchmarks.base import number_of
    from milr.critics import naming
    from milr.critics.base import Place
    from milr.runs.planned import choose_tasks
    from milr.runs.score import FORMAT, LAYOUTS, describe_gaps, find_pictures, to_markdown
    from milr.runs.score import score as judge_pictures
    from milr.runs.verdicts import Verdicts, folder_for

    layout = "wise" if benchmark.startswith("wise") else benchmark
    if layout not in LAYOUTS:
        raise UserError(
            f"'{one_line(benchmark, 60)}' has no layout of its own; --benchmark is one of {', '.join(LAYOUTS)}."
        )
    part = registry.load(registry.find("benchmark", benchmark))
    judges = [naming.find(name) for name in critic or [part.REWARD]]
    for one in judges:
        naming.settings_of(one)
    tasks = choose_tasks(benchmark, data=data)
    pictures = find_pictures(folder, layout, tasks, getattr(part, "PROMPTS", None))
    check_model(model)
    asked = {"format": FORMAT, "benchmark": benchmark, "model": model}
    place, file = folder_for(out, "scores", {**asked, "folder": str(folder.resolve())})
    console = progress_console()
    if force_new:
        put_aside(place, console)
    with Verdicts(place, asked) as record:
        if record.note:
            console.print(record.note, markup=False, highlight=False)
        with loading(model, console):
            from milr.backbones import load

            backbone = load(model, device=device, dtype=dtype)
        try:
            found = judge_pictures(
                pictures,
                [naming.make(one, backbone, Place(place, max_judge_cost)) for one in judges],
                getattr(part, "overall", None),
                lambda done: console.print(f"{done} of {len(pictures.pictures)} pictures", highlight=False),
                record,
            )
        except KeyboardInterrupt:
            print(f"milr: stopped by Ctrl-C; the same command goes on from what is in {place}.", file=sys.stderr)
            raise typer.Exit(130) from None
    found = {"benchmark": benchmark, "number": number_of(part), "folder": str(folder), **found}
    text = json.dumps(found)
    if file is not None:
        from milr.disk import write_atomically

        write_atomically(file, text.encode() + b"\n")
    print(text if as_json else to_markdown(found))
    if not as_json:
        for line in describe_gaps(found):
            print(one_line(line, 800))
    console.print(f"verdicts are kept in {place}", markup=False, highlight=False)
    if any(one["is_fault"] for one in found["left_out"]):
        raise typer.Exit(1)


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of 'milr bench --out'.")],
    layout: Annotated[str, typer.Option(help="geneval, wise or t2i-compbench: what its official scorer reads.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="An empty or new folder.")],
    search: Annotated[
        str | None, typer.Option(help="Which method's pictures.", show_default="the only one there is")
    ] = None,
) -> None:
    """Write a run's returned pictures as another scorer wants them."""
    from milr.reports.export import export as write
    from milr.reports.reading import read_run
    from milr.runs.score import LAYOUTS

    if layout not in LAYOUTS:
        raise UserError(f"There is no layout '{one_line(layout, 60)}'; --layout is one of {', '.join(LAYOUTS)}.")
    reading = read_run(run)
    names = [method.name for method in reading.methods]
    if search is None and len(names) != 1:
        raise UserError(f"The run has {len(names)} methods; name one with --search: {', '.join(names)}.")
    count = write(reading, search or names[0], layout, out)
    print(f"written: {count} pictures in {out}")
