"""`milr lab ...`: the embedded world."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from milr.cli.options import Device, Json, check_model, loading, progress_console
from milr.drafts import UserError

app = typer.Typer(
    name="lab",
    help="The embedded world: its test prompts, its training, its sprites.",
    no_args_is_help=True,
)


@app.command("prompts")
def lab_prompts(
    n: Annotated[int, typer.Option("--n", min=1, max=10_000, help="How many.")] = 20,
    seed: Annotated[int, typer.Option(help="The same seed gives the same prompts.")] = 0,
    category: Annotated[
        list[str] | None, typer.Option(help="Only this category; repeatable.", show_default="all, in turn")
    ] = None,
    as_json: Json = False,
) -> None:
    """Test prompts of the embedded world, none of them read or drawn in training, with the checks that decide them."""
    from milr.lab.curriculum import CATEGORIES, prompt_records
    from milr.runs.planned import check_categories

    check_categories(category or (), CATEGORIES)
    for record in prompt_records(n, seed, tuple(category or CATEGORIES)):
        print(json.dumps(record) if as_json else f"{record['category']:12} {record['prompt']}")


@app.command("train")
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
    with loading("torch", progress_console()):
        from milr.lab.train import Recipe, train

    asked = {
        "vq_steps": vq_steps, "eye_steps": eye_steps, "lm_steps": lm_steps, "draw_steps": draw_steps,
        "ask_steps": ask_steps,
    }  # fmt: skip
    recipe = Recipe(**{name: steps for name, steps in asked.items() if steps is not None}, seed=seed, threads=threads)
    print(train(out, recipe, device, tell=lambda line: print(line, file=sys.stderr, flush=True), prompts=prompts))


@app.command("train-flow")
def lab_train_flow(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of pipeline, card, curves and samples.")],
    kl_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the autoencoder.", show_default="recipe")
    ] = None,
    flow_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the transformer.", show_default="recipe")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Pages a step.", show_default="recipe")] = None,
    small: Annotated[bool, typer.Option("--small", help="Two steps of everything, to see that it runs.")] = False,
    prompts: Annotated[
        int | None, typer.Option(min=1, help="Test prompts of the card.", show_default="600; small 2")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and data.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="Processor threads; 0 is all.")] = 0,
    device: Device = "auto",
) -> None:
    """Train the embedded flow model from scratch; killed, the same command goes on where it stopped."""
    with loading("torch", progress_console()):
        from milr.lab.train_flow import SMALL, FlowRecipe, train_flow

    asked = {"kl_steps": kl_steps, "flow_steps": flow_steps, "batch": batch}
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    recipe = replace(SMALL if small else FlowRecipe(), seed=seed, threads=threads, **given)
    of = prompts or (2 if small else 600)
    tell = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    print(train_flow(out, recipe, device, tell, prompts=of, pages=min(300, of)))


@app.command("train-critic")
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
    check_model(model)
    with loading(model, progress_console()):
        from milr.backbones import load
        from milr.lab.train_critic import CriticRecipe, train_critic

        backbone = load(model, device=device)
    card = train_critic(
        backbone, out, CriticRecipe(prompts, drafts, seed),
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )  # fmt: skip
    print(json.dumps(card))


@app.command("sheet")
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
    check_model(model)
    with loading(f"{model} and drawing {n} prompts", progress_console()):
        from milr.lab.train import sheet

        made = sheet(model, out, n, seed, guidance)
    print(made)
