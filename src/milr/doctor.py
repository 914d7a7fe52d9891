"""What this installation is and what works in it. Every question may fail alone; none may stop the others."""

from __future__ import annotations

import importlib
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from milr import hub, network, registry, threads
from milr.drafts import UserError
from milr.imports import lightly
from milr.version import __version__

PACKAGES = (
    "torch",
    "transformers",
    "safetensors",
    "huggingface_hub",
    "numpy",
    "pillow",
    "typer",
    "rich",
    "jinja2",
)


@dataclass(frozen=True)
class Finding:
    """One line of the report. `works` is None where there is nothing to be right or wrong."""

    section: str
    subject: str
    text: str
    works: bool | None = None
    essential: bool = False


def examine(device: str = "auto") -> Iterator[Finding]:
    """Every finding, as it is made."""
    yield Finding("versions", "milr", __version__)
    yield Finding("versions", "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in PACKAGES:
        try:
            yield Finding("versions", package, metadata.version(package), True)
        except metadata.PackageNotFoundError:
            yield Finding("versions", package, "not installed; install milr again", False, essential=True)
    yield from _asked("machine", "processors", _processors)
    yield from _asked("machine", "threads", _threads)
    yield from _asked("machine", "memory", _memory)
    yield from _asked("machine", "devices", _devices)
    yield from _asked("machine", "network", _network)
    yield from _asked("models", "cache", _cache)
    for part in registry.parts("model"):
        yield from _model(part, device)
    for kind in registry.KINDS[1:]:
        for part in registry.parts(kind):
            yield from _part(part)
    yield from _asked("check", "lab", lambda: _draw_once(device), essential=True)


def examine_critic(name: str) -> Finding:
    """One line on a critic: whether its models' weights are in the cache, and how large the download would be."""
    from milr.critics import naming

    models = naming.models_of(name)
    if not models:
        return Finding("critics", name, "needs no download", True)
    folders = {model: hub.cached(model) for model in models}
    for folder in filter(None, folders.values()):
        try:
            hub.check_files(folder, weights=True)
        except UserError as error:
            return Finding("critics", name, str(error), False)
    missing = {model: size for model, size in models.items() if folders[model] is None}
    if not missing:
        return Finding("critics", name, f"ready: {', '.join(models)} in the cache", True)
    sizes = {model: f"{size / 1e9:.1f} GB" if size else "of unknown size" for model, size in missing.items()}
    listed = ", ".join(f"{model} {size}" for model, size in sizes.items())
    least = "" if all(missing.values()) else "at least "
    text = f"fetches {least}{sum(missing.values()) / 1e9:.1f} GB when first used: {listed}"
    return Finding("critics", name, text, None)


def _asked(section: str, subject: str, question: Callable[[], str], essential: bool = False) -> Iterator[Finding]:
    try:
        yield Finding(section, subject, question(), True if essential else None, essential)
    except UserError as error:
        yield Finding(section, subject, str(error), False, essential)
    except Exception as error:  # whatever is broken here is what the user wants to know
        yield Finding(section, subject, f"fails ({type(error).__name__}: {error})", False, essential)


def _model(part: registry.Part, device: str) -> Iterator[Finding]:
    def describe() -> str:
        if part.origin:
            return f"{part.summary} (package {part.origin})"
        with lightly():
            from milr.backbones import is_flow

            if is_flow(part.name):
                from milr.backbones.flow.folder import describe

                return describe(part.name, device)
            from milr.backbones.checkpoint import describe_memory

        return describe_memory(part.name, device)

    yield from _asked("models", part.name, describe)


def _part(part: registry.Part) -> Iterator[Finding]:
    def load() -> str:
        registry.load(part)
        return "loads"

    for finding in _asked(registry.PLURALS[part.kind], part.name, load):
        yield Finding(finding.section, finding.subject, finding.text, finding.text == "loads")


def _processors() -> str:
    return f"{os.cpu_count()}, of which this process may use {threads.usable_cores()} whole cores"


def _threads() -> str:
    """How many compute, how they wait, and who said so."""
    return threads.describe(torch_has=importlib.import_module("torch").get_num_threads())


def _memory() -> str:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    text = f"{pages * size / 2**30:.1f} GB"
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable"))
        return f"{text}, {int(available.split()[1]) / 2**20:.1f} GB of them free"
    except (OSError, StopIteration):
        return text


def _devices() -> str:
    """What torch reports, and which of it nobody has tried milr on."""
    import torch

    found = []
    for name in hub.devices():
        kind, _, index = name.partition(":")
        if kind == "cuda":
            free, total = torch.cuda.mem_get_info(int(index))
            name += f" {torch.cuda.get_device_name(int(index))}, {free / 2**30:.0f} of {total / 2**30:.0f} GB free"
        found.append(name if kind in hub.TESTED else f"{name} (untested)")
    return "cpu only" if len(found) == 1 else "; ".join(found)


def _network() -> str:
    """How the hub would be reached, of which nothing is asked. Raises UserError where a variable stands in the way."""
    constants = importlib.import_module("huggingface_hub.constants")
    network.check(constants.ENDPOINT)
    proxy = network.proxy_for(constants.ENDPOINT)
    return "no proxy" if proxy is None else f"through the proxy in {proxy.named_by}"


def _cache() -> str:
    constants = importlib.import_module("huggingface_hub.constants")
    cache = Path(constants.HF_HUB_CACHE)
    shown = str(cache).replace(str(Path.home()), "~", 1)
    folders = sorted(cache.glob("models--*")) if cache.is_dir() else []
    janus = [
        folder.name.removeprefix("models--").replace("--", "/") for folder in folders if "janus" in folder.name.lower()
    ]
    offline = ", offline mode" if constants.HF_HUB_OFFLINE else ""
    return f"{shown}{offline}: {', '.join(janus) if janus else 'no Janus checkpoint yet (fetched when first used)'}"


def _draw_once(device: str) -> str:
    import time

    from milr.backbones import load
    from milr.drafts import Ask, Order

    began = time.monotonic()
    model = load("lab", device=device)
    loaded = time.monotonic()
    model.draw([Order("a red fox", Ask(), stream=0)])
    return f"loads in {loaded - began:.1f} s and draws an image in {time.monotonic() - loaded:.1f} s"
