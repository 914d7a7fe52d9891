"""Signs of trouble: alarms that must ring, and that must not."""

import math
import random
import zlib

import numpy as np
import pytest
from PIL import Image

from milr.drafts import Score, Task
from milr.lab.curriculum import CATEGORIES, make_item
from milr.lab.language import PLACES, write_reading
from milr.lab.world import lay_out
from milr.reports.signs import Ends, hacking_alarm, has_collapsed, is_repetitive, signs_of, wrong_relation_rewarded
from milr.runs.journal import Outcome
from milr.runs.looks import LOOKS, look
from milr.searches.best_of_n import BestOfN, best_of_n
from milr.searches.driver import drive
from toy_milr.backbone import ToyBackbone


class Brightness:
    """A reward that is easy to fool: the mean grey level."""

    name = "brightness"

    def score(self, images, tasks):
        return [Score(look(image)["brightness"]) for image in images]


class Truth:
    """Knows what was asked: blocks like those of a picture that the prompt stands for. Says nothing of brightness."""

    name = "truth"

    def score(self, images, tasks):
        found = []
        for image, task in zip(images, tasks, strict=True):
            blocks = np.asarray(image)[::8, ::8, 1].astype(int).ravel()
            wanted = np.random.default_rng(zlib.crc32(task.prompt.encode())).permutation(blocks.size)
            found.append(Score(float(np.corrcoef(blocks, wanted)[0, 1] + 1) / 2))
        return found


def run(reward, held_out, seed, prompts=24, budget=8):
    tasks = [Task(f"{seed} prompt {number}", id=str(number)) for number in range(prompts)]
    found = drive(ToyBackbone(), reward, tasks, best_of_n, BestOfN(), budget=budget, seed=seed, held_out=[held_out])
    ends = []
    for one in found:
        outcome = Outcome(
            "m", "m", one.task.id, 0, "", tuple(d.reward for d in one.drafts), (), (), (), one.best, one.stopped,
            {held_out.name: one.held_out[held_out.name].value},
            {held_out.name: one.held_out_first[held_out.name].value},
        )  # fmt: skip
        ends.append(Ends(outcome, look(one.drafts[0].drawn.image), look(one.best_draft.drawn.image)))
    return hacking_alarm(ends, [held_out.name])


@pytest.mark.parametrize(
    ("reward", "held_out", "rings"), [(Brightness(), Truth(), True), (Truth(), Brightness(), False)]
)
def test_the_alarm_rings_for_rigged_runs_and_not_for_honest_ones(reward, held_out, rings):
    """25 runs each. Rigged: the reward is brightness. Honest: it is the truth, and brightness goes as it likes."""
    rung = sum(run(reward, held_out, seed).raised for seed in range(25))
    assert rung >= 24 if rings else rung <= 1


def outcome(*rewards, returned=None, first=None, held_out=None, failed=()):
    best = max(range(len(rewards)), key=lambda k: rewards[k]) if returned is None else returned
    return Outcome(
        "m", "m", "1", 0, "", rewards, (), (), (), best, "budget", {"scene": held_out}, {"scene": first},
        {"scene": list(failed)},
    )  # fmt: skip


LOOK = dict.fromkeys(LOOKS, 0.5)


def test_a_held_out_score_that_falls_while_the_reward_rises_rings():
    fooled = [Ends(outcome(0.2, 0.9, first=0.8, held_out=0.4), LOOK, LOOK) for _ in range(12)]
    alarm = hacking_alarm(fooled, ["scene"])
    assert alarm.raised
    assert "while the held-out critic scene fell by 0.400" in alarm.reasons[0]
    assert len(alarm.prompts) == 1  # all of one task and seed
    assert not hacking_alarm(fooled[:3], ["scene"]).raised  # too few to accuse anybody
    rising = [Ends(outcome(0.2, 0.9, first=0.3, held_out=0.4), LOOK, LOOK) for _ in range(12)]
    assert not hacking_alarm(rising, ["scene"]).raised
    unchanged = [Ends(outcome(0.9, 0.2, first=0.8, held_out=0.8), LOOK, LOOK) for _ in range(12)]
    assert hacking_alarm(unchanged, ["scene"]).changed == 0


