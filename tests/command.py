"""Runs the real command in its own process, with the toy package installed beside it."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ENTRY_POINTS = """\
[milr.backbones]
toy = toy_milr.backbone:load

[milr.critics]
redness = toy_milr.critic
slow = toy_milr.slow
broken = toy_milr.broken

[milr.benchmarks]
toys = toy_milr.benchmark
"""


def install_toy(folder):
    """What pip leaves behind: metadata with entry points, on the path."""
    metadata = folder / "toy_milr-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-milr\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    return folder


LONG = 600  # seconds: a limit against hanging for ever, not a measure of anything


def wait_until(condition, process=None):
    """Return as soon as `condition()` holds. Fails where `process` ends first: then nobody is left to make it hold."""
    limit = time.monotonic() + LONG
    while not condition():
        ended = process is not None and process.poll() is not None
        if ended and not condition():  # it may have made it hold with its last breath
            raise AssertionError(f"the process ended with {process.returncode}: {process.communicate()}")
        assert time.monotonic() < limit, "it never came"
        time.sleep(0.01)


class Milr:
    """`milr(...)` runs the command in a folder of its own; `here` in this process; `start` does not wait.

    `with Milr(folder) as milr` leaves no process and no open pipe behind, whatever the test comes to.
    """

    def __init__(self, folder):
        self.started = []
        self.folder = folder / "work"
        self.folder.mkdir()
        self.gate = folder / "gate"
        self.gate.mkdir()
        site = install_toy(folder / "site")
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests"), str(site)]),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "100",
            "NO_COLOR": "1",
        }

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.started:
            process.kill()
            with contextlib.suppress(ValueError):  # its pipes were read to their ends already
                process.communicate()

    def start_and_wait(self, *arguments, rounds=2, **environment):
        """A command whose toy model has drawn so many rounds and now waits before the next one, until `let_go`."""
        process = self.start(*arguments, TOY_GATE=str(self.gate), TOY_ROUNDS=str(rounds), **environment)
        wait_until((self.gate / "waiting").exists, process)
        return process

    def let_go(self):
        (self.gate / "go").touch()

    def __call__(self, *arguments, stdin=None, **environment):
        return subprocess.run(
            [sys.executable, "-m", "milr", *arguments],
            cwd=self.folder,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            encoding="utf-8",
            input=stdin,
            timeout=LONG,
        )

    def here(self, *arguments, stdin=b"", **environment):
        """The same in this process, which costs no start: for all that is not about processes, signals or imports."""
        from milr.cli import main

        out, err, status = io.StringIO(), io.StringIO(), 0
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            for name, value in {**self.environment, **environment}.items():
                patch.setenv(name, value)
            for path in reversed(self.environment["PYTHONPATH"].split(os.pathsep)):
                patch.syspath_prepend(path)
            patch.setattr(sys, "argv", ["milr", *arguments])
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
            patch.chdir(self.folder)
            try:
                main()
            except SystemExit as stop:
                status = int(stop.code or 0)
        return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())

    def start(self, *arguments, **environment):
        process = subprocess.Popen(
            [sys.executable, "-m", "milr", *arguments],
            cwd=self.folder,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell starts its background jobs with Ctrl-C ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.started.append(process)
        return process
