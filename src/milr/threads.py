"""How many processor threads compute, and how they wait: what a laptop on which other programs run can bear.

torch's threads wait for each other at every small operation. By default they spin while they wait; where anything else
wants the core, the one that works is kept from it by those that wait, and drawing takes ten times as long. So milr asks
for threads that sleep. That can only be said in the environment before torch is loaded, so `import milr` says it. How
many there are can be said later, when the size of the model is known (`fit`).

Whatever the user chose, by a variable or by `torch.set_num_threads`, stays as it is. Knows torch's OpenMP (GNU's on
Linux, LLVM's on macOS, Intel's on Windows; all three read OMP_WAIT_POLICY) and the limits of a process; no model.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WAITS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}  # variable -> what means sleeping
NUMBERS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
SMALL = 100_000_000  # parameters; below, a layer is over before many threads have woken up
FEW = 2  # threads for a small model: measured in docs/adr/0009


def number_for(parameters: int | None, cores: int, environment: Mapping[str, str]) -> int | None:
    """How many threads a model of so many parameters gets on so many cores; None: a variable says it already."""
    if _named(NUMBERS, environment):
        return None
    return min(FEW, cores) if parameters is not None and parameters < SMALL else cores


def _named(variables: Iterable[str], environment: Mapping[str, str]) -> str | None:
    """The first of these variables that is set."""
    return next((name for name in variables if environment.get(name, "").strip()), None)


@dataclass(frozen=True)
class Waiting:
    """Whether threads sleep while they wait, and who said so."""

    is_quiet: bool
    origin: str


def waiting_of(environment: Mapping[str, str], torch_is_loaded: bool = False) -> Waiting:
    """How threads wait in a process with this environment, as milr would have it."""
    if (name := _named(WAITS, environment)) is not None:
        said = environment[name].strip()
        return Waiting(said.lower() == WAITS[name], f"the variable {name}={said}")
    return Waiting(False, "torch was imported before milr") if torch_is_loaded else Waiting(True, "milr's choice")


def wait_quietly(environment: MutableMapping[str, str] | None = None) -> Waiting:
    """Let the threads of a torch that is not loaded yet sleep while they wait, unless a variable says how they wait."""
    environment = os.environ if environment is None else environment
    found = waiting_of(environment, "torch" in sys.modules)
    if found.is_quiet and _named(WAITS, environment) is None:
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
    return found


def fit(parameters: int | None, device: str = "cpu") -> int:
    """Give torch as many threads as a model needs that was just loaded. Returns how many torch has now.

    Of several models in one process the one that needs most decides. A model on a GPU changes nothing, and a number
    that the caller gave torch stays.
    """
    import torch

    global _given, _own
    now = torch.get_num_threads()
    wanted = number_for(parameters, usable_cores(), os.environ)
    if wanted is None or device.partition(":")[0] != "cpu" or _is_set_by_caller(now):
        return now
    _own = now if _own is None else _own  # torch knows cores that no file here tells of, so it is never given more
    _given = min(max(wanted, _given or 0), _own)
    if _given != now:
        torch.set_num_threads(_given)
    return _given


_own: int | None = None  # torch's own number, before `fit` changed it
_given: int | None = None  # what `fit` set last


def _is_set_by_caller(now: int) -> bool:
    """Whether neither torch nor `fit` chose the number that torch has."""
    if _given is not None:
        return now != _given
    cpus = _affinity()
    return now not in {os.cpu_count(), len(cpus), _physical(cpus), _physical(range(os.cpu_count() or 1))}


def describe(environment: Mapping[str, str] | None = None, torch_has: int | None = None) -> str:
    """One line for people: how many threads models get here, how they wait, and who said so.

    `torch_has` is torch's own number before a model is loaded; it is never given more."""
    environment = os.environ if environment is None else environment
    cores = min(usable_cores(), torch_has or usable_cores())
    if (name := _named(NUMBERS, environment)) is not None:
        number = f"{torch_has or environment[name]} for every model (the variable {name}={environment[name]})"
    else:
        small = number_for(SMALL - 1, cores, environment)
        number = f"{small} for small models like lab, {cores} for others (milr's choice)"
    waits = "they sleep while they wait" if QUIET.is_quiet else "they spin while they wait, slow beside other programs"
    return f"{number}; {waits} ({QUIET.origin})"


# --- The cores of this process -------------------------------------------------------------------------------------


def usable_cores() -> int:
    """Physical cores that this process may use: of its affinity, and no more than its container's quota pays for."""
    cores = _physical(_affinity())
    quota = quota_of()
    return cores if quota is None else max(1, min(cores, math.floor(quota)))


def _affinity() -> tuple[int, ...]:
    """The processors on which this process may run; all of them where the system does not tell."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def _physical(cpus: Iterable[int], root: Path = Path("/sys/devices/system/cpu")) -> int:
    """How many cores these processors are: two that share one (hyper-threading) compute no faster than one."""
    found = set()
    for cpu in cpus:
        try:
            found.add((root / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text())
        except OSError:
            found.add(str(cpu))
    return max(1, len(found))


def quota_of(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """How many processors' time the control groups of this process (a container's limit) allow; None: no limit."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return None
    found: list[float] = []
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        names = controllers.split(",")
        if controllers and "cpu" not in names:
            continue
        # Inside a container the path may be the host's, which is not there; the mount's top is then the own group.
        tops = [root, root / "unified"] if not controllers else [root / "cpu", root / controllers]
        for top in tops:
            for group in (top / path.strip("/"), *(top / path.strip("/")).parents):
                found += _limits(group)
                if group == top:
                    break
    return min(found, default=None)


def _limits(group: Path) -> list[float]:
    """The limit of one control group, version 2 or 1."""
    try:
        quota, period = (group / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = ((group / f"cpu.cfs_{what}_us").read_text().strip() for what in ("quota", "period"))
        except OSError:
            return []
    try:
        return [int(quota) / int(period)] if int(quota) > 0 and int(period) > 0 else []
    except ValueError:  # "max"
        return []


def parameters_of(model: Any) -> int | None:
    """How many numbers a torch module holds; None for what is none."""
    return sum(each.numel() for each in model.parameters()) if hasattr(model, "parameters") else None


QUIET = wait_quietly()  # when this module is imported, which `import milr` does first of all
