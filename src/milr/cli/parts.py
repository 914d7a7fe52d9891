"""`milr list` and `milr doctor`: what there is, and what works here."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from milr.cli.options import Device, Json, one_line
from milr.drafts import UserError


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
            f"There are no '{one_line(kind, 60)}'.{registry.did_you_mean(kind, registry.PLURALS.values())} "
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


def doctor(
    critic: Annotated[
        list[str] | None,
        typer.Option(help="Only this critic: are its weights here, how large is the download? Repeatable."),
    ] = None,
    device: Device = "auto",
) -> None:
    """What this installation is and what works in it (exit code 1 if something essential does not)."""
    from milr.doctor import examine, examine_critic

    section, broken = "", False
    for finding in [examine_critic(name) for name in critic] if critic else examine(device):
        if finding.section != section:
            section = finding.section
            print(section)
        mark = {True: "ok  ", False: "FAIL" if finding.essential else "no  ", None: "    "}[finding.works]
        print(f"  {mark} {finding.subject:16} {one_line(finding.text, 300)}", flush=True)
        broken |= finding.essential and finding.works is False
    if broken:
        raise typer.Exit(1)
