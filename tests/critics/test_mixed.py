"""Rewards worked by hand from plain detections and answers; then the whole critic on small models."""

import pytest
import tiny_detectors as tiny
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from milr.benchmarks import geneval as benchmark
from milr.critics import mixed, naming
from milr.critics.local import detectors
from milr.critics.mixed import judged, parts_of, reason_against
from milr.critics.rules.prompt_parts import Place, Thing, read
from milr.drafts import Task, UserError

SIZE = (480, 480)
LEFT, RIGHT, TOP = (0, 200, 40, 240), (400, 200, 440, 240), (200, 0, 240, 40)


def found(label, box, score=0.9):
    return {"label": label, "score": score, "box": box}


def value(prompt, detections, answers, size=SIZE):
    return judged(read(prompt), detections, answers, size).value


def test_objects_where_there_is_neither_place_nor_number():
    assert value("dogs and cats", [found("dog", LEFT)], [0.8, 0.4]) == pytest.approx(0.75 * 0.5 + 0.25 * 0.6)


def test_numbers_are_exact_or_a_fifth():
    two = [found("dog", LEFT), found("dog", RIGHT)]
    assert value("two dogs", two, [1.0]) == 1
    assert value("three dogs", two, [1.0]) == pytest.approx(0.75 * 0.2 + 0.25)
    assert value("two dogs and a cat", two, [1.0, 0.0]) == pytest.approx(0.75 * 0.5 + 0.25 * 0.5)
    assert value("a dog", two, [1.0]) == pytest.approx(0.75 * 0.2 + 0.25)  # one asked, two there
    assert value("two dogs and cats", [*two, found("cat", TOP)], [1.0, 1.0]) == 1  # any number of cats is right


def test_colours_weigh_a_half():
    assert value("a red dog", [found("dog", LEFT)], [0.6]) == pytest.approx(0.5 + 0.5 * 0.6)
    two = [found("dog", LEFT), found("dog", RIGHT)]
    assert value("a blue dog and a red dog", two, [0.6, 0.2]) == pytest.approx(0.5 + 0.5 * 0.4)  # two dogs are asked
    assert value("dogs and a red dog", two, [0.6, 0.2]) == pytest.approx(0.5 + 0.5 * 0.4)


def test_places():
    both = [found("dog", LEFT), found("cat", RIGHT)]
    assert value("a dog left of a cat", both, [1.0, 1.0]) == pytest.approx(1)
    assert value("a dog right of a cat", both, [1.0, 1.0]) == pytest.approx(0.75 * 0.4 / 0.9 + 0.25)
    assert value("a dog left of a cat", both[:1], [1.0, 1.0]) == pytest.approx(0.75 * 0.2 / 0.9 + 0.25)
    assert value("a dog left of a cat", [], [0.0, 0.0]) == 0


@pytest.mark.parametrize("words", ["above", "on top of", "over"])
def test_above_has_a_rule(words):
    high, low = found("dog", TOP), found("cat", (200, 400, 240, 440))
    assert value(f"a dog {words} a cat", [high, low], [1.0, 1.0]) == pytest.approx(1)
    assert value(f"a cat {words} a dog", [high, low], [1.0, 1.0]) == pytest.approx(0.75 * 0.4 / 0.9 + 0.25)


def test_near_means_pixels():
    far = [found("dog", (0, 0, 10, 10)), found("cat", (300, 300, 310, 310))]
    holds = 150 / (300 * 479 / 480)  # the picture's pixels on the detector's scale
    assert value("a dog next to a cat", far, [0.0, 0.0]) == pytest.approx(0.75 * (0.4 + 0.5 * holds) / 0.9)


def test_the_surest_box_is_compared():
    boxes = [found("dog", LEFT, 0.9), found("dog", RIGHT, 0.4), found("cat", TOP)]
    assert value("a dog left of a cat", boxes, [1.0, 1.0]) == pytest.approx(0.75 * 0.4 / 0.9 + 0.25)  # more below
    boxes[2] = found("cat", (200, 200, 240, 240))
    assert value("a dog left of a cat", boxes, [1.0, 1.0]) == pytest.approx(1)


def test_a_place_that_a_flat_picture_does_not_show_is_said():
    score = judged(read("a dog behind a cat"), [found("dog", LEFT), found("cat", RIGHT)], [1.0, 1.0], SIZE)
    assert score.value == 1  # the objects are there
    assert "not judged: behind" in score.reason


def test_two_things_of_a_name_have_no_place_that_the_detector_could_tell():
    two = [found("dog", LEFT), found("dog", RIGHT)]
    score = judged(read("a red dog left of a blue dog"), two, [1.0, 1.0], SIZE)
    assert score.value == 1
    assert "not judged: left of" in score.reason


