"""`milr bench`, `milr runs` and `milr report`: searches side by side, and what is told of them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from milr.cli.options import (
    Device,
    Dtype,
    Json,
    MaxJudgeCost,
    check_model,
    loading,
    one_line,
    progress_console,
    put_aside,
)
from milr.drafts import UserError

if TYPE_CHECKING:
    from milr.runs.recipes import RecipeRun


def bench(
    context: typer.Context,
    benchmark: Annotated[str, typer.Argument(metavar="BENCHMARK", help="A name of 'milr list benchmarks'.")] = "scenes",
    search: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD",
            help="SEARCH, SEARCH:PRESET, or LABEL=SEARCH:PRESET,SETTING=VALUE; repeatable.",
            show_default="those of the README's table",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, max=100_000, help="Prompts, evenly over the categories.", show_default="all of the set"),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Your copy of the prompts (wise), your own, or a pack (custom).")
    ] = None,
    category: Annotated[
        list[str] | None, typer.Option(help="Only this category; repeatable.", show_default="all, in turn")
    ] = None,
    prompt_seed: Annotated[
        int | None, typer.Option(help="Fresh prompts of this seed.", show_default="scenes: the fixed 600")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Searches of each prompt.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the searches.")] = 0,
    budget: Annotated[int, typer.Option(min=1, max=10_000, help="Reward calls of each search.")] = 20,
    baseline: Annotated[
        str | None,
        typer.Option(help="The method that the others are paired with.", show_default="best-of-n, else the first"),
    ] = None,
    model: Annotated[str, typer.Option(help="Model.")] = "lab",
    reward: Annotated[
        str | None,
        typer.Option(help="Critic that is climbed and that decides.", show_default="the benchmark's own, else self"),
    ] = None,
    held_out: Annotated[
        list[str] | None,
        typer.Option(
            "--held-out", metavar="CRITIC", help="Judges the returned drafts, unseen by the search; repeatable."
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="A search stops, and is a success, at this reward.", show_default="1, or the benchmark's"),
    ] = None,
    batch: Annotated[
        str, typer.Option(help="Searches side by side; changes no result. auto: what the model draws at once.")
    ] = "auto",
    recipe: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Run a table or figure of the paper (recipes/*.yaml); one folder a run."),
    ] = None,
    allow_key: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-key",
            metavar="NAME",
            help="Environment variable that the recipe may read and send besides *_API_KEY and MILR_*; repeatable.",
        ),
    ] = None,
    executor: Annotated[
        str, typer.Option(help="local, or ray: every device of a Ray cluster (pip install 'milr[ray]').")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Workers of ray.", show_default="one a GPU, else one a CPU")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Of the Ray cluster; local: a new one here.", show_default="RAY_ADDRESS, else this machine"),
    ] = None,
    max_judge_cost: MaxJudgeCost = None,
    max_abstain: Annotated[
        float, typer.Option(min=0, max=1, help="Share of unscored drafts above which the report warns.")
    ] = 0.05,
    force_new: Annotated[
        bool, typer.Option("--force-new", help="Put a run that is in --out aside and begin anew.")
    ] = False,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the run: journal, images, report.")] = Path(
        "out/bench"
    ),
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Searches side by side on the same prompts at equal cost, with intervals; killed, it goes on where it stopped."""
    from milr.runs.planned import Machine, PlannedRun, reward_of, tell_reckoned, threshold_of
    from milr.runs.recipes import RecipeRun, read_recipe

    chosen: tuple[RecipeRun, ...]
    if recipe is None:
        chosen = (
            RecipeRun(
                "", "", benchmark, tuple(search or ()), reward or reward_of(benchmark), tuple(held_out or ()),
                baseline, limit, tuple(category or ()), prompt_seed, budget,
                threshold_of(benchmark) if threshold is None else threshold, seed, seeds,
            ),
        )  # fmt: skip
        about = {}
    else:
        for name in ("benchmark", "search", "category", "prompt_seed", "seeds", "seed", "budget", "baseline", "reward",
                     "held_out", "threshold"):  # fmt: skip
            if str(context.get_parameter_source(name)).endswith("COMMANDLINE"):
                raise UserError(f"'{name.replace('_', '-')}' is in the recipe; leave it out, or leave --recipe out.")
        read = read_recipe(recipe, allow_key or ())
        chosen = tuple(replace(run, limit=limit or run.limit) for run in read.runs_for(model))
        if not chosen:
            raise UserError(f"{recipe} has no run for the model '{one_line(model, 60)}'.")
        about = {"recipe": recipe.name, "paper": read.paper, "expected": read.expected}
    check_model(model)
    if executor not in ("local", "ray"):
        raise UserError(f"Unknown executor '{one_line(executor, 60)}'; it is local or ray.")
    machine = Machine(model, device, dtype, _batch(batch), executor, workers, address, max_judge_cost)
    console = progress_console()
    with loading(model, console):
        planned = [  # all is checked before a load
            PlannedRun(run, out / run.name, data=data, max_abstain=max_abstain, about=about) for run in chosen
        ]
        from milr.reports.reading import write_report
        from milr.reports.report import to_markdown
        from milr.runs.live import Pace
    for note in dict.fromkeys(note for one in planned for note in one.notes):
        console.print(f"{note}.", markup=False, soft_wrap=True)
    if recipe is not None:
        for line in tell_reckoned(planned, machine):
            console.print(line, markup=False, soft_wrap=True)
    if force_new:
        for one in planned:
            put_aside(one.folder, console)
    for one in planned:
        try:
            one.run(
                machine, Pace(console).hear, lambda text: console.print(text, markup=False, highlight=False),
                loading(model, console),
            )  # fmt: skip
        except KeyboardInterrupt:
            print(f"milr: stopped by Ctrl-C; the same command goes on from what is in {one.folder}.", file=sys.stderr)
            raise typer.Exit(130) from None
        print(to_markdown(write_report(one.folder)))
        print(f"written: {', '.join(str(one.folder / name) for name in ('report.md', 'report.json', 'curves.svg'))}")