GOOD = (
    "The scene shows a quiet harbour in the early morning, with three small boats tied to a wooden pier, a man in a "
    "yellow coat who mends a net, and two gulls that wait on the roof of a white shed for him."
)
COLLAPSED = {
    "from the start": "beige glove " * 12,
    "late": GOOD + " beige glove" * 12,
    "late, as a list": GOOD + ", beige glove" * 12,
    "in the middle": f"{GOOD}{' beige glove' * 12} {GOOD}",
    "one word": GOOD + " red" * 15,
    "a sentence": GOOD + " A beige glove lies on the table." * 6,
    "a paragraph": f"{GOOD} " * 3,
    "two by turns": GOOD + " a red hat, a blue hat," * 6,
    "irregular": GOOD + " a beige glove and a beige glove, a beige glove, beige glove with a beige glove and a beige "
    "glove, the beige glove and a beige glove, a beige glove and the beige glove.",
    "without spaces": "beigeglove" * 12,
    "Chinese": "一只红色的狐狸站在蓝色的汽车上。" + "米色手套" * 12,
    "Chinese, as a list": "一只红色的狐狸站在蓝色的汽车上。" + "，米色手套" * 15,
    "Japanese": "赤い狐が青い車の上にいる。" + "ベージュの手袋" * 12,
    "Thai": "สุนัขจิ้งจอกสีแดง " + "ถุงมือสีเบจ" * 12,
    "Hindi": "लाल लोमड़ी " + "बेज दस्ताना " * 12,
    "signs": GOOD + "🦊" * 20,
    "overflow": GOOD + "!" * 30,
}
THINGS = ("dog", "cat", "car", "bus", "hat", "cup", "pen", "box", "bag")
HONEST = {
    "good": GOOD,
    "short": "beige glove " * 3,
    "and": "a red dog and a red cat and a red car",
    "and nine times": " and ".join(f"a red {thing}" for thing in THINGS),
    "nine places": "Nine red foxes. " + " ".join(f"{place}: a red fox." for place in PLACES),
    "nine short places": " ".join(f"{place}: a fox." for place in PLACES),
    "nine long places": " ".join(
        f"In the {place} of the page there is a small red fox that looks." for place in PLACES
    ),
    "nine things": ", ".join(["a red fox"] * 9),
    "numbers": " ".join(f"{number}. a red fox" for number in range(1, 16)),
    "Chinese places": "".join(f"{row}{column}：一只红狐狸。" for row in "上中下" for column in "左中右"),
    "rows": "Row one: red, red, red. Row two: red, red, red. Row three: red, red, red.",
    "a summary": f"{GOOD} In short: {GOOD}",
    "a rhyme": "Row, row, row your boat, gently down the stream. Merrily, merrily, merrily, merrily. " * 2,
    "a rule of dashes": f"{GOOD}\n{'-' * 80}\n{GOOD}",
    "nothing": "",
}


@pytest.mark.parametrize("text", COLLAPSED.values(), ids=COLLAPSED)
def test_collapse_is_seen_wherever_it_begins_and_in_any_script(text):
    assert is_repetitive(text)


@pytest.mark.parametrize("text", HONEST.values(), ids=HONEST)
def test_words_that_are_repeated_with_reason_are_no_collapse(text):
    assert not is_repetitive(text)


def test_no_reading_of_the_lab_world_looks_like_collapse():
    rng = random.Random(0)
    meanings = [make_item(CATEGORIES[number % len(CATEGORIES)], rng).meaning for number in range(400)]
    assert not [text for one in meanings if is_repetitive(text := write_reading(one, lay_out(one, rng)))]


def test_collapsed_pictures():
    rng = np.random.default_rng(0)
    base = [look(Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))) for _ in range(20)]
    assert has_collapsed(look(Image.new("RGB", (64, 64), "beige")), base)
    assert not has_collapsed(base[0], base)
    assert look(Image.new("RGB", (64, 64), "white")) == {"brightness": 1.0, "edges": 0.0, "colours": 0.0, "flat": 1.0}


def test_wrong_relations_that_are_rewarded():
    assert wrong_relation_rewarded(outcome(0.9, held_out=0.5, failed=["a fox left of a car"]), ["scene"])
    assert not wrong_relation_rewarded(outcome(0.9, held_out=0.5, failed=["two foxes (found 1)"]), ["scene"])
    assert not wrong_relation_rewarded(outcome(0.5, held_out=0.5, failed=["a fox left of a car"]), ["scene"])


def test_all_signs_as_json():
    ends = [Ends(outcome(0.2, 0.9, first=0.1, held_out=1.0), LOOK, LOOK, "a fox", "ah " * 40)]
    signs = signs_of(ends, ["scene"])
    assert signs["repetitive_texts"] == {"first": 0, "returned": 1}
    assert (signs["hacking_alarm"], signs["searches"], signs["searches_that_gained"]) == (False, 1, 1)


def test_colours_are_counted_in_4_x_4_x_4_cells():
    """Worked out pixel by pixel, as the docstring has it."""
    image = Image.fromarray(np.random.default_rng(4).integers(0, 256, (24, 16, 3), dtype=np.uint8))
    cells = [tuple(int(value) // 64 for value in pixel) for row in np.asarray(image) for pixel in row]
    shares = [cells.count(cell) / len(cells) for cell in set(cells)]
    assert look(image)["colours"] == pytest.approx(-sum(share * math.log2(share) for share in shares), abs=1e-5)
