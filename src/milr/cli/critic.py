"""`milr critic ...`: critics by themselves."""

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
    progress_console,
    put_aside,
)
from milr.drafts import UserError

app = typer.Typer(
    name="critic",
    help="Critics by themselves: how far one can be trusted, and one as a service.",
    no_args_is_help=True,
)


@app.command("calibrate")
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
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the run, with calibration.json and the plot as SVG; or FILE.json, with the run beside it.",
            show_default="out/calibration-..., named by what is asked",
        ),
    ] = None,
    force_new: ForceNew = False,
    max_judge_cost: MaxJudgeCost = None,
    as_json: Json = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """How often critics prefer right pictures to wrong ones, and how often pictures of a score are right.

    Killed, it goes on where it stopped; critics that are named later judge the same drafts.
    """
    from milr.critics import naming
    from milr.critics.base import Place
    from milr.runs.planned import choose_tasks

    judges = [naming.find(name) for name in (*critics, against)]
    for one in judges:
        naming.settings_of(one)
    if len({one.name for one in judges}) < len(judges):
        raise UserError("A critic is named twice; name each once, and none that is also --against.")
    tasks = choose_tasks(benchmark, limit, prompt_seed, data=data)
    check_model(model)
    console = progress_console()
    with loading(model, console):
        from milr.disk import write_atomically
        from milr.reports.calibrate import asked, calibrate, reliability, to_markdown
        from milr.runs.verdicts import Verdicts, folder_for

    head = asked(model, judges[-1].name, tasks, drafts, seed)
    folder, file = folder_for(out, "calibration", head)
    place = Place(folder, max_judge_cost)
    if force_new:
        put_aside(folder, console)
    with Verdicts(folder, head) as record:
        if record.note:
            console.print(record.note, markup=False, highlight=False)
        with loading(model, console):
            from milr.backbones import load

            backbone = load(model, device=device, dtype=dtype)
            *tried, oracle = [naming.make(one, backbone, place) for one in judges]
        try:
            found = calibrate(
                backbone, tried, oracle, tasks, drafts, seed,
                lambda done, of: console.print(f"{done} of {of} drafts", highlight=False), record,
            )  # fmt: skip
        except KeyboardInterrupt:
            print(f"milr: stopped by Ctrl-C; the same command goes on from what is in {folder}.", file=sys.stderr)
            raise typer.Exit(130) from None
    if file is not None:
        write_atomically(file, (json.dumps(found, indent=2) + "\n").encode())
        write_atomically(file.with_suffix(".svg"), reliability(found).encode())
    console.print(f"verdicts are kept in {folder}", markup=False, highlight=False)
    print(json.dumps(found) if as_json else to_markdown(found))


@app.command("serve")
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
    dtype: Dtype = "auto",
) -> None:
    """Offer a critic over HTTP, to milr elsewhere and to other programs (docs/critics/service.md); Ctrl-C stops it."""
    check_model(model)
    with loading(name, progress_console()) as loaded:
        from milr.serve.critic import serve

        def tell(line: str) -> None:
            loaded()
            print(line, flush=True)

        serve(
            name, host=host, port=port, token_env=token_env, model=model, device=device, dtype=dtype,
            max_judge_cost=max_judge_cost, tell=tell,
        )  # fmt: skip
