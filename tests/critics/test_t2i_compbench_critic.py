"""Scores from plain answers and detections; which measure a task gets; then the whole critic on small models."""

import pytest
import tiny_detectors as tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from milr.benchmarks import t2i_compbench as benchmark
from milr.critics import naming, t2i_compbench
from milr.critics.rules.t2i_compbench import Relation
from milr.critics.t2i_compbench import (
    as_unidet,
    bound,
    chunks_of,
    combined,
    counted,
    counts_of,
    placed,
    relation_of,
    without_adjectives,
)
from milr.drafts import Score, Task, UserError

SIZE = (480, 480)
LEFT, RIGHT = (0, 200, 40, 240), (400, 200, 440, 240)


def found(label, box, score=0.8):
    return {"label": label, "score": score, "box": box}


# --- What a prompt asks for -----------------------------------------------------------------------------------


def test_noun_phrases():
    assert chunks_of("a green bench and a blue bowl") == ("a green bench", "a blue bowl")
    assert chunks_of("?") == ()
    assert len(chunks_of(", ".join(["a dog"] * 12))) == 8


def test_every_prompt_of_the_benchmark_can_be_judged():
    for task in benchmark.tasks():
        assert chunks_of(task.prompt), task.prompt
        if "spatial" in (task.category, task.metadata.get("kind", "")) or task.category == "3d_spatial":
            assert relation_of(task) is not None, task.prompt
        if task.category == "numeracy":
            assert counts_of(task), task.prompt


def test_most_plain_prompts_have_two_phrases():
    plain = [task for task in benchmark.tasks(categories=("color", "shape", "texture")) if task.prompt.count(" ") == 6]
    plain = [task for task in plain if task.prompt.split()[3] == "and"]
    assert len(plain) > 400
    for task in plain:
        first, second = task.prompt.rstrip(".").split(" and ", 1)
        assert chunks_of(task.prompt) == (first, second)


def test_relations_without_metadata():
    assert relation_of(Task("a girl on the top of a frog")) == Relation("girl", "on the top of", "frog")
    sentence = Task("The soft brown hat lay next to the red scarf.", category="complex")
    assert relation_of(sentence) == Relation("hat", "next to", "scarf")
    assert relation_of(Task("a frog")) is None
    assert relation_of(Task("x", metadata={"relation": ["a", "near", "b"]})) == Relation("a", "near", "b")


def test_counts_without_metadata():
    assert counts_of(Task("two dogs, a cat and birds")) == [("dog", 2), ("cat", 1)]
    assert counts_of(Task("x", metadata={"counts": [["dog", 2]]})) == [("dog", 2)]


def test_adjectives_are_left_out():
    assert without_adjectives("The soft pink petals of the rough, brown bark.") == "The petals of the bark."


# --- Scores ---------------------------------------------------------------------------------------------------


def test_attributes_are_a_product():
    score = bound(("a green bench", "a blue bowl"), [0.9, 0.4])
    assert score.value == pytest.approx(0.36)
    assert [check.passed for check in score.checks] == [True, False]
    assert score.reason == "B-VQA: a green bench? yes 0.90, a blue bowl? yes 0.40"


def test_the_scale_of_confidence():
    assert as_unidet(0.2, 0.2) == 0.5
    assert as_unidet(1.0, 0.2) == 1
    assert as_unidet(0.6, 0.2) == pytest.approx(0.75)


def test_a_place():
    asked = Relation("girl", "on the left of", "cat")
    boxes = [found("person", LEFT), found("cat", RIGHT, 0.6)]
    right = placed(asked, boxes, SIZE, None)
    assert right.value == pytest.approx(0.85)
    assert right.checks[0].passed
    assert right.reason == "spatial-sub: girl on the left of cat (0.85)"
    wrong = placed(Relation("girl", "on the right of", "cat"), boxes, SIZE, None)
    assert wrong.value == 0
    assert wrong.checks[0].boxes == (LEFT, RIGHT)
    alone = placed(asked, boxes[:1], SIZE, None)
    assert alone.value == 0
    assert "no cat found" in alone.checks[0].text


