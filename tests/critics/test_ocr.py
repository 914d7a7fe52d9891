"""Words drawn with a real font, read by the real reader: the better they are written, the higher the score."""

import logging
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from milr.critics import naming, ocr
from milr.critics.ocr import Read, grade, wanted_phrases, words_of
from milr.drafts import Task, UserError


@pytest.fixture(scope="module")
def critic():
    return naming.make("ocr", None)


def sign(*lines, size=(384, 384), font=40, at=(30, 60), turn=0, colours=("black", "white")):
    image = Image.new("RGB", size, colours[1])
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        place = (at[0], at[1] + number * font * 2)
        draw.text(place, line, fill=colours[0], font=ImageFont.load_default(size=font))
    return image.rotate(turn, fillcolor=colours[1])


def score(critic, image, prompt, **metadata):
    (found,) = critic.score([image], [Task(prompt, metadata=metadata)])
    return found


def read(*words):
    return [Read(word, (float(number), 0.0, 1.0, 1.0)) for number, word in enumerate(words)]


# --- What is asked for ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "phrases"),
    [
        ('a sign that says "OPEN"', ("OPEN",)),
        ("a sign that says 'OPEN' and one with 'Closed today'", ("OPEN", "Closed today")),
        ("“Grand  Hotel” over ‘Bar’", ("Grand Hotel", "Bar")),
        ("„Zum Löwen“ and «Café»", ("Zum Löwen", "Café")),
        ("a shirt with 'DON'T PANIC' on it", ("DON'T PANIC",)),
        ("a mug with ‘don’t’ on it", ("don’t",)),
        ("a wall with the words 'it's over'.", ("it's over",)),
        ('写着「你好」的招牌和"欢迎"', ("你好", "欢迎")),
        ("the dog's bone and the cats' bowl", ()),
        ('a 5" nail and a 6" nail', ()),
        ('a sign that says "!?"', ()),
        ("a red fox", ()),
    ],
)
def test_quotes_are_what_is_asked_for(prompt, phrases):
    assert wanted_phrases(prompt, {}) == phrases


def test_metadata_wins_over_quotes():
    assert wanted_phrases('a "fox"', {"text": "OPEN"}) == ("OPEN",)
    assert wanted_phrases('a "fox"', {"text": ["OPEN", "9 to 5"]}) == ("OPEN", "9 to 5")
    assert wanted_phrases('a "fox"', {"text": []}) == ("fox",)


def test_words_are_compared_without_punctuation():
    assert words_of("Don't PANIC!", False) == ["dont", "panic"]
    assert words_of("Don't PANIC!", True) == ["Dont", "PANIC"]
    assert words_of("50% off — ｆｕｌｌ", False) == ["50%", "off", "full"]
    assert words_of("新年 ok快乐", False) == ["新", "年", "ok", "快", "乐"]


# --- The formula, by hand -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phrase", "words", "value", "passed"),
    [
        ("OPEN", ["open"], 1.0, True),
        ("OPEN", [], 0.0, False),
        ("OPEN", ["opfn"], (0 + 3 / 4) / 2, False),
        ("OPEN", ["spoon", "opens"], (0 + 4 / 5) / 2, False),  # the nearest one counts
        ("no exit", ["exit", "no"], 1.0, True),  # in any order
        ("no exit", ["no"], (1 / 2 + 2 / 6) / 2, False),
        ("no exit", ["no", "exlt"], (1 / 2 + (2 + 4 * 3 / 4) / 6) / 2, False),
        ("no no exit", ["no", "exit"], (2 / 3 + 6 / 8) / 2, False),  # a word read once stands for one
        ("birthday party", ["happy", "birth", "day", "party", "anna"], 1.0, True),  # spaces are not counted
        ("birth day", ["birthday"], 1.0, True),
        ("cat", ["concatenate"], (0 + 3 / 11) / 2, False),  # but a word is a whole word
    ],
)
def test_worked_grades(phrase, words, value, passed):
    found, check = grade(phrase, read(*words), False)
    assert (found, check.passed) == (pytest.approx(value), passed)
    assert f"'{phrase}'" in check.text


def test_boxes_are_those_of_misread_words():
    _, check = grade("no exit today", read("no", "exlt", "zzz"), False)
    assert check.boxes == ((1.0, 0.0, 1.0, 1.0),)
    assert check.text == "the words 'no exit today' (read 'no exlt')"
    assert grade("no", read(), False)[1].text == "the words 'no' (not found)"


# --- Read from pictures ---------------------------------------------------------------------------------------


