"""The command line: read the words, call one function, show what it says. Everything here is possible in Python too.

Results go to stdout, progress to stderr. Nothing heavy is imported before it is needed, so that help is instant; every
mistake of the user is one sentence and exit code 2.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from milr.drafts import UserError
from milr.version import __version__

if TYPE_CHECKING:
    from rich.console import Console

    from milr.runs.generate import Result
    from milr.runs.output import Folder
    from milr.runs.recipes import RecipeRun

app = typer.Typer(
    name="milr",
    help="Draw a picture, judge it, and search the model's latents for a better one.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
lab = typer.Typer(
    name="lab",
    help="The embedded world: its test prompts, its training, its sprites.",
    no_args_is_help=True,
)
app.add_typer(lab)
critic = typer.Typer(
    name="critic",
    help="Critics by themselves: how far one can be trusted, and one as a service.",
    no_args_is_help=True,
)
app.add_typer(critic)

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
MaxJudgeCost = Annotated[
    float | None,
    typer.Option(min=0, help="Stop when judges over HTTP have cost so many US dollars.", show_default="no limit"),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout, and nothing else there.")]


def main() -> NoReturn:
    """Run the command; a UserError is one sentence on stderr and exit code 2, Ctrl-C is 130."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a sign still shows the rest
    try:
        app()
    except UserError as error:
        print(f"milr: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("milr: stopped.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(0)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"milr {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Options of the program itself."""


# --- generate -------------------------------------------------------------------------------------------------


@app.command()
def generate(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT...", help="What to draw; several are drawn side by side."),
    ] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option("--prompts", metavar="FILE", help="More prompts, one a line ('-' is stdin)."),
    ] = None,
    model: Annotated[
        str,
        typer.Option(help="Model: a name of 'milr list models', a hub id (owner/name) or a checkpoint's folder."),
    ] = "lab",
    search: Annotated[str, typer.Option(help="Search strategy: a name of 'milr list searches'.")] = "repair",
    preset: Annotated[str | None, typer.Option(help="Named settings of the search, e.g. paper, official.")] = None,
    reward: Annotated[
        str | None,
        typer.Option(
            help="Critic whose score the search climbs.",
            show_default="scene for the model 'lab', self for others",
        ),
    ] = None,
    budget: Annotated[int, typer.Option(help="Reward calls, the first draft included.")] = 20,
    threshold: Annotated[float, typer.Option(help="Stop as soon as a draft's reward reaches this.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Same seed, prompt and model: same drafts.")] = 0,
    held_out: Annotated[
        list[str] | None,
        typer.Option("--held-out", metavar="CRITIC", help="Score the chosen image with this critic too; repeatable."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A setting of the search (see: milr list searches NAME); repeatable.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for the results; several prompts get one folder each in it.",
            show_default="milr-out/<prompt>-<seed>",
        ),
    ] = None,
    max_judge_cost: MaxJudgeCost = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result in --out.")] = False,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
) -> None:
    """Draw PROMPT, look for a better image within the budget, and keep the best."""
    from milr.runs.generate import Request, check_prompt, prepare, tasks_of

    wanted = [*(prompts or ()), *(_read_prompts(prompts_file) if prompts_file is not None else ())]
    if not wanted:
        raise UserError('Give at least one prompt, e.g. milr generate "two red foxes above a blue car".')
    for prompt in wanted:
        check_prompt(prompt)
    _check_model(model)
    request = Request(
        search=search,
        preset=preset,
        settings=_settings(settings or ()),
        reward=reward,
        held_out=tuple(held_out or ()),
        budget=budget,
        threshold=threshold,
        seed=seed,
    )
    _check_early(request)
    tasks = tasks_of(wanted)
    folders = _claim_folders(wanted, seed, out, overwrite)
    by_task = dict(zip([task.id for task in tasks], folders, strict=True))
    try:
        _generate(prepare(request), tasks, by_task, model, device, dtype, as_json, quiet, max_judge_cost)
    finally:
        for folder in folders:
            folder.release()


