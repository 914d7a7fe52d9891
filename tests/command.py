"""Runs the real command in its own process, with the toy package installed beside it."""

import contextlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

ENTRY_POINTS = """\
[milr.backbones]
toy = toy_milr.backbone:load

[milr.critics]
redness = toy_milr.critic
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


class Milr:
    """`milr(...)` runs the command in a folder of its own; `start` does not wait."""

    def __init__(self, folder):
        self.folder = folder / "work"
        self.folder.mkdir()
        site = install_toy(folder / "site")
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests"), str(site)]),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "100",
            "NO_COLOR": "1",
        }

    def __call__(self, *arguments, stdin=None, **environment):
        return subprocess.run(
            [sys.executable, "-m", "milr", *arguments],
            cwd=self.folder,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            encoding="utf-8",
            input=stdin,
            timeout=300,
        )

    def start(self, *arguments, **environment):
        return subprocess.Popen(
            [sys.executable, "-m", "milr", *arguments],
            cwd=self.folder,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell starts its background jobs with Ctrl-C ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


class Here:
    """The same command by its own `main`, in this process: for what needs no process of its own, and is quicker."""

    def __init__(self, folder, monkeypatch):
        self.folder, self._patch = folder / "work", monkeypatch
        self.folder.mkdir()
        monkeypatch.syspath_prepend(str(install_toy(folder / "site")))
        monkeypatch.chdir(self.folder)
        for name, value in {"COLUMNS": "100", "NO_COLOR": "1"}.items():
            monkeypatch.setenv(name, value)

    def __call__(self, *arguments, stdin=b""):
        from milr.cli import main

        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
        with self._patch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            patch.setattr(sys, "argv", ["milr", *arguments])
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
            try:
                main()
            except SystemExit as ended:
                code = ended.code
        said = [stream.buffer.getvalue().decode() for stream in (out, err)]
        return subprocess.CompletedProcess(arguments, code, *said)
