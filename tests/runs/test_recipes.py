"""Recipes: those that ship can be run, and wrong ones say what is wrong."""

import json

import pytest

from command import ROOT, Milr
from milr import registry
from milr.critics import naming
from milr.drafts import UserError
from milr.runs.bench import Terms, plan_of
from milr.runs.methods import choose_methods
from milr.runs.recipes import read_recipe

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def test_the_papers_tables_are_there():
    assert {file.stem for file in RECIPES} == {
        "main-table", "table-3", "table-4", "figure-4", "figure-5", "critics", "table-9",
    }  # fmt: skip


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_every_recipe_can_be_run(file):
    recipe = read_recipe(file)
    assert recipe.paper
    assert recipe.expected
    assert recipe.runs_for("janus-pro-7b")
    for run in recipe.runs_for("lab"):
        assert run.limit >= 300
        assert run.prompt_seed >= 31001, "prompts that nobody tuned on"
        methods = choose_methods(run.searches)
        assert run.baseline in [method.name for method in methods]
        terms = Terms(run.budget, run.threshold, run.seed, run.seeds, run.reward, run.held_out)
        for method in methods:
            plan_of(method, terms)
        registry.find("benchmark", run.benchmark)
    for run in recipe.runs_for("janus-pro-7b"):
        registry.find("benchmark", run.benchmark)
        for critic in (run.reward, *run.held_out):
            naming.settings_of(naming.find(critic))
        assert run.baseline in [method.name for method in choose_methods(run.searches)]


GOOD = "runs:\n  - {name: a, for: lab, benchmark: scenes, searches: [single], reward: scene}\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("runs: [", "is not YAML"),
        ("- 1", "has no 'runs'"),
        ("runs: []", "has no 'runs'"),
        ("runs: [3]", "no table of options"),
        (GOOD.replace("reward: scene", "rewards: scene"), "says 'rewards', .* Did you mean 'reward'"),
        (GOOD.replace("reward: scene", "reward: 3"), "'reward' is 3"),
        (GOOD.replace(", reward: scene", ""), "lacks 'reward'"),
        (GOOD.replace("for: lab", "for: fun"), "it is lab or real"),
        (GOOD.replace("[single]", "[1]"), "a list of names"),
        (GOOD.replace("name: a", "name: ../a"), "cannot be a folder's"),
        *(
            (GOOD.replace("name: a", f"name: {name}"), "cannot be a folder's")
            for name in ('"a\\\\b"', "'C:x'", "con", '"a\\0"', "x" * 300, "'a '", "'..'", ".a", "a/b")
        ),
        (GOOD + GOOD.split("\n", 1)[1], "the same name"),
        (GOOD + GOOD.split("\n", 1)[1].replace("name: a", "name: A"), "the same name"),
        ("runs: !!python/object/apply:os.system ['true']", "is not YAML"),
    ],
)
def test_wrong_recipes(tmp_path, content, said):
    file = tmp_path / "r.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=said):
        read_recipe(file)


def test_on_the_command_line(tmp_path):
    milr = Milr(tmp_path)
    (milr.folder / "r.yaml").write_text(
        "paper: Table 0\nsearches: [single, best-of-n]\nbudget: 2\nruns:\n"
        "  - {for: real, name: first, benchmark: toys, limit: 3, reward: redness}\n"
        "  - {for: real, name: second, benchmark: toys, limit: 2, reward: redness, held_out: [self]}\n"
    )
    run = milr("bench", "--recipe", "r.yaml", "--model", "toy", "--out", "o")
    assert run.returncode == 0, run.stderr
    reports = [json.loads((milr.folder / "o" / name / "report.json").read_text()) for name in ("first", "second")]
    assert [report["prompts"] for report in reports] == [3, 2]
    assert reports[1]["held_out"] == ["self"]
    assert reports[0]["paper"] == "Table 0"
    twice = milr("bench", "--recipe", "r.yaml", "--model", "toy", "--budget", "3")
    assert twice.returncode == 2
    assert "'budget' is in the recipe" in twice.stderr
    lab = milr("bench", "--recipe", "r.yaml", "--out", "o")
    assert lab.returncode == 2
    assert "no run for the model 'lab'" in lab.stderr
