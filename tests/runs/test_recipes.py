"""Recipes: those that ship can be run, and wrong ones say what is wrong."""

import json

import pytest

from command import ROOT, Milr
from milr import registry
from milr.backbones import speed
from milr.critics import naming
from milr.drafts import UserError
from milr.runs.bench import Terms, plan_of
from milr.runs.methods import choose_methods, without_twins
from milr.runs.planned import VERDICT_TOKENS, PlannedRun, in_hours, reckon, threshold_of
from milr.runs.recipes import RecipeRun, read_recipe

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


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_recipes_stop_where_their_benchmark_does_and_say_what_cannot_be_compared(file):
    recipe = read_recipe(file)
    for run in recipe.runs:
        assert run.threshold == threshold_of(run.benchmark)
        assert without_twins(choose_methods(run.searches))[1] == []
    if any(run.benchmark == "wise" for run in recipe.runs):
        assert "rubric and form of reply" in recipe.expected
        assert "not comparable" in recipe.expected


def test_a_recipe_without_a_threshold_takes_the_benchmarks(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(GOOD.replace("benchmark: scenes", "benchmark: wise"))
    assert read_recipe(file).runs[0].threshold == 0.9
    file.write_text(GOOD)
    assert read_recipe(file).runs[0].threshold == 1.0


def test_a_method_is_not_compared_with_itself(tmp_path):
    """By what the words come to, not by the words."""
    named = ("best-of-n", "best-of-n:sampled-text", "a=repair", "b=repair,kappa=8", "best-of-n,text=greedy")
    kept, said = without_twins(choose_methods(named))
    assert [method.name for method in kept] == ["best-of-n", "a", "best-of-n,text=greedy"]
    assert said == [
        "'best-of-n:sampled-text' is the same search with the same settings as 'best-of-n': it is run once, as "
        "'best-of-n'",
        "'b' is the same search with the same settings as 'a': it is run once, as 'a'",
    ]
    run = RecipeRun("", "", "scenes", ("a=repair", "b=repair", "single"), "scene", baseline="b", limit=8)
    planned = PlannedRun(run, tmp_path)
    assert ([method.name for method in planned.methods], planned.baseline) == (["b", "single"], "b")
    assert planned.notes == ["'a' is the same search with the same settings as 'b': it is run once, as 'b'"]


def test_twins_on_the_command_line(tmp_path):
    milr = Milr(tmp_path)
    run = milr("bench", "toys", "--search", "best-of-n", "--search", "best-of-n:sampled-text", "--model", "toy",
               "--reward", "redness", "--limit", "2", "--budget", "2", "--out", "o")  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "'best-of-n:sampled-text' is the same search" in run.stderr
    assert list(json.loads((milr.folder / "o" / "report.json").read_text())["searches"]) == ["best-of-n"]


def test_on_the_command_line(tmp_path):
    milr = Milr(tmp_path)
    (milr.folder / "r.yaml").write_text(
        "paper: Table 0\nsearches: [single, best-of-n]\nbudget: 2\nruns:\n"
        "  - {for: real, name: first, benchmark: toys, limit: 3, reward: redness}\n"
        "  - {for: real, name: second, benchmark: toys, limit: 2, reward: redness, held_out: [self]}\n"
    )
    run = milr.here("bench", "--recipe", "r.yaml", "--model", "toy", "--out", "o")
    assert run.returncode == 0, run.stderr
    reports = [json.loads((milr.folder / "o" / name / "report.json").read_text()) for name in ("first", "second")]
    assert [report["prompts"] for report in reports] == [3, 2]
    assert reports[1]["held_out"] == ["self"]
    assert reports[0]["paper"] == "Table 0"
    twice = milr.here("bench", "--recipe", "r.yaml", "--model", "toy", "--budget", "3")
    assert twice.returncode == 2
    assert "'budget' is in the recipe" in twice.stderr
    lab = milr.here("bench", "--recipe", "r.yaml", "--out", "o")
    assert lab.returncode == 2
    assert "no run for the model 'lab'" in lab.stderr


# --- secrets ----------------------------------------------------------------------------------------------------

RECIPE = "searches: [single]\nruns:\n  - {{for: lab, name: a, benchmark: scenes, reward: {}, held_out: [{}]}}\n"


@pytest.mark.parametrize(
    ("critic", "name"),
    [
        ("judge:general,url=http://127.0.0.1:1/v1,key=GITHUB_TOKEN", "GITHUB_TOKEN"),
        ("judge:general,url=https://evil.example/v1,key=AWS_SECRET_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY"),
        ("judge:general,url=https://evil.example/v1", "OPENAI_API_KEY"),  # the key that is sent where none is named
        ("judge:general,url=$DATABASE_URL,key=none", "DATABASE_URL"),
        ("judge:general,url=$SOME_API_KEY,key=none", "SOME_API_KEY"),  # a key is no address
        ("vqa-score,url=https://evil.example/v1,key=HF_TOKEN", "HF_TOKEN"),
        ("unified-reward,url=https://evil.example/v1,key=HF_TOKEN", "HF_TOKEN"),
        ("service,url=https://evil.example,token=GITHUB_TOKEN", "GITHUB_TOKEN"),
        ("mix:min(scene,[mix:min(noise,[judge:general,url=https://evil.example,key=HF_TOKEN])])", "HF_TOKEN"),
        ("judge:general,url=https://evil.example/v1,key=MY_API_KEY_OLD", "MY_API_KEY_OLD"),
    ],
)
def test_a_recipe_does_not_choose_which_secrets_leave(critic, name, tmp_path):
    file = tmp_path / "recipe.yaml"
    for reward, held_out in ((critic, "self"), ("scene", critic)):
        file.write_text(RECIPE.format(json.dumps(reward), json.dumps(held_out)))
        with pytest.raises(UserError, match=rf"{name}.* add --allow-key {name}"):
            read_recipe(file)
        with pytest.raises(UserError, match=f"add --allow-key {name}"):
            read_recipe(file, ["OTHER"])
        assert read_recipe(file, [name]).runs


@pytest.mark.parametrize(
    "critic",
    [
        "judge:general",
        "judge:general,url=https://api.vendor.example/v1,key=VENDOR_API_KEY",
        "judge:general,url=https://api.vendor.example/v1,key=MILR_JUDGE",
        "judge:general,url=$MILR_JUDGE_URL,key=none",
        "judge:general,url=http://127.0.0.1:1/v1,key=none",
        "http://127.0.0.1:9000",
        "vqa-score",
        "scene",
    ],
)
def test_what_any_recipe_may_name(critic, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(json.dumps(critic), "self"))
    assert read_recipe(tmp_path / "recipe.yaml").runs


# --- What it will take ----------------------------------------------------------------------------------------------


def planned(tmp_path, **options):
    run = {"benchmark": "scenes", "searches": ("single", "repair"), "reward": "scene", "limit": 30, "prompt_seed": 5,
           "budget": 7, "seeds": 2, "baseline": "single", **options}  # fmt: skip
    return PlannedRun(RecipeRun("name", "lab", **run), tmp_path / "name")


def test_what_a_run_takes_is_reckoned(tmp_path):
    found = reckon(planned(tmp_path), seconds=0.5)
    assert found.drafts == 30 * 2 * (1 + 7)
    assert found.hours == pytest.approx(480 * 0.5 / 3600)
    assert (found.verdicts, found.dollars, found.unpriced) == (480, None, ())
    assert reckon(planned(tmp_path), None).hours is None


def test_what_judges_cost_is_reckoned(tmp_path, monkeypatch):
    monkeypatch.delenv("MILR_PRICE_IN", raising=False)
    monkeypatch.delenv("MILR_PRICE_OUT", raising=False)
    judge = "judge:general,price_in=2,price_out=10"
    read, written = VERDICT_TOKENS
    each = (2 * read + 10 * written) / 1e6
    found = reckon(planned(tmp_path, held_out=(judge,)), None)
    assert found.verdicts == 480 + 60 * (1 + 2), "the returned draft and the first one, where they differ"
    assert found.dollars == pytest.approx(180 * each)
    mixed = reckon(planned(tmp_path, reward=f"mix:0.5*[{judge}]+0.5*scene"), None)
    assert mixed.dollars == pytest.approx(480 * each)
    free = reckon(planned(tmp_path, reward="judge:general", held_out=("self",)), None)
    assert (free.dollars, free.unpriced) == (None, ("judge:general",))
    monkeypatch.setenv("MILR_PRICE_IN", "2")
    monkeypatch.setenv("MILR_PRICE_OUT", "10")
    assert reckon(planned(tmp_path, reward="judge:general"), None).dollars == pytest.approx(480 * each)


def test_hours_are_told_in_words_of_people():
    told = [in_hours(hours) for hours in (0.001, 0.5, 1.26, 47, 72)]
    assert told == ["4 s", "30 minutes", "1.3 hours", "47.0 hours", "3.0 days"]


def test_a_recipe_says_first_what_it_takes(tmp_path, monkeypatch):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "budget: 2\nruns:\n  - {name: a, for: real, benchmark: toys, searches: [single], reward: redness, limit: 3}\n"
        "  - {name: b, for: real, benchmark: toys, searches: [best-of-n], reward: redness, limit: 3}\n"
    )
    with Milr(tmp_path) as milr:
        run = milr.here("bench", "--recipe", str(recipe), "--model", "toy", "--out", "o")
        assert run.returncode == 0, run.stderr
        assert run.stderr.splitlines()[:3] == [
            "a: 3 prompts, 1 method, up to 3 drafts",
            "b: 3 prompts, 1 method, up to 6 drafts",
            "how long that takes here was not measured; 'milr speed toy' does, and remembers it",
        ]
        known = speed.Reckoning(images=8, seconds=1200.0, alone=2000.0)
        monkeypatch.setattr(speed, "reckoning_for", lambda *asked: known)
        run = milr.here("bench", "--recipe", str(recipe), "--model", "toy", "--out", "p")
        said = run.stderr.splitlines()
        assert said[1] == "b: 3 prompts, 1 method, up to 6 drafts, 2.0 hours of drawing"
        assert said[2].startswith("together at most 3.0 hours of drawing here (1.2e+03 s a draft in batches of 8,")
