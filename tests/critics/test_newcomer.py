"""A critic of somebody else: a little package, built and installed by pip, that joins through its entry point."""

import json
import os
import subprocess
import sys

import pytest

from command import ROOT, Milr

PACKAGE = ROOT / "tests" / "sharpness_critic"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    site = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index",
         "--no-build-isolation", "--target", str(site), str(PACKAGE)],
        check=True,
    )  # fmt: skip
    return site


@pytest.fixture
def milr(tmp_path, site):
    with Milr(tmp_path) as milr:
        milr.environment["PYTHONPATH"] += os.pathsep + str(site)
        yield milr


def test_it_is_listed_with_its_line_and_its_package(milr):
    lines = [json.loads(line) for line in milr.here("list", "critics", "--json").stdout.splitlines()]
    (own,) = [line for line in lines if line["name"] == "sharpness"]
    assert own["package"] == "sharpness-critic"
    assert own["summary"].startswith("Mean step from pixel to pixel")


def test_it_is_climbed_held_out_mixed_and_scores_pictures(milr):
    drawn = milr("generate", "a red fox", "--model", "toy", "--reward", "sharpness", "--held-out", "scene",
                 "--search", "best-of-n", "--budget", "3", "--out", "a", "--json")  # fmt: skip
    assert drawn.returncode == 0, drawn.stderr
    result = json.loads(drawn.stdout)
    assert (result["critic"], result["calls"]) == ("sharpness", 3)
    assert 0 < result["reward"] < 1
    ran = milr.here("bench", "geneval", "--model", "toy", "--limit", "2", "--budget", "2", "--search", "single",
                    "--reward", "mix:0.5*sharpness+0.5*noise", "--out", "run")  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert milr.here("export", "run", "--layout", "geneval", "--out", "pictures").returncode == 0
    scored = milr.here("score", "pictures", "--benchmark", "geneval", "--critic", "sharpness", "--json")
    assert scored.returncode == 0, scored.stderr
    assert json.loads(scored.stdout)["critics"]["sharpness"]["n"] == 2
