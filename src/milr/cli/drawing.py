"""`milr generate` and `milr replay`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from milr.cli.options import Device, Dtype, Json, MaxJudgeCost, check_model, loading, one_line, progress_console
from milr.drafts import UserError

if TYPE_CHECKING:
    from milr.runs.generate import Result
    from milr.runs.output import Folder


def generate(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT...", help="What to draw; several are drawn side by side."),
    ] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(
            "--prompts", metavar="FILE", help="More prompts: text (one a line), JSONL, JSON, CSV or TSV; '-' is stdin."
        ),
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
    width: Annotated[
        str,
        typer.Option(
            metavar="N|auto",
            help="Drafts asked for at once, after the first. auto: as many as the model draws here in less than twice "
            "the time of one; measured once, then remembered.",
        ),
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Same seed, prompt, model and width: same drafts.")] = 0,
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
    no_mark: Annotated[
        bool, typer.Option("--no-mark", help="Leave out the XMP that says that a model made the pictures.")
    ] = False,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Draw PROMPT, look for a better image within the budget, and keep the best."""
    from milr.reading import read_entries
    from milr.runs.generate import Request, check_prompt, tasks_of

    written = read_entries(prompts_file) if prompts_file is not None else ()
    wanted = [*(prompts or ()), *(entry.prompt for entry in written)]
    if not wanted:
        raise UserError('Give at least one prompt, e.g. milr generate "two red foxes above a blue car".')
    for prompt in wanted:
        check_prompt(prompt)
    check_model(model)
    request = Request(
        search=search,
        preset=preset,
        settings=_settings(settings or ()),
        reward=reward,
        held_out=tuple(held_out or ()),
        budget=budget,
        threshold=threshold,
        seed=seed,
        width=_width(width),
    )
    _check_early(request)
    tasks = tasks_of(wanted)
    folders = [replace(folder, marks=not no_mark) for folder in _claim_folders(wanted, seed, out, overwrite)]
    by_task = dict(zip([task.id for task in tasks], folders, strict=True))
    try:
        _generate(request, tasks, by_task, model, device, dtype, as_json, quiet, max_judge_cost)
    finally:
        for folder in folders:
            folder.release()


def _generate(
    request: Any,
    tasks: Any,
    folders: dict[str, Folder],
    model: str,
    device: str,
    dtype: str,
    as_json: bool,
    quiet: bool,
    max_judge_cost: float | None,
) -> None:
    console = progress_console()
    with loading(model, console, quiet, plainly=True):
        from milr.backbones import load
        from milr.critics.base import Place
        from milr.runs.generate import prepare, run
        from milr.runs.live import Progressing

        plan = prepare(request)
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
    at_once = f", {result.width} at a time" if result.width > 1 else ""
    passes = f" in {cost.passes:,} passes" if cost.passes else ""  # not every backbone counts them
    passes += f", {cost.evaluations:,} evaluations" if cost.evaluations else ""
    print(
        f"{reward} after {cost.reward_calls} of {budget} calls{at_once}, {cost.decoded_tokens:,} decoded tokens"
        f"{passes}, {cost.all_seconds:.1f} s (drawing {cost.seconds:.1f}, judging {cost.critic_seconds:.1f}, searching "
        f"{cost.search_seconds:.1f}): {one_line(result.prompt)}"
    )
    print(f"  reasoning   {one_line(result.reasoning)}")
    for check in result.best.score.checks:
        if not check.passed:
            print(f"  missing     {one_line(check.text)}")
    for name, score in result.held_out.items():
        print(f"  held-out    {name}: {score.reason if score.value is None else f'{score.value:.2f}'}")
    if result.folder is not None:
        folder = Folder(result.folder)
        print(f"  image       {folder.image}")
        print(f"  page        {folder.page}")
        print(f"  trajectory  {folder.trajectory}")
        print(f"  drafts      {folder.path / 'drafts'} ({len(result.trajectory.drafts)})", flush=True)


def _width(text: str) -> int | str:
    if text != "auto" and not text.isdecimal():
        raise UserError(f"--width is auto or a whole number of drafts, e.g. 8, not '{one_line(text, 60)}'.")
    return text if text == "auto" else int(text)


def _settings(given: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign or not name.strip():
            raise UserError(f"--set takes NAME=VALUE, e.g. --set learning_rate=0.1, not '{one_line(text)}'.")
        found[name] = value
    return found


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


def replay(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that 'milr generate' wrote.")],
    model: Annotated[str | None, typer.Option(help="Model to draw with.", show_default="the recorded one")] = None,
    device: Device = "auto",
    dtype: Annotated[str | None, typer.Option(help="Number format.", show_default="the recorded one")] = None,
    as_json: Json = False,
) -> None:
    """Draw a recorded trajectory again and verify that the same tokens come out (exit code 1 if not).

    Where they do not, the recorded tokens are read by the model, to tell other rounding from another model.
    """
    from milr.runs.record import read_record

    record = read_record(folder)  # a bad file is found before torch is imported
    if model is not None:
        check_model(model)
    console = progress_console()
    with loading(model or str(record.model["name"]), console) as loaded:
        from milr.runs.replay import replay as replay_folder

        def tell(done: int, drafts: int) -> None:
            loaded()
            console.print(f"drew {done} of {drafts}", highlight=False)

        outcome = replay_folder(folder, model, device=device, dtype=dtype, on_draft=tell)
    if as_json:
        likelihood = outcome.likelihood
        by_rounding = None if likelihood is None else likelihood.is_of_this_model
        print(json.dumps({"same": outcome.is_same, "same_model": by_rounding, **asdict(outcome)}))
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
        if outcome.likelihood is not None:
            print(f"  {outcome.likelihood}")
    if not outcome.is_same:
        raise typer.Exit(1)
