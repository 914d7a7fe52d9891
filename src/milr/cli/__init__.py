"""The command line: read the words, call one function, show what it says. Everything here is possible in Python too.

Results go to stdout, progress to stderr. Nothing heavy is imported before it is needed, so that help is instant; every
mistake of the user is one sentence and exit code 2. Each file beside this one holds a group of commands.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from milr.cli import comparing, critic, drawing, lab, parts, pictures, speed
from milr.drafts import UserError
from milr.version import __version__

app = typer.Typer(
    name="milr",
    help="Draw a picture, judge it, and search the model's latents for a better one.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    drawing.generate, drawing.replay, comparing.bench, comparing.runs, comparing.report,
    pictures.score, pictures.export, speed.speed,
):  # fmt: skip
    app.command()(command)
app.command("list")(parts.list_parts)
app.command()(parts.doctor)
app.add_typer(lab.app)
app.add_typer(critic.app)


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


if __name__ == "__main__":
    main()
