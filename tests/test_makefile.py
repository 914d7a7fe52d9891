"""What `make` would do, asked with -n: nothing is installed here."""

import os
import shutil
import subprocess

import pytest

from command import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make")


@pytest.fixture
def checkout(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def would(checkout, target):
    asked = ["make", "-n", "-C", str(checkout), target]
    return subprocess.run(asked, capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]}).stdout


def stamp(checkout, *names):
    (checkout / ".venv").mkdir(exist_ok=True)
    for name in names:
        (checkout / ".venv" / name).touch()


def test_a_demo_installs_what_drawing_needs_and_no_more(checkout):
    said = would(checkout, "demo")
    assert "install --quiet --disable-pip-version-check -c constraints.txt -e .\n" in said
    assert "[dev]" not in said
    assert said.index("-m venv .venv") < said.index("pip install") < said.index("milr generate")


def test_a_test_after_a_demo_completes_the_install(checkout):
    stamp(checkout, ".installed-core")
    assert "pip install" not in would(checkout, "demo")
    said = would(checkout, "test")
    assert said.count("pip install") == 1
    assert said.index("-e '.[dev]'") < said.index("ruff check") < said.index("bin/pytest")


def test_the_second_time_is_quick_until_the_project_changes(checkout):
    stamp(checkout, ".installed-core", ".installed")
    assert "pip install" not in would(checkout, "test") + would(checkout, "demo") + would(checkout, "compare")
    younger = (checkout / ".venv" / ".installed").stat().st_mtime + 10
    os.utime(checkout / "constraints.txt", (younger, younger))
    assert would(checkout, "test").count("pip install") == 2
    assert would(checkout, "demo").count("pip install") == 1


def test_from_a_clean_checkout_a_test_installs_everything(checkout):
    said = would(checkout, "test")
    assert said.index("-m venv .venv") < said.index("-e .\n") < said.index("-e '.[dev]'") < said.index("bin/pytest")