def test_a_place_in_depth():
    asked = Relation("dog", "in front of", "car")
    boxes = [found("dog", (0, 0, 100, 100)), found("car", (0, 0, 100, 80), 0.6)]
    near, far = placed(asked, boxes, SIZE, (9.0, 4.0)), placed(asked, boxes, SIZE, (4.0, 9.0))
    assert near.value == pytest.approx(0.2 + 0.15 + 0.5)
    assert near.checks[0].passed
    assert far.value == pytest.approx(0.35)
    assert not far.checks[0].passed
    assert far.reason.startswith("3d_spatial-sub")


def test_numbers():
    score = counted([("man", 1), ("ship", 2)], [found("person", LEFT), found("person", RIGHT), found("boat", LEFT)])
    assert score.value == pytest.approx(0.5)  # both there, neither as many
    assert [(check.text, check.boxes) for check in score.checks] == [
        ("1 man (found 2)", (RIGHT,)),
        ("2 ship (found 1)", ()),
    ]


def test_three_in_one():
    three = Score(0.9), Score(0.6), Score(0.3)
    assert combined("spatial", *three).value == pytest.approx(0.75)
    assert combined("action", *three).value == pytest.approx(0.6)
    assert combined("spatial and action", *three).value == pytest.approx(0.6)
    silent = combined("spatial", Score(0.9), Score(None, reason="no relation"), Score(0.3))
    assert silent == Score(None, reason="no relation")
    assert combined("action", Score(0.9), Score(None, reason="no relation"), Score(0.3)).value is not None
    assert combined("action", Score(0.9), Score(0.6), Score(None, reason="no CLIP")).value is None
    assert combined("spatial", Score(0.9), Score(0.6), Score(None, reason="no CLIP")).value is not None


# --- Which measure a task gets --------------------------------------------------------------------------------


class Knows:
    """All four models; remembers which were asked for."""

    def __init__(self):
        self.loaded = []
        self.models = t2i_compbench.Models(
            **{name: lambda name=name: self._load(name) for name in ("vqa", "detector", "depth", "clip")}
        )

    def _load(self, name):
        self.loaded.append(name)
        return self

    def p_yes(self, images, questions):
        return [0.8] * len(questions)

    def find(self, images, nouns, least):
        self.nouns = nouns
        return [
            [found(noun, box, 1.0) for noun, box in zip(own, ((0, 0, 100, 100), (0, 20, 100, 120)), strict=False)]
            for own in nouns
        ]

    def maps(self, images):
        return [torch.arange(480.0).flip(0)[:, None].expand(480, 480) for _ in images]  # the top is near

    def similarity(self, images, texts):
        self.texts = texts
        return [-0.1 if "dog" in text else 0.3 for text in texts]


@pytest.mark.parametrize(
    ("category", "prompt", "metadata", "value", "loaded"),
    [
        ("color", "a green bench and a blue bowl", {}, 0.64, ["vqa"]),
        ("spatial", "a dog near a cat", {"relation": ["dog", "near", "cat"]}, 1.0, ["detector"]),
        ("3d_spatial", "a dog in front of a cat", {}, 1.0, ["detector", "depth"]),
        ("3d_spatial", "a ship in front of a girl", {}, 1.0, ["detector", "depth"]),
        ("3d_spatial", "a dog behind a cat", {}, 0.5, ["detector", "depth"]),
        ("spatial", "a dog", {}, None, ["detector"]),
        ("numeracy", "two dogs and a cat", {}, 0.75, ["detector"]),
        ("numeracy", "dogs", {}, None, ["detector"]),
        ("non_spatial", "a dog runs", {}, 0.0, ["clip"]),
        ("non_spatial", "a fox runs", {}, 0.3, ["clip"]),
        ("complex", "The red fox sat near the cat.", {"kind": "spatial"}, (0.64 + 1) / 2, ["vqa", "detector"]),
        ("complex", "The red fox ate the cat.", {"kind": "action"}, (0.64 + 0.3) / 2, ["vqa", "clip"]),
        ("complex", "The fox sat near the cat.", {}, (0.64 + 1 + 0.3) / 3, ["vqa", "detector", "clip"]),
        ("colors", "a photo of a red dog", {"include": []}, 0.8, ["vqa"]),  # another benchmark's
        ("", "?", {}, None, ["vqa"]),
    ],
)
def test_measures(category, prompt, metadata, value, loaded):
    knows = Knows()
    critic = t2i_compbench.CompbenchCritic(knows.models)
    (score,) = critic.score([Image.new("RGB", SIZE)], [Task(prompt, category=category, metadata=metadata)])
    assert score.value == (None if value is None else pytest.approx(value))
    assert score.reason
    assert knows.loaded == loaded  # nothing else takes up memory


