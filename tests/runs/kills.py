"""A process of its own that starts runs of the toy model as children and really kills them. Called by test_journal.py.

    python kills.py kill FOLDER SEED TRIALS
    python kills.py full FOLDER ROOM...
    python kills.py again FOLDER

`kill` prints one JSON line a trial: how often the run was killed, and whether what it left is what an unbroken run
leaves. A moment is a call into C, counted from the start: all that a run leaves behind goes through one, and unlike a
time it is the same on every machine.

`full` lets no file of a run in FOLDER/ROOM grow beyond ROOM bytes and prints the child's exit status. `again` stops
runs, and then twice their resumes, at chosen calls, by SIGKILL and by Ctrl-C; it prints as `kill` does. A process
of its own, since a fork of one that computes with several threads may hang: start it with OMP_NUM_THREADS=1.
"""

import itertools
import json
import os
import random
import resource
import signal
import sys
import threading
from pathlib import Path

import pytest

from milr.drafts import UserError
from milr.reports.reading import write_report
from milr.runs.bench import Terms, bench
from milr.runs.methods import METHODS, Method
from runs_toy import install_redness, without_machines
from toy_milr.backbone import ToyBackbone
from toy_milr.benchmark import tasks
from toy_milr.critic import Redness

PROMPTS, SEEDS, BUDGET = 6, 2, 5
FEW = (METHODS[1], METHODS[2], METHODS[7], Method("repair, three at a time", "repair", None, (("width", "3"),)))


class Counting(ToyBackbone):
    """Counts the drafts that it samples (one whose tokens are all forced is only read)."""

    def __init__(self):
        super().__init__()
        self.drawn = 0

    def draw(self, orders):
        found = super().draw(orders)
        self.drawn += sum(one.cost.decoded_tokens > 0 for one in found)
        return found


def run(folder, backbone=None, tell=None, batch=4, methods=FEW, prompts=PROMPTS, seeds=SEEDS):
    bench(
        backbone or ToyBackbone(), tasks(prompts, 7), folder, Terms(budget=BUDGET, seeds=seeds, critic="redness"),
        methods=methods, baseline=METHODS[2].name, batch=batch, tell=tell,
    )  # fmt: skip
    return write_report(folder)


class Calls:
    """Counts this process's calls into C, in all of its threads, and kills it just before call `last`."""

    def __init__(self, last=None):
        self.count, self.last = 0, last

    def start(self):
        threading.setprofile(self)  # of threads that begin from now on: those that write pictures
        sys.setprofile(self)

    def __call__(self, frame, event, argument):
        if event == "c_call":
            self.count += 1
            if self.count == self.last:
                os.kill(os.getpid(), signal.SIGKILL)


# A quick one: without and with latents.
SMALL = {"methods": (METHODS[2], METHODS[7]), "prompts": 3, "seeds": 1, "batch": 2}


CALLS = {"draw": (ToyBackbone, "draw"), "score": (Redness, "score"), "sync": (os, "fsync"), "rename": (os, "replace")}


def stop_at(call, number, by):
    """Let this process get a signal at the so-manieth call."""
    owner, name = CALLS[call]
    real, calls = getattr(owner, name), iter(range(10**9))

    def counting(*arguments):
        if next(calls) == number:
            os.kill(os.getpid(), by)
        return real(*arguments)

    setattr(owner, name, counting)


def child(folder, room=None, last=None, stop=None, **size):
    """Start a run in a child; its process id. It exits with 3 where it says that it cannot write, with 1 for others.

    `room`: no file may have more bytes. `last`: the call into C before which it is killed. `stop`: see `stop_at`.
    """
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if last is not None:
            Calls(last).start()
        if stop is not None:
            stop_at(*stop)
        if room is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        try:
            run(folder, **size)
            os._exit(0)
        except BaseException as error:
            print(type(error).__name__, error, file=sys.stderr)
            os._exit(3 if isinstance(error, UserError) and "Cannot write" in str(error) else 1)
    return pid


def left(folder):
    """What a run leaves, but when and on what it was: the report, the lines in order of their search, the images."""
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_bytes().splitlines()]
    lines = [line for line in lines if "started" not in line]
    for line in lines:
        del line["at"]
    images = sorted(file.name for file in (folder / "images").rglob("*.png"))
    return without_machines(folder), sorted(json.dumps(line) for line in lines), images


def kill(folder, seed, trials):
    run(folder / "whole")  # also imports what a run imports, so that it is not counted
    whole = left(folder / "whole")
    calls = Calls()
    calls.start()
    run(folder / "counted")
    threading.setprofile(None)
    sys.setprofile(None)
    rng = random.Random(seed)
    for trial in range(trials):
        cut = folder / f"cut-{trial}"
        kills = 0
        times = 3 if trial % 5 == 0 else 1
        for _ in range(times):
            # A resumed run has less to do, so the last of three kills comes within the first third of the work.
            _, status = os.waitpid(child(cut, last=1 + int(0.9 * rng.random() * calls.count / times)), 0)
            kills += os.WIFSIGNALED(status)
        _, status = os.waitpid(child(cut), 0)
        report, lines, images = left(cut) if status == 0 else (None, None, None)
        print(
            json.dumps(
                {
                    "kills": kills,
                    "status": status,
                    "same_report": report == whole[0],
                    "same_lines": lines == whole[1],
                    "nothing_twice": lines is not None and len(set(lines)) == len(lines),
                    "same_images": images == whole[2],
                }
            )
        )


def again(folder):
    run(folder / "whole", **SMALL)
    whole = left(folder / "whole")
    calls = (("draw", 2), ("score", 1), ("rename", 1), ("sync", 5), ("sync", 0), ("draw", 0), ("sync", 3), ("score", 2))
    pairs = itertools.product((signal.SIGKILL, signal.SIGINT), repeat=2)
    for (call, number), (first, second) in zip(calls, itertools.cycle(pairs)):
        cut = folder / f"{call}-{number}-{first}-{second}"
        stopped, lines = [], 0
        for stop in (("draw", 5, signal.SIGKILL), (call, number, first), (call, number, second)):
            _, status = os.waitpid(child(cut, stop=stop, **SMALL), 0)
            stopped.append(status != 0)
            before, lines = lines, (cut / "journal.jsonl").read_bytes().count(b"\n")
            assert lines >= before, "what was on disk is gone"
        _, status = os.waitpid(child(cut, **SMALL), 0)
        report, lines, images = left(cut) if status == 0 else (None, None, None)
        print(
            json.dumps(
                {
                    "trial": cut.name,
                    "stopped": stopped,
                    "status": status,
                    "same_report": report == whole[0],
                    "same_lines": lines == whole[1],
                    "same_images": images == whole[2],
                }
            )
        )


def full(folder, *rooms):
    for room in rooms:
        _, status = os.waitpid(child(folder / str(room), room), 0)
        print(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    install_redness(pytest.MonkeyPatch())
    {"kill": kill, "full": full, "again": again}[sys.argv[1]](Path(sys.argv[2]), *map(int, sys.argv[3:]))
