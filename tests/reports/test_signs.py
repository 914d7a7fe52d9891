"""Signs of trouble: alarms that must ring, and that must not."""

import zlib

import numpy as np
import pytest
from PIL import Image

from milr.drafts import Score, Task
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
    """100 runs each. Rigged: the reward is brightness. Honest: it is the truth, and brightness goes as it likes."""
    rung = sum(run(reward, held_out, seed).raised for seed in range(100))
    assert rung >= 95 if rings else rung <= 5


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


def test_repetitive_texts():
    assert is_repetitive("beige glove " * 12)
    assert not is_repetitive("beige glove " * 3)  # too short to tell
    assert not is_repetitive(
        "Two red foxes above a blue car. Top left: a red fox. Top middle: a red fox. Below: a blue car."
    )
    four = " ".join(f"{where}: a red fox." for where in ("Top left", "Top right", "Middle", "Bottom left"))
    assert not is_repetitive(f"Four red foxes. {four}")


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
