import math

import pytest

import milr
from milr import registry
from milr.drafts import Score, UserError
from milr.runs.generate import Request, check_prompt, prepare, run, tasks_of
from runs_toy import draw
from toy_milr.backbone import ToyBackbone
from toy_milr.critic import Redness


class Brightness:
    name = "brightness"

    def score(self, images, tasks):
        return [Score(0.25) for _ in images]


class Broken:
    name = "broken"

    def score(self, images, tasks):
        raise RuntimeError("out of paper")


def test_the_result_is_the_best_draft_and_what_it_cost():
    result = draw(budget=8, held_out=[Brightness(), Broken()])
    assert result.reward == max(draft.reward for draft in result.trajectory.drafts)
    assert result.image is result.best.drawn.image
    assert result.trajectory.cost.reward_calls == len(result.trajectory.drafts) <= 8
    said = result.to_json()
    assert (said["prompt"], said["seed"], said["search"], said["model"]) == ("two red foxes", 0, "milr", "toy")
    assert said["held_out"] == {"brightness": 0.25, "broken": None}
    assert said["decoded_tokens"] == result.trajectory.cost.decoded_tokens
    assert said["image"] is None
    assert "out of paper" in result.held_out["broken"].reason


def test_the_same_seed_draws_the_same_alone_and_in_company():
    backbone, plan = ToyBackbone(), prepare(Request(reward=Redness(), budget=5, seed=11))
    together = {result.prompt: result for result in run(backbone, plan, tasks_of(["a fox", "a car", "a tree"]), {})}
    alone = draw("a car", budget=5, seed=11)
    assert tokens_of(together["a car"]) == tokens_of(alone)
    assert tokens_of(draw("a car", budget=5, seed=12)) != tokens_of(alone)


def tokens_of(result):
    return [(draft.drawn.text_tokens, draft.drawn.image_tokens) for draft in result.trajectory.drafts]


def test_the_width_is_asked_for_found_or_left_alone(monkeypatch):
    def width(**options):
        result = draw(**{"budget": 3, "search": "repair", **options})
        assert result.record["settings"].get("width", 1) == result.width == result.to_json()["width"]
        return result.width, result.record["preset"]

    monkeypatch.setattr("milr.backbones.speed.good_width", lambda backbone: 6, raising=False)
    assert width() == (1, "default")  # in Python nothing depends on the machine unless that is asked for
    assert width(width="auto") == (6, "default")
    assert width(width=4) == width(settings={"width": "4"}) == (4, "default")
    assert width(width="auto", settings={"width": 2}) == (2, "default")  # what is said is said
    assert width(width="auto", search="single") == width(width=1, search="single") == (1, "default")
    assert draw(width=3, budget=7, search="best-of-n").trajectory.cost.reward_calls == 7


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"width": 0}, "width is auto or a whole number"),
        ({"width": "wide"}, "width is auto or a whole number"),
        ({"width": True}, "width is auto or a whole number"),
        ({"width": 2.5}, "width is auto or a whole number"),
        ({"width": 257}, "'width' must be a number from 1 to 256"),
        ({"width": 4, "search": "single"}, "asks for one draft at a time"),
        ({"width": 4, "settings": {"width": "5"}}, "5 in the settings and 4 beside them"),
    ],
)
def test_a_width_that_cannot_be_is_one_sentence(options, complaint):
    with pytest.raises(UserError, match=complaint):
        draw(**options)


def test_the_same_prompt_twice_is_two_tasks():
    assert [task.id.count("-") for task in tasks_of(["a fox", "a fox", "a car"])] == [0, 1, 0]


def test_a_prompt_that_the_critic_cannot_judge_is_judged_by_self(monkeypatch):
    find = registry.find

    class Answers:
        @staticmethod
        def make(backbone):
            return Brightness()

    def find_or_self(kind, name):
        return registry.Part("critic", "self", "", "answers") if name == "self" else find(kind, name)

    load = registry.load
    monkeypatch.setattr(registry, "find", find_or_self)
    monkeypatch.setattr(registry, "load", lambda part: Answers if part.module == "answers" else load(part))
    plan = prepare(Request(reward=Redness(), budget=2))
    results = {result.prompt: result for result in run(ToyBackbone(), plan, tasks_of(["the moon", "a fox"]), {})}
    assert results["a fox"].trajectory.critic == "redness"
    assert results["a fox"].notes == ()
    assert results["the moon"].trajectory.critic == "brightness"
    (note,) = results["the moon"].notes
    assert "'redness' cannot judge this prompt (it knows no moon)" in note


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"budget": 0}, "budget must be .* not 0"),
        ({"budget": 10**9}, "budget must be .* not 1000000000"),
        ({"budget": True}, "budget must be"),
        ({"threshold": math.nan}, "threshold must be .* not nan"),
        ({"threshold": 0.0}, "threshold must be"),
        ({"seed": -1}, "seed must be"),
        ({"search": "mlir"}, "Unknown search 'mlir'. Did you mean 'milr'"),
        ({"preset": "pepper"}, "Unknown preset 'pepper'. Did you mean 'paper'"),
        ({"settings": {"learningrate": 1}}, "Did you mean 'learning_rate'"),
        ({"settings": {"learning_rate": "fast"}}, "'learning_rate' must be"),
        ({"reward": "moonness"}, "Unknown critic 'moonness'"),
        ({"held_out": ["moonness"]}, "Unknown critic 'moonness'"),
        ({"held_out": [Redness()]}, "'redness' is the reward"),
        ({"held_out": [Broken(), Broken()]}, "named twice"),
    ],
)
def test_mistakes_are_found_before_anything_is_drawn(options, complaint):
    with pytest.raises(UserError, match=complaint):
        draw(**options)


@pytest.mark.parametrize("prompt", ["", " \n ", "x" * 1_000_000, "broken \udcff byte"])
def test_prompts_that_cannot_be_drawn(prompt):
    with pytest.raises(UserError, match=r"^The prompt .*\.$"):
        check_prompt(prompt)


@pytest.mark.parametrize("prompt", ["🦊", "\x00", "<script>", "一只狐狸", "a\nb", "\u202efox"])
def test_any_other_text_can(prompt, tmp_path):
    result = draw(prompt, budget=1, out=tmp_path / "x")
    assert result.prompt == prompt


def test_ctrl_c_keeps_what_is_there(tmp_path):
    def stop(event):
        if isinstance(event, milr.searches.driver.DraftScored) and event.draft.number == 2:
            raise KeyboardInterrupt

    import milr.searches.driver

    with pytest.raises(KeyboardInterrupt):
        draw(out=tmp_path / "x", on_event=stop, threshold=1.0, seed=3)
    record = milr.runs.record.read_record(tmp_path / "x")
    assert record.raw["stopped"] == "interrupted"
    assert len(record.drafts) == 3
    assert (tmp_path / "x" / "drafts" / "02.png").exists()
    assert (tmp_path / "x" / "trajectory.html").exists()


def test_the_public_names_are_all_there():
    for name in milr.__all__:
        assert getattr(milr, name) is not None
    assert set(milr.__all__) <= set(dir(milr))
    with pytest.raises(AttributeError, match="no attribute 'lead'"):
        _ = milr.lead