def _batch(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= 4096:
        raise UserError(f"--batch is auto or a whole number from 1 to 4096, not '{one_line(text, 60)}'.")
    return int(text)


def runs(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of 'milr bench --out'.")],
    as_json: Json = False,
) -> None:
    """Where runs stand: searches done and at their threshold, drafts, pace, time left, what could not be scored."""
    from dataclasses import asdict

    from milr.reports.reading import describe, read_run

    for folder in folders:
        reading = read_run(folder)
        if as_json:
            standing = [asdict(one) for one in reading.standings.values()]
            found = {"run": str(folder), "drafts_a_second": reading.drafts_a_second,
                     "seconds_left": reading.seconds_left, "methods": standing}  # fmt: skip
            print(json.dumps(found))
            continue
        for line in describe(reading):
            print(one_line(line, 400))


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Finished runs on the same prompts.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one self-contained page, e.g. report.html.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Tables on stdout (the default without --out).")] = False,
    as_json: Json = False,
    baseline: Annotated[
        str | None,
        typer.Option(help="The method that the others are paired with.", show_default="the run's own"),
    ] = None,
) -> None:
    """Who won, by how much, at what cost, and how sure that is: from the journals of runs."""
    from milr.disk import write_atomically
    from milr.reports.reading import read_run, report_of
    from milr.reports.report import to_markdown
    from milr.reports.report_page import render_report

    if out is not None and out.is_dir():
        raise UserError(f"{out} is a folder; name a file, e.g. --out {out / 'report.html'}.")
    readings = [read_run(folder) for folder in folders]
    found = report_of(readings, baseline)
    if out is not None:
        write_atomically(out, render_report(found, readings).encode())
        print(f"written: {out}", file=sys.stderr)
    if as_json:
        print(json.dumps(found))
    elif markdown or out is None:
        print(to_markdown(found))
