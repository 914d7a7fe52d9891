"""The rules agree with GenEval's own code on 1,200 cases; here the critic does, up to the models' own answers."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_detectors as tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from milr.benchmarks import geneval as benchmark
from milr.critics import geneval, naming
from milr.critics.geneval import CLASSES, COLOURS, metadata_of
from milr.critics.local import detectors
from milr.critics.local.detectors import Instance
from milr.drafts import Score, Task, UserError

CASES = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "golden" / "geneval_rule_cases.jsonl").read_text().splitlines()
]
PIXEL = np.ones((1, 1), bool)


class Sees:
    """A detector that says what it is told, in order of confidence, and counts its calls."""

    classes = 80

    def __init__(self, *per_image):
        self.per_image, self.calls = list(per_image), 0

    def instances(self, images, least):
        self.calls += 1
        told, self.per_image = self.per_image[: len(images)], self.per_image[len(images) :]
        return [
            sorted((one for one in found if one.score > least), key=lambda one: -one.score) for found in told
        ]  # fmt: skip


class Names:
    """A CLIP for which a crop is its colour, and a text the colour in it."""

    def __init__(self):
        self.crops = 0

    def images(self, crops):
        self.crops += len(crops)
        return torch.stack([_vector(crop) for crop in crops])

    def texts(self, texts):
        return torch.stack([_vector(next(colour for colour in COLOURS if colour in text)) for text in texts])


def _vector(colour):
    return torch.eye(len(COLOURS))[COLOURS.index(colour)] if colour in COLOURS else torch.zeros(len(COLOURS))


def seen(label, score, box, colour=None):
    one = Instance(CLASSES.index(label), score, tuple(box), PIXEL)
    object.__setattr__(one, "colour", colour)
    return one


@pytest.fixture
def crops_are_colours(monkeypatch):
    monkeypatch.setattr(geneval, "cut_out", lambda image, one: one.colour)


@pytest.mark.usefixtures("crops_are_colours")
def test_one_exactly_where_the_authors_own_code_says_correct():
    told = [[seen(d["label"], d["score"], d["box"], d["color"]) for d in case["detections"]] for case in CASES]
    critic = geneval.GenevalCritic(Sees(*told), Names())
    tasks = [Task(case["metadata"]["prompt"], metadata=case["metadata"]) for case in CASES]
    scores = critic.score([Image.new("RGB", (1, 1))] * len(CASES), tasks)
    assert [score.value == 1 for score in scores] == [case["correct"] for case in CASES]
    assert len(CASES) == 1200
    partly = [score.value for score in scores if 0 < score.value < 1]
    assert len(partly) > 100  # graded
    assert all((score.reason == "correct") == (score.value == 1) for score in scores)


def test_a_verdict_from_plain_detections():
    for case in CASES:
        score = geneval.verdict(case["metadata"], case["detections"])
        assert (score.value == 1) == case["correct"]
        assert score.value == sum(check.passed for check in score.checks) / len(score.checks)


@pytest.mark.usefixtures("crops_are_colours")
def test_only_what_the_rules_look_at_gets_a_colour():
    names = Names()
    dogs = [seen("dog", 0.9 - 0.1 * number, (0, 0, 9, 9), "red") for number in range(4)]
    critic = geneval.GenevalCritic(Sees([*dogs, seen("cat", 0.9, (0, 0, 9, 9), "blue")]), names)
    (score,) = critic.score([Image.new("RGB", (9, 9))], [Task("a photo of a red dog and a cat")])
    assert names.crops == 1
    assert score.value == 1


@pytest.mark.usefixtures("crops_are_colours")
def test_what_is_wrong_is_said_in_words_and_boxes():
    critic = geneval.GenevalCritic(Sees([seen("dog", 0.95, (0, 0, 10, 10), "blue")]), Names())
    (score,) = critic.score([Image.new("RGB", (10, 10))], [Task("a red dog")])
    assert score.value == 0.5  # there is a dog
    assert score.reason == "1 red dog (found blue)"
    assert score.checks[1].boxes == ((0, 0, 10, 10),)


def test_the_object_alone_on_grey():
    mask = np.zeros((4, 4), bool)
    mask[1, 1] = mask[2, 2] = True
    crop = geneval.cut_out(Image.new("RGB", (4, 4), "red"), Instance(0, 0.9, (1.0, 1.0, 3.0, 3.0), mask))
    grey = (0x99,) * 3
    assert list(crop.get_flattened_data()) == [(255, 0, 0), grey, grey, (255, 0, 0)]


# --- Prompts --------------------------------------------------------------------------------------------------


def test_classes_are_the_benchmarks_in_the_detectors_order():
    assert list(CLASSES) == (benchmark.DATA / "object_names.txt").read_text().splitlines()


def test_every_prompt_of_the_benchmark_is_understood_as_the_benchmark_means_it():
    for task in benchmark.tasks():
        assert metadata_of(task.prompt) == dict(task.metadata), task.prompt


@pytest.mark.parametrize(
    ("prompt", "include"),
    [
        ("A sofa to the left of a TV.", [{"class": "tv", "count": 1},
                                        {"class": "couch", "count": 1, "position": ["left of", 0]}]),
        ("two red cars and the dog", [{"class": "car", "count": 2, "color": "red"}, {"class": "dog", "count": 1}]),
    ],
)  # fmt: skip
def test_other_prompts_of_the_kind(prompt, include):
    assert metadata_of(prompt)["include"] == include


def test_numbers_are_exact():
    found = metadata_of("two red cars and a dog")
    assert found["tag"] == "counting"
    assert found["exclude"] == [{"class": "car", "count": 3}]


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        ("freedom", "does not know 'freedom'"),
        ("", "find no object"),
        ("a red fox", "does not know 'fox'"),
        ("a toy car", "does not know 'toy car'"),
        ("a dog chasing a cat", "says more than objects"),
        ("dogs and a cat", "does not say how many: 'dogs'"),
        ("a red dog and a blue dog", "one class twice"),
        ("a dog behind a car", "do not judge 'behind'"),
        ("a dog left of a car and a cat", "one direction between two objects"),
        ("a golden dog", "colours do not include 'golden'"),
        ("a black and white dog", "colours do not include 'black and white'"),
        ("20 dogs", "count up to 15"),
        ("0 dogs", "count up to 15"),
    ],
)
def test_what_it_cannot_judge_it_says(prompt, why):
    assert why in geneval.GenevalCritic.why_not(prompt)
    critic = geneval.GenevalCritic(Sees(), Names())
    (score,) = critic.score([Image.new("RGB", (9, 9))], [Task(prompt)])
    assert score.value is None
    assert why in score.reason


def test_metadata_of_other_classes_is_no_failure_of_the_picture():
    critic = geneval.GenevalCritic(Sees([]), Names())
    tasks = [Task("x", metadata={"include": [{"class": "fox", "count": 1}]}), Task("a photo of a dog")]
    unknown, missing = critic.score([Image.new("RGB", (9, 9))] * 2, tasks)
    assert unknown == Score(None, reason="GenEval's detector does not know 'fox'")
    assert missing.value == 0


@given(st.text())
def test_any_prompt_gets_an_answer(prompt):
    found = metadata_of(prompt)
    assert isinstance(found, (str, dict))


# --- The whole critic on small models -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("geneval")
    return tiny.mask2former(base / "detector"), tiny.clip(base / "clip")


@pytest.fixture(autouse=True)
def small_inputs(monkeypatch):
    monkeypatch.setattr(detectors, "SHORT_SIDE", 64)
    monkeypatch.setattr(detectors, "LONG_SIDE", 128)


def test_the_whole_critic(folders):
    detector, clip = folders
    name = f"geneval,detector={detector},clip={clip},device=cpu"
    critic = naming.make(name, None)
    assert critic.name == name
    label = CLASSES[detectors.Mask2Former(detector, geneval.Geneval(device="cpu")).instances(
        [tiny.picture(0)], 0.3)[0][0].label]  # fmt: skip
    tasks = [Task(f"a photo of a {label}"), Task(f"a red {label}"), Task("a photo of a red zebra"), Task("a fox")]
    images = [tiny.picture(0), tiny.picture(0), tiny.picture(1), tiny.picture(2, (64, 40))]
    scores = critic.score(images, tasks)
    assert scores[0].value == 1
    assert scores[1].value in (0.5, 1)
    assert "found " in scores[1].checks[1].text
    assert "no colour" not in scores[1].checks[1].text
    assert 0 <= scores[2].value <= 1
    assert scores[3].value is None
    for image, task, score in zip(images, tasks, scores, strict=True):
        assert critic.score([image], [task]) == [score]


def test_a_detector_of_other_classes_is_refused(tmp_path, folders):
    with pytest.raises(UserError, match="80 classes, not 7"):
        naming.make(f"geneval,detector={tiny.mask2former(tmp_path, classes=7)},clip={folders[1]},device=cpu", None)


def test_settings_are_checked():
    with pytest.raises(UserError, match="Unknown setting"):
        naming.make("geneval,threshold=0.5", None)
    with pytest.raises(UserError, match="neither a folder nor a hub id"):
        naming.make("geneval,detector=nowhere", None)