def _generate(
    plan: Any,
    tasks: Any,
    folders: dict[str, Folder],
    model: str,
    device: str,
    dtype: str,
    as_json: bool,
    quiet: bool,
    max_judge_cost: float | None,
) -> None:
    from milr.backbones import load
    from milr.critics.base import Place
    from milr.runs.generate import run
    from milr.runs.live import Progressing

    console = _progress_console()
    if not quiet:
        console.print(f"loading {_line(model)} ...", markup=False, highlight=False)
    backbone = load(model, device=device, dtype=dtype)
    noted: set[str] = set()
    with Progressing(console, len(tasks), plan.request.budget, quiet) as progress:

        def say(note: str) -> None:
            if note not in noted:
                progress.say(f"note: {note}")
                noted.add(note)

        try:
            for result in run(backbone, plan, tasks, folders, progress.hear, say, Place(max_judge_cost=max_judge_cost)):
                for note in result.notes:
                    say(note)
                with progress.paused():
                    if as_json:
                        print(json.dumps(result.to_json()), flush=True)
                    else:
                        _show(result, plan.request.budget)
        except KeyboardInterrupt:
            progress.live.stop()
            kept = [folder.path for folder in folders.values() if any(folder.path.glob("drafts/*.png"))]
            where = "nothing was drawn yet" if not kept else f"finished drafts are in {', '.join(map(str, kept))}"
            print(f"milr: stopped by Ctrl-C; {where}.", file=sys.stderr)
            raise typer.Exit(130) from None


def _show(result: Result, budget: int) -> None:
    from milr.runs.output import Folder

    reward = "not scored" if result.reward is None else f"reward {result.reward:.2f}"
    cost = result.trajectory.cost
    print(
        f"{reward} after {cost.reward_calls} of {budget} calls, {cost.decoded_tokens:,} decoded tokens, "
        f"{cost.seconds:.1f} s: {_line(result.prompt)}"
    )
    print(f"  reasoning   {_line(result.reasoning)}")
    for check in result.best.score.checks:
        if not check.passed:
            print(f"  missing     {_line(check.text)}")
    for name, score in result.held_out.items():
        print(f"  held-out    {name}: {score.reason if score.value is None else f'{score.value:.2f}'}")
    if result.folder is not None:
        folder = Folder(result.folder)
        print(f"  image       {folder.image}")
        print(f"  page        {folder.page}")
        print(f"  trajectory  {folder.trajectory}")
        print(f"  drafts      {folder.path / 'drafts'} ({len(result.trajectory.drafts)})", flush=True)