def test_a_mixed_batch_keeps_its_order():
    critic = t2i_compbench.CompbenchCritic(Knows().models)
    tasks = [
        Task("a fox runs", category="non_spatial"),
        Task("a red dog", category="color"),
        Task("a dog near a cat", category="spatial"),
        Task("a fox", category="shape"),
    ]
    scores = critic.score([Image.new("RGB", SIZE)] * 4, tasks)
    assert [score.value for score in scores] == pytest.approx([0.3, 0.8, 1.0, 0.8])


def test_people_and_adjectives_reach_the_models_as_the_rules_want_them():
    knows = Knows()
    critic = t2i_compbench.CompbenchCritic(knows.models)
    tasks = [Task("a girl near a ship", category="spatial"), Task("The soft dog ate.", category="complex")]
    critic.score([Image.new("RGB", SIZE)] * 2, tasks)
    assert knows.nouns == [("person", "boat")]
    assert knows.texts == ["The dog ate."]


@given(st.text(), st.sampled_from(["", *benchmark.CATEGORIES]))
def test_any_prompt_gets_an_answer(prompt, category):
    critic = t2i_compbench.CompbenchCritic(Knows().models)
    (score,) = critic.score([Image.new("RGB", SIZE)], [Task(prompt, category=category)])
    assert score.value is None or 0 <= score.value <= 1
    assert isinstance(critic.why_not(prompt), (str, type(None)))


# --- The whole critic on small models -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("compbench")
    made = {"vqa": tiny.blip, "detector": tiny.owlv2, "depth": tiny.depth_anything, "clip": tiny.clip}
    return {name: make(base / name) for name, make in made.items()}


@pytest.mark.parametrize("detector", ["owlv2", "grounding-dino"])
def test_on_small_models(folders, detector, monkeypatch, tmp_path):
    from milr.critics.local import detectors

    monkeypatch.setattr(detectors, "SHORT_SIDE", 96)
    chosen = dict(folders) if detector == "owlv2" else {**folders, "detector": tiny.grounding_dino(tmp_path)}
    models = ",".join(f"{key}={folder}" for key, folder in chosen.items())
    name = f"t2i-compbench,device=cpu,batch=3,least_share=0,{models}"
    critic = naming.make(name, None)
    assert critic.name == name
    tasks = [benchmark.tasks(1, categories=(category,))[0] for category in benchmark.CATEGORIES]
    images = [tiny.picture(number, (48, 48) if number % 3 else (64, 40)) for number in range(len(tasks))]
    scores = critic.score(images, tasks)
    assert all(score.value is not None and 0 <= score.value <= 1 for score in scores)
    for image, task, score in zip(images, tasks, scores, strict=True):
        (alone,) = critic.score([image], [task])
        assert alone.value == pytest.approx(score.value, abs=1e-4)


def test_all_models_must_be_there_before_anything_is_drawn(folders, tmp_path):
    names = ",".join(f"{key}={folder}" for key, folder in folders.items() if key != "depth")
    with pytest.raises(UserError, match="neither a folder nor a hub id"):
        naming.make(f"t2i-compbench,depth=nowhere,{names}", None)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text("{}")
    with pytest.raises(UserError, match="has no weights as safetensors"):
        naming.make(f"t2i-compbench,depth={bare},{names}", None)
