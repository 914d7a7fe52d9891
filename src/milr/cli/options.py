"""What commands share: options of one meaning, a model's name, a line that a terminal may be shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from milr.hub import DEVICE_HELP

if TYPE_CHECKING:
    from rich.console import Console

Device = Annotated[str, typer.Option(help=f"{DEVICE_HELP}.")]
MaxJudgeCost = Annotated[
    float | None,
    typer.Option(min=0, help="Stop when judges over HTTP have cost so many US dollars.", show_default="no limit"),
]
ForceNew = Annotated[bool, typer.Option("--force-new", help="Put a run that is there aside and begin anew.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout, and nothing else there.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]


def check_model(model: str) -> None:
    """Find a wrong name before torch is imported. Hub ids and folders are the loader's business."""
    from milr import registry

    if "/" not in model and not Path(model).is_dir():
        registry.find("model", model)


def progress_console() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False)


@contextmanager
def loading(model: str, console: Console, quiet: bool = False, plainly: bool = False) -> Iterator[Callable[[], None]]:
    """Say that a model is loaded, from before torch is imported until the block ends or what it gives is called.

    A sign that turns, on a terminal; anywhere else nothing, or with `plainly` one line that stays.
    """
    if not quiet and console.is_terminal:
        from rich.text import Text

        status = console.status(Text(f"loading {one_line(model)} ..."))
        with status:
            yield status.stop
        return
    if not quiet and plainly:
        console.print(f"loading {one_line(model)} ...", markup=False, highlight=False)
    yield lambda: None


def put_aside(folder: Path, console: Console) -> None:
    """Rename a run's folder for a new one, and say so (`--force-new`)."""
    from milr.runs import journal

    if (aside := journal.put_aside(folder)) is not None:
        console.print(f"the run that was in {folder} is now {aside}", markup=False, highlight=False)


def one_line(text: str, limit: int = 400) -> str:
    from milr.registry import shorten

    return shorten(text, limit)