def _read_prompts(file: Path) -> list[str]:
    try:
        content = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        lines = content.decode("utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"Cannot read the prompts file {file} ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise UserError(f"The prompts file {file} is not UTF-8 text; save it as UTF-8.") from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise UserError(f"The prompts file {file} holds no prompt; write one a line.")
    return found


def _settings(given: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign or not name.strip():
            raise UserError(f"--set takes NAME=VALUE, e.g. --set learning_rate=0.1, not '{_line(text)}'.")
        found[name] = value
    return found


def _batch(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= 4096:
        raise UserError(f"--batch is auto or a whole number from 1 to 4096, not '{_line(text, 60)}'.")
    return int(text)


def _check_model(model: str) -> None:
    """Find a wrong name before torch is imported. Hub ids and folders are the loader's business."""
    from milr import registry

    if "/" not in model and not Path(model).is_dir():
        registry.find("model", model)


def _check_early(request: Any) -> None:
    """The names of a request, before a search (and with it torch) is imported."""
    from milr import registry
    from milr.critics import naming
    from milr.runs.generate import check_numbers

    check_numbers(request)
    registry.find("search", request.search)
    for critic in (request.reward, *request.held_out):
        if critic is not None:
            naming.find(critic)


def _claim_folders(prompts: list[str], seed: int, out: Path | None, overwrite: bool) -> list[Folder]:
    """One folder a prompt, all of them ours before anything is drawn."""
    from milr.runs.output import claim, claim_fresh, slug

    claimed: list[Folder] = []
    try:
        for number, prompt in enumerate(prompts, 1):
            if out is None:
                claimed.append(claim_fresh(prompt, seed))
            elif len(prompts) == 1:
                claimed.append(claim(out, overwrite))
            else:
                claimed.append(claim(out / f"{number:0{len(str(len(prompts)))}d}-{slug(prompt)}", overwrite))
    except BaseException:
        for folder in claimed:
            folder.release()
        raise
    return claimed


# --- replay, bench --------------------------------------------------------------------------------------------


@app.command()
def replay(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that 'milr generate' wrote.")],
    model: Annotated[str | None, typer.Option(help="Model to draw with.", show_default="the recorded one")] = None,
    device: Device = "auto",
    dtype: Annotated[str | None, typer.Option(help="Number format.", show_default="the recorded one")] = None,
    as_json: Json = False,
) -> None:
    """Draw a recorded trajectory again and verify that the same tokens come out (exit code 1 if not)."""
    from milr.runs.record import read_record

    read_record(folder)  # a bad file is found before torch is imported
    if model is not None:
        _check_model(model)
    from milr.runs.replay import replay as replay_folder

    console = _progress_console()
    outcome = replay_folder(
        folder,
        model,
        device=device,
        dtype=dtype,
        on_draft=lambda done, drafts: console.print(f"drew {done} of {drafts}", highlight=False),
    )
    if as_json:
        print(json.dumps({"same": outcome.is_same, **outcome.__dict__}))
    elif outcome.is_same:
        print(f"The same: all {outcome.drafts} drafts have the recorded tokens.")
    elif outcome.refused:
        print(f"Not drawn again: {outcome.refused}.")
    else:
        print(f"Different: {len(outcome.changed)} of {outcome.drafts} drafts have other tokens.")
    if not as_json:
        for line in outcome.changed:
            print(f"  {line}")
        for line in outcome.circumstances:
            print(f"  not as it was: {line}")
    if not outcome.is_same:
        raise typer.Exit(1)


@app.command()
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
    threshold: Annotated[float, typer.Option(help="A search stops, and counts as solved, at this reward.")] = 1.0,
    batch: Annotated[
        str, typer.Option(help="Searches side by side; changes no result. auto: what the model draws at once.")
    ] = "auto",
    recipe: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Run a table or figure of the paper (recipes/*.yaml); one folder a run."),
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
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
) -> None:
    """Searches side by side on the same prompts at equal cost, with intervals; killed, it goes on where it stopped."""
    from milr.runs.planned import Machine, PlannedRun, reward_of
    from milr.runs.recipes import RecipeRun, read_recipe

    chosen: tuple[RecipeRun, ...]
    if recipe is None:
        chosen = (
            RecipeRun(
                "", "", benchmark, tuple(search or ()), reward or reward_of(benchmark), tuple(held_out or ()),
                baseline, limit, tuple(category or ()), prompt_seed, budget, threshold, seed, seeds,
            ),
        )  # fmt: skip
        about = {}
    else:
        for name in ("benchmark", "search", "category", "prompt_seed", "seeds", "seed", "budget", "baseline", "reward",
                     "held_out", "threshold"):  # fmt: skip
            if str(context.get_parameter_source(name)).endswith("COMMANDLINE"):
                raise UserError(f"'{name.replace('_', '-')}' is in the recipe; leave it out, or leave --recipe out.")
        read = read_recipe(recipe)
        chosen = tuple(replace(run, limit=limit or run.limit) for run in read.runs_for(model))
        if not chosen:
            raise UserError(f"{recipe} has no run for the model '{_line(model, 60)}'.")
        about = {"recipe": recipe.name, "paper": read.paper, "expected": read.expected}
    _check_model(model)
    if executor not in ("local", "ray"):
        raise UserError(f"Unknown executor '{_line(executor, 60)}'; it is local or ray.")
    machine = Machine(model, device, dtype, _batch(batch), executor, workers, address, max_judge_cost)
    planned = [  # all is checked before a load
        PlannedRun(run, out / run.name, data=data, max_abstain=max_abstain, about=about) for run in chosen
    ]
    from milr.runs.live import Pace
    from milr.runs.report import to_markdown

    console = _progress_console()
    if force_new:
        from milr.runs.journal import put_aside

        for one in planned:
            if (aside := put_aside(one.folder)) is not None:
                console.print(f"the run that was in {one.folder} is now {aside}", markup=False, highlight=False)
    for one in planned:
        try:
            report = one.run(machine, Pace(console).hear)
        except KeyboardInterrupt:
            print(f"milr: stopped by Ctrl-C; the same command goes on from what is in {one.folder}.", file=sys.stderr)
            raise typer.Exit(130) from None
        print(to_markdown(report))
        print(f"written: {', '.join(str(one.folder / name) for name in ('report.md', 'report.json', 'curves.svg'))}")


@app.command()
def runs(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of 'milr bench --out'.")],
    as_json: Json = False,
) -> None:
    """Where runs stand: searches done and solved, drafts, pace, time left, what could not be scored."""
    from dataclasses import asdict

    from milr.runs.reading import describe, read_run

    for folder in folders:
        reading = read_run(folder)
        if as_json:
            standing = [asdict(one) for one in reading.standings.values()]
            found = {"run": str(folder), "drafts_a_second": reading.drafts_a_second,
                     "seconds_left": reading.seconds_left, "methods": standing}  # fmt: skip
            print(json.dumps(found))
            continue
        for line in describe(reading):
            print(_line(line, 400))


@app.command()
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
    from milr.runs.output import write_atomically
    from milr.runs.reading import read_run, report_of
    from milr.runs.report import to_markdown
    from milr.runs.report_page import render_report

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


@app.command()
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
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Keep every score, as JSON.")] = None,
    max_judge_cost: MaxJudgeCost = None,
    as_json: Json = False,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
) -> None:
    """Judge a folder of pictures in a benchmark's own layout (see docs/runs.md)."""
    from milr import registry
    from milr.critics import naming
    from milr.critics.base import Place
    from milr.runs.planned import choose_tasks
    from milr.runs.score import LAYOUTS, find_pictures, to_markdown
    from milr.runs.score import score as judge_pictures

    layout = "wise" if benchmark.startswith("wise") else benchmark
    if layout not in LAYOUTS:
        raise UserError(
            f"'{_line(benchmark, 60)}' has no layout of its own; --benchmark is one of {', '.join(LAYOUTS)}."
        )
    part = registry.load(registry.find("benchmark", benchmark))
    judges = [naming.find(name) for name in critic or [part.REWARD]]
    for one in judges:
        naming.settings_of(one)
    pictures = find_pictures(folder, layout, choose_tasks(benchmark, data=data))
    _check_model(model)
    from milr.backbones import load

    backbone = load(model, device=device, dtype=dtype)
    console = _progress_console()
    found = judge_pictures(
        pictures,
        [naming.make(one, backbone, Place(max_judge_cost=max_judge_cost)) for one in judges],
        getattr(part, "overall", None),
        lambda done: console.print(f"{done} of {len(pictures)} pictures", highlight=False),
    )
    text = json.dumps({"benchmark": benchmark, "folder": str(folder), **found})
    if out is not None:
        from milr.runs.output import write_atomically

        write_atomically(out, text.encode() + b"\n")
    print(text if as_json else to_markdown(found))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of 'milr bench --out'.")],
    layout: Annotated[str, typer.Option(help="geneval, wise or t2i-compbench: what its official scorer reads.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="An empty or new folder.")],
    search: Annotated[
        str | None, typer.Option(help="Which method's pictures.", show_default="the only one there is")
    ] = None,
) -> None:
    """Write a run's returned pictures as another scorer wants them."""
    from milr.runs.reading import read_run
    from milr.runs.score import LAYOUTS
    from milr.runs.score import export as write

    if layout not in LAYOUTS:
        raise UserError(f"There is no layout '{_line(layout, 60)}'; --layout is one of {', '.join(LAYOUTS)}.")
    reading = read_run(run)
    names = [method.name for method in reading.methods]
    if search is None and len(names) != 1:
        raise UserError(f"The run has {len(names)} methods; name one with --search: {', '.join(names)}.")
    count = write(reading, search or names[0], layout, out)
    print(f"written: {count} pictures in {out}")


# --- list, doctor ---------------------------------------------------------------------------------------------


@app.command("list")
def list_parts(
    kind: Annotated[
        str | None, typer.Argument(help="models, searches, critics or benchmarks.", show_default="all")
    ] = None,
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="With 'searches' or 'critics': show the settings of this one."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Every model, search, critic and benchmark with one line each, those of other packages too."""
    from milr import registry

    if kind is not None and kind not in registry.PLURALS.values():
        raise UserError(
            f"There are no '{_line(kind, 60)}'.{registry.did_you_mean(kind, registry.PLURALS.values())} "
            f"Name one of {', '.join(registry.PLURALS.values())}, or none for all."
        )
    if name is not None:
        _list_settings(str(kind), name)
        return
    for one, plural in registry.PLURALS.items():
        if kind not in (None, plural):
            continue
        found = registry.parts(one)
        if as_json:
            for part in found:
                said = {"kind": one, "name": part.name, "summary": part.summary, "presets": part.presets}
                print(json.dumps({**said, "package": part.origin or "milr"}))
            continue
        print(plural)
        width = max([len(part.name) for part in found], default=0)
        for part in found:
            origin = f" [{part.origin}]" if part.origin else ""
            print(f"  {part.name:{width}}  {part.summary}{origin}")
            if part.presets:
                print(f"  {'':{width}}  presets: {', '.join(part.presets)}")
        if not found:
            print("  none")


def _list_settings(kind: str, name: str) -> None:
    from milr import registry

    if kind not in ("searches", "critics"):
        raise UserError(f"Only searches and critics have settings to list; 'milr list {kind}' shows all {kind}.")
    part = registry.find("search" if kind == "searches" else "critic", name)
    module = registry.load(part)
    from milr.settings import options

    if not hasattr(module, "SETTINGS"):
        print(f"{name} has no settings")
        return
    written = "--set NAME=VALUE" if kind == "searches" else f"{name},NAME=VALUE,..."
    word = f"; {name}:WORD sets {part.takes}" if part.takes else ""
    print(f"settings of {name} ({written}{word}), with their defaults")
    for option in options(module.SETTINGS):
        choices = f" One of: {', '.join(option.choices)}." if option.choices else ""
        print(f"  {option.name}={option.default}\n      {option.meaning}.{choices}")


@app.command()
def doctor(
    critic: Annotated[
        list[str] | None,
        typer.Option(help="Only this critic: are its weights here, how large is the download? Repeatable."),
    ] = None,
    device: Device = "auto",
) -> None:
    """What this installation is and what works in it (exit code 1 if something essential does not)."""
    from milr.runs.doctor import examine, examine_critic

    section, broken = "", False
    for finding in [examine_critic(name) for name in critic] if critic else examine(device):
        if finding.section != section:
            section = finding.section
            print(section)
        mark = {True: "ok  ", False: "FAIL" if finding.essential else "no  ", None: "    "}[finding.works]
        print(f"  {mark} {finding.subject:16} {_line(finding.text, 300)}", flush=True)
        broken |= finding.essential and finding.works is False
    if broken:
        raise typer.Exit(1)


# --- critic ---------------------------------------------------------------------------------------------------


@critic.command("calibrate")
def critic_calibrate(
    critics: Annotated[list[str], typer.Argument(metavar="CRITIC...", help="Critics, as --reward takes them.")],
    against: Annotated[str, typer.Option(help="The oracle: a picture is right where it says 1.")] = "scene",
    benchmark: Annotated[str, typer.Option(help="Whose prompts.")] = "scenes",
    limit: Annotated[int, typer.Option(min=1, help="Prompts.")] = 500,
    drafts: Annotated[int, typer.Option(min=1, max=1000, help="Drafts of each prompt.")] = 4,
    prompt_seed: Annotated[int | None, typer.Option(help="Fresh prompts of this seed.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the drafts.")] = 0,
    data: Annotated[Path | None, typer.Option(metavar="FILE", help="Your copy of the prompts (wise).")] = None,
    model: Annotated[str, typer.Option(help="Model that draws.")] = "lab",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Keep the numbers, and beside them the plot as SVG.")
    ] = None,
    max_judge_cost: MaxJudgeCost = None,
    as_json: Json = False,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
) -> None:
    """How often critics prefer right pictures to wrong ones, and how often pictures of a score are right."""
    from milr.critics import naming
    from milr.critics.base import Place
    from milr.runs.planned import choose_tasks

    judges = [naming.find(name) for name in (*critics, against)]
    for one in judges:
        naming.settings_of(one)
    if len({one.name for one in judges}) < len(judges):
        raise UserError("A critic is named twice; name each once, and none that is also --against.")
    tasks = choose_tasks(benchmark, limit, prompt_seed, data=data)
    _check_model(model)
    from milr.backbones import load
    from milr.runs.calibrate import calibrate, reliability, to_markdown
    from milr.runs.output import write_atomically

    console, place = _progress_console(), Place(max_judge_cost=max_judge_cost)
    backbone = load(model, device=device, dtype=dtype)
    *asked, oracle = [naming.make(one, backbone, place) for one in judges]
    found = calibrate(
        backbone, asked, oracle, tasks, drafts, seed,
        lambda done, of: console.print(f"{done} of {of} drafts", highlight=False),
    )  # fmt: skip
    if out is not None:
        write_atomically(out, (json.dumps(found, indent=2) + "\n").encode())
        write_atomically(out.with_suffix(".svg"), reliability(found).encode())
    print(json.dumps(found) if as_json else to_markdown(found))


@critic.command("serve")
def critic_serve(
    name: Annotated[str, typer.Argument(metavar="CRITIC", help="A critic, as --reward takes it.")],
    port: Annotated[int, typer.Option(help="0 takes any free one.")] = 9000,
    host: Annotated[str, typer.Option(help="Where to listen; beyond loopback a token is needed.")] = "127.0.0.1",
    token_env: Annotated[
        str, typer.Option(metavar="VARIABLE", help="Environment variable with the token that clients must send.")
    ] = "MILR_CRITIC_TOKEN",
    model: Annotated[str, typer.Option(help="Model of the critic 'self'.")] = "lab",
    max_judge_cost: MaxJudgeCost = None,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
) -> None:
    """Offer a critic over HTTP, to milr elsewhere and to other programs (docs/critics/service.md); Ctrl-C stops it."""
    _check_model(model)
    from milr.runs.service import serve

    serve(
        name, host=host, port=port, token_env=token_env, model=model, device=device, dtype=dtype,
        max_judge_cost=max_judge_cost, tell=lambda line: print(line, flush=True),
    )  # fmt: skip


# --- lab ------------------------------------------------------------------------------------------------------


@lab.command("prompts")
def lab_prompts(
    n: Annotated[int, typer.Option("--n", min=1, max=10_000, help="How many.")] = 20,
    seed: Annotated[int, typer.Option(help="The same seed gives the same prompts.")] = 0,
    category: Annotated[
        list[str] | None, typer.Option(help="Only this category; repeatable.", show_default="all, in turn")
    ] = None,
    as_json: Json = False,
) -> None:
    """Test prompts of the embedded world, none of them seen in training, with the checks that decide them."""
    from milr.lab.curriculum import CATEGORIES, prompt_records
    from milr.runs.planned import check_categories

    check_categories(category or (), CATEGORIES)
    for record in prompt_records(n, seed, tuple(category or CATEGORIES)):
        print(json.dumps(record) if as_json else f"{record['category']:12} {record['prompt']}")


@lab.command("train")
def lab_train(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of checkpoint, card, curves and samples.")],
    vq_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the image tokenizer.", show_default="recipe")
    ] = None,
    eye_steps: Annotated[int | None, typer.Option(min=1, help="Steps of the eye.", show_default="recipe")] = None,
    lm_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the language model.", show_default="recipe")
    ] = None,
    draw_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of its drawing stage.", show_default="recipe")
    ] = None,
    ask_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of its stage of questions.", show_default="recipe")
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Test prompts of the card.")] = 600,
    seed: Annotated[int, typer.Option(help="Seed of weights and data.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="Processor threads; 0 is all.")] = 0,
    device: Device = "auto",
) -> None:
    """Train the embedded model from scratch; killed, the same command goes on where it stopped."""
    from milr.lab.train import Recipe, train

    asked = {
        "vq_steps": vq_steps, "eye_steps": eye_steps, "lm_steps": lm_steps, "draw_steps": draw_steps,
        "ask_steps": ask_steps,
    }  # fmt: skip
    recipe = Recipe(**{name: steps for name, steps in asked.items() if steps is not None}, seed=seed, threads=threads)
    print(train(out, recipe, device, tell=lambda line: print(line, file=sys.stderr, flush=True), prompts=prompts))


@lab.command("train-critic")
def lab_train_critic(
    out: Annotated[Path, typer.Option(metavar="FILE", help="The head to write (.safetensors).")],
    model: Annotated[str, typer.Option(help="The model on whose states it stands, and that draws.")] = "lab",
    prompts: Annotated[int, typer.Option(min=5, help="Prompts of the training side.")] = 2000,
    drafts: Annotated[int, typer.Option(min=1, help="Drafts of each.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of prompts and drafts.")] = 1,
    device: Device = "auto",
) -> None:
    """Fit the critic 'learned' to the oracle's verdicts on drafts; killed, the same command goes on."""
    if out.exists():
        raise UserError(f"{out} exists; name another file with --out.")
    if out.suffix != ".safetensors":
        raise UserError(f"The head is a .safetensors file; write --out {out.name}.safetensors.")
    _check_model(model)
    from milr.backbones import load
    from milr.lab.train_critic import CriticRecipe, train_critic

    card = train_critic(
        load(model, device=device), out, CriticRecipe(prompts, drafts, seed),
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )  # fmt: skip
    print(json.dumps(card))


@lab.command("sheet")
def lab_sheet(
    out: Annotated[Path, typer.Option(metavar="FILE", help="The picture to write (PNG).")] = Path("sheet.png"),
    model: Annotated[str, typer.Option(help="'lab' or the folder of a lab checkpoint.")] = "lab",
    n: Annotated[int, typer.Option("--n", min=1, max=1000, help="Prompts.")] = 32,
    seed: Annotated[int, typer.Option(help="Seed of the prompts.")] = 0,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.", show_default="the model's own")] = None,
) -> None:
    """One draft each of some test prompts on one sheet: green where every check passes, red where not."""
    if out.exists():
        raise UserError(f"{out} exists; name another file with --out.")
    _check_model(model)
    from milr.lab.train import sheet

    print(sheet(model, out, n, seed, guidance))


# --- Small things ---------------------------------------------------------------------------------------------


def _progress_console() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def _line(text: str, limit: int = 400) -> str:
    from milr.registry import shorten

    return shorten(text, limit)


if __name__ == "__main__":
    main()