def test_the_better_written_the_higher(critic):
    prompt = 'a sign that says "Happy Birthday"'
    pictures = {
        "right": sign("Happy Birthday"),
        "one letter": sign("Happy Birthdoy"),
        "both wrong": sign("Hapy Brithdey"),
        "half": sign("Happy"),
        "other": sign("Zürich 1871"),
        "empty": sign(),
    }
    found = {name: score(critic, picture, prompt) for name, picture in pictures.items()}
    values = {name: one.value for name, one in found.items()}
    assert values["right"] == 1.0
    assert values["empty"] == 0.0
    assert 1 > values["one letter"] > values["both wrong"] > values["other"] >= 0
    assert values["one letter"] > values["half"] > values["other"]
    (check,) = found["one letter"].checks
    assert not check.passed
    left, top, right, bottom = check.boxes[0]
    assert left < 60 < 250 < right < 384
    assert top < 80 < bottom < 150
    assert "happy birthdoy" in check.text
    assert found["empty"].reason == "no words read"


def test_lines_turns_colours_and_sizes(critic):
    for picture in (
        sign("Happy", "Birthday", "Anna"),
        sign("Happy Birthday Anna", font=26),
        sign("HAPPY BIRTHDAY", "ANNA!", turn=180),
        sign("Happy Birthday", "Anna", turn=90),
        sign("Happy Birthday", "Anna", turn=8),
        sign("Happy Birthday", "Anna", colours=("yellow", "navy")),
        sign("Happy Birthday", "Anna", size=(1024, 768), font=90),
        sign("Happy", "Birthday", "Anna", "and much else").convert("RGBA"),
    ):
        assert score(critic, picture, "“Happy Birthday Anna”").value == 1.0


def test_several_phrases_are_their_mean(critic):
    found = score(critic, sign("OPEN", "9 to 5"), 'a door with "OPEN", "9 to 5" and "Push"')
    assert [check.passed for check in found.checks] == [True, True, False]
    assert 2 / 3 <= found.value < 0.75
    assert score(critic, sign("OPEN"), "a door", text="open").value == 1.0


def test_capitals_count_when_asked_for(critic):
    strict = naming.make("ocr,case=true,threads=2", None)
    assert strict.name == "ocr,case=true,threads=2"
    picture = sign("Open")
    assert score(critic, picture, 'a sign with "OPEN"').value == 1.0
    assert score(strict, picture, 'a sign with "OPEN"').value < 0.5
    assert score(strict, picture, 'a sign with "Open"').value == 1.0


def test_a_batch_is_what_its_pictures_are_alone(critic):
    pictures = [sign("OPEN"), sign(), sign("OPFN")]
    tasks = [Task('a sign with "OPEN"')] * 3
    together = critic.score(pictures, tasks)
    assert together == [critic.score([picture], [tasks[0]])[0] for picture in pictures]


def test_what_it_cannot_judge_it_abstains_from(critic):
    assert "no words in quotes" in critic.why_not("a red fox")
    assert "knows no '" in critic.why_not('a sign with "Привет"')
    assert critic.why_not('a sign with "Café"') is None
    found = score(critic, sign("OPEN"), "a red fox")
    assert (found.value, found.reason) == (None, critic.why_not("a red fox"))


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (900, 3)])
def test_odd_shapes_cost_no_more_than_others(critic, size, monkeypatch):
    """The reader makes the short side large, whatever that is; so what it gets is never longer than three of them."""
    given, reader = [], critic._reader
    monkeypatch.setattr(critic, "_reader", lambda image, **how: given.append(image.size) or reader(image, **how))
    assert score(critic, Image.new("RGB", size), 'a sign with "OPEN"').value == 0.0
    assert max(given[0]) <= 3 * min(given[0])
    assert max(given[0]) == max(size)


def test_boxes_stay_inside_a_padded_picture(critic):
    picture = sign("OPFN", size=(140, 900), at=(10, 400))
    (check,) = score(critic, picture, 'a sign with "OPEN"').checks
    left, top, right, bottom = check.boxes[0]
    assert 0 <= left < right <= 140
    assert 380 < top < bottom < 470


def test_it_is_quiet(critic, capfd):
    critic.score([Image.fromarray(np.zeros((64, 64, 3), np.uint8))], [Task('"OPEN"')])
    assert capfd.readouterr() == ("", "")
    assert not logging.getLogger("RapidOCR").isEnabledFor(logging.ERROR)


def test_missing_models_are_the_users_to_restore(monkeypatch):
    monkeypatch.setattr(ocr.importlib.metadata, "files", lambda name: [])
    with pytest.raises(UserError, match="install it again"):
        naming.make("ocr", None)


@pytest.mark.parametrize("package", ["rapidocr", "onnxruntime"])
def test_a_missing_package_is_named_with_the_command_that_brings_it(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"'{package}'; pip install 'milr\[critics\]'"):
        naming.make("ocr", None)