def test_checks_say_what_is_wrong_and_where():
    boxes = [found("fox", LEFT), found("fox", TOP), found("car", RIGHT)]
    score = judged(read("a photo of a red fox and a blue car"), boxes, [0.9, 0.2], SIZE)
    assert [(check.text, check.passed, check.boxes) for check in score.checks] == [
        ("1 fox (found 2)", False, (TOP,)),
        ("1 car (found 1)", True, ()),
        ("red fox? yes 0.90", True, ()),
        ("blue car? yes 0.20", False, (RIGHT,)),
    ]
    assert score.reason == "understood: 1 red fox, 1 blue car; detector 0.60, GIT 0.55"
    wrong = judged(read("a fox right of a car"), boxes, [1.0, 1.0], SIZE).checks[0]
    assert (wrong.text, wrong.boxes) == ("fox right of car (0.00)", (LEFT, RIGHT))


def test_the_benchmarks_metadata_comes_first():
    include = [{"class": "cat", "count": 1}, {"class": "dog", "count": 2, "color": "red", "position": ["above", 0]}]
    parts = parts_of(Task("something else", metadata={"include": include}))
    assert parts.things == (Thing("cat", 1), Thing("dog", 2, ("red",)))
    assert parts.places == (Place(1, "above", 0),)


def test_words_and_metadata_of_the_benchmark_agree():
    for task in benchmark.tasks():
        mine, theirs = parts_of(Task(task.prompt)), parts_of(task)

        def plain(parts):
            things = [(thing.name, thing.count, thing.colours) for thing in parts.things]
            return sorted(things), [
                (things[place.first], place.relation, things[place.second]) for place in parts.places
            ]

        assert plain(mine) == plain(theirs), task.prompt


def test_what_it_cannot_judge_it_says():
    assert "no thing" in mixed.MixedCritic.why_not("!?")
    assert mixed.MixedCritic.why_not("a red fox") is None
    assert "more than 16" in mixed.MixedCritic.why_not(", ".join(["a dog"] * 17))


BOXES = st.tuples(*[st.floats(0, 480)] * 4).map(lambda b: (min(b[0], b[2]), min(b[1], b[3]), *map(max, b[:2], b[2:])))


@given(
    st.sampled_from(["two dogs", "a red dog above a cat", "dogs", "a dog near a cat", "a cat in a dog"]),
    st.lists(st.builds(found, st.sampled_from(["dog", "cat"]), BOXES, st.floats(0.3, 1)), max_size=5),
    st.floats(0, 1),
)
def test_values_lie_between_0_and_1(prompt, boxes, yes):
    parts = read(prompt)
    score = judged(parts, boxes, [yes] * len(parts.things), SIZE)
    assert 0 <= score.value <= 1 + 1e-9


@given(st.text())
def test_any_prompt_gets_an_answer(prompt):
    assert isinstance(mixed.MixedCritic.why_not(prompt), (str, type(None)))


# --- The whole critic -----------------------------------------------------------------------------------------


class Finds:
    def __init__(self, *per_image):
        self.per_image, self.nouns = per_image, None

    def find(self, images, nouns, least):
        self.nouns = nouns
        return list(self.per_image)


class Answers:
    def __init__(self, yes):
        self.yes, self.questions = yes, None

    def p_yes(self, images, questions):
        self.questions = questions
        return [self.yes[question] for question in questions]


def test_nouns_and_questions():
    detector = Finds([found("dog", LEFT)], [found("cat", LEFT)])
    vqa = Answers({"red dog?": 0.5, "cat?": 0.25})
    critic = mixed.MixedCritic(detector, vqa)
    image = Image.new("RGB", SIZE)
    scores = critic.score([image] * 3, [Task("a red dog"), Task("!"), Task("a cat")])
    assert detector.nouns == [("dog",), ("cat",)]
    assert vqa.questions == ["red dog?", "cat?"]
    assert [score.value for score in scores] == [0.75, None, 0.75 + 0.25 * 0.25]
    assert reason_against(read("!")) == scores[1].reason


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("mixed")
    return tiny.grounding_dino(base / "detector"), tiny.git(base / "vqa")


def test_on_small_models(folders, monkeypatch):
    monkeypatch.setattr(detectors, "SHORT_SIDE", 96)
    name = f"mixed,detector={folders[0]},vqa={folders[1]},device=cpu,least=0.1,batch=2,least_share=0"
    critic = naming.make(name, None)
    assert critic.name == name
    images = [tiny.picture(0), tiny.picture(1, (64, 40)), tiny.picture(2), tiny.picture(3)]
    tasks = [Task("two dogs and a red car"), Task("a cat above a bench"), Task("?"), Task("a green bear")]
    scores = critic.score(images, tasks)
    assert [score.value is None for score in scores] == [False, False, True, False]
    for image, task, score in zip(images, tasks, scores, strict=True):
        (alone,) = critic.score([image], [task])
        assert alone.value == (None if score.value is None else pytest.approx(score.value, abs=1e-4))
    assert all(0 <= score.value <= 1 for score in scores if score.value is not None)


def test_settings_are_checked():
    with pytest.raises(UserError, match="number from 0 to 1"):
        naming.make("mixed,least=2", None)
