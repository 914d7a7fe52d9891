import json
import time

import pytest
from stub_judge import gray, stub_judge, text_of
from tiny_models import pictures, tiny_qwen

from milr.critics import naming
from milr.critics.base import Place
from milr.critics.unified_reward import UnifiedRewardCritic, UnifiedRewardSettings, read_aspects, read_final
from milr.drafts import Task, UserError

ELEMENTS = "dog (animal): 1\n- red (color): 0\n2. **two cats (count)**: 1\n"


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("Final Score: 4", 4),
        (ELEMENTS + "\nFinal Score: 4.5", 4.5),
        ("**Final Score: 3**", 3),
        ("**Final Score:** 3.75\n", 3.75),
        ("Final Score: **2.5**", 2.5),
        ("### Final score :   1", 1),
        ("final score = 5", 5),
        ("Final Score:\n\n3.25", 3.25),
        ("Final Score: 4/5", 4),
        ("Final Score: 4.0/5.0.", 4),
        ("Final Score: 4 out of 5", 4),
        ("Final Score: [4.5]", 4.5),
        ("Final Score: 4. The dog is well drawn, the cats are 2.", 4),
        ("Final Score: 4.", 4),
        ("Final Score: 2, since it shows 3 dogs.", 2),
        ("Final Score: 3\nOn reflection:\nFinal Score: 2.5", 2.5),
        ("I assign it after 'Final Score:' as told.\nFinal Score: 5", 5),
        ("Final  Score: 1.0", 1),
        ("`Final Score: 4`", 4),
        ("Score: 9\nFinal Score: 4.125", 4.125),
    ],
)
def test_replies_with_a_final_score(reply, grade):
    score = read_final(reply)
    assert score.value == pytest.approx((grade - 1) / 4)
    assert score.reason == f"final score {grade:g}"


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "4",
        "Score: 4",
        "Final Score:",
        "Final Score: ",
        "Final Sc",
        "Final Score: 0",
        "Final Score: 6",
        "Final Score: 5.5",
        "Final Score: 45",
        "Final Score: -1",
        "Final Score: NaN",
        "Final Score: inf",
        "Final Score: four",
        "Final Score: 4-5",
        "Final Score: 4 to 5",
        "Final Score: 8/10",
        "Final Score: 4/10",
        "Final Score: 4 out of 10",
        "Final Score: 4 / 50",
        "Final Score: 4.5.1",
        "Final Score: 4\nFinal Score: unsure",
        "after 'Final Score:'",
        "这张图片很好，我给四分。",
        ELEMENTS,
    ],
)
def test_what_is_no_grade_is_an_abstention(reply):
    score = read_final(reply)
    assert score.value is None
    assert "no 'Final Score' from 1 to 5 in the reply" in score.reason
    assert "\n" not in score.reason


def test_elements_are_checks():
    assert [(found.text, found.passed) for found in read_final(ELEMENTS + "Final Score: 3").checks] == [
        ("dog (animal)", True),
        ("red (color)", False),
        ("two cats (count)", True),
    ]
    for other in ("dog: 1", "dog (animal): 2", "dog (animal): 10", "dog (animal): 0.5", "see (1): (2): x"):
        assert read_final(other).checks == ()


THREE = "Alignment Score (1-5): 3.62\nCoherence Score (1-5): 4.1\nStyle Score (1-5): 3.5"


@pytest.mark.parametrize(
    ("reply", "aspect", "value"),
    [
        (THREE, "mean", ((3.62 + 4.1 + 3.5) / 3 - 1) / 4),
        (THREE, "alignment", 0.655),
        (THREE, "coherence", 0.775),
        (THREE, "style", 0.625),
        ("**Alignment Score (1-5):** 2\n**Coherence Score (1-5)**: 3\nStyle Score ( 1 - 5 ) : **4**", "mean", 0.5),
        ("Alignment Score: 1\nCoherence score: 1.0\nSTYLE SCORE (1-5): 1", "mean", 0.0),
        ("style score: 5\nalignment score: 5\ncoherence score: 5/5", "mean", 1.0),
        (THREE + "\nSo:\n" + THREE.replace("3.62", "4.62"), "alignment", 0.905),
    ],
)
def test_replies_with_three_grades(reply, aspect, value):
    assert read_aspects(reply, aspect).value == pytest.approx(value)


@pytest.mark.parametrize(
    ("reply", "missing"),
    [
        ("", "alignment, coherence, style"),
        ("Final Score: 4", "alignment, coherence, style"),
        ("Alignment Score (1-5): X\nCoherence Score (1-5): Y\nStyle Score (1-5): Z", "alignment, coherence, style"),
        (THREE[:-20], "style"),
        (THREE.replace("4.1", "NaN"), "coherence"),
        (THREE.replace("3.62", "5.01"), "alignment"),
        (THREE.replace("3.62", "0.9"), "alignment"),
    ],
)
def test_a_missing_grade_is_an_abstention_even_if_only_another_is_asked_for(reply, missing):
    for aspect in ("mean", "alignment"):
        score = read_aspects(reply, aspect)
        assert score.value is None
        assert f"no grade from 1 to 5 for {missing} in the reply" in score.reason


@pytest.mark.parametrize("piece", ["-", " ", "\n", "(", "final ", "Final Score:", "x (y", "1.", "style score ( "])
def test_a_long_hostile_reply_is_read_quickly(piece):
    """In a time that grows as its length does, whatever this machine needs: the square of ten is a hundred."""

    def seconds(length):
        text, times = (piece * length)[:length], []
        for _ in range(3):
            start = time.thread_time()  # of this thread alone: what runs beside it does not count
            assert read_final(text).value is None
            assert read_aspects(text).value is None
            times.append(time.thread_time() - start)
        return min(times)

    assert seconds(200_000) < 40 * max(seconds(20_000), 1e-3)


def test_the_caption_goes_in_as_it_is():
    asked = []

    def write(images, requests):
        asked.extend(requests)
        return [("Final Score: 4", ""), (None, "no reply came")]

    critic = UnifiedRewardCritic(write, UnifiedRewardSettings())
    first, second = critic.score(["A", "B"], [Task(" a {prompt} [fox] "), Task("two dogs")])
    assert first.value == 0.75
    assert (second.value, second.reason) == (None, "no reply came")
    assert asked[0].endswith("Text Caption: [a {prompt} [fox]]")
    assert "'element (type): value'" in asked[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_qwen(tmp_path_factory.mktemp("qwen"))


def test_a_model_here_that_does_not_come_to_an_end(folder):
    critic = naming.make(f"unified-reward,model={folder},device=cpu,max_tokens=7", None)
    images, tasks = pictures((64, 64), (90, 60)), [Task("a fox"), Task("two dogs")]
    scores = critic.score(images, tasks)
    assert [score.value for score in scores] == [None, None]
    assert {score.reason for score in scores} == {"the reply was not over after 7 tokens"}


def test_a_reply_of_a_model_here_is_read(folder, monkeypatch):
    said = {"1": "Final Score: 4.5", "2.0": THREE}
    for version, value in (("1", 0.875), ("2.0", 0.685)):
        critic = naming.make(f"unified-reward:{version},model={folder},device=cpu", None)
        critic.score(pictures((64, 64)), [Task("a fox")])  # random weights: whatever they write is no error
        monkeypatch.setattr(
            "milr.critics.local.vlm.VisionLanguageModel.write",
            lambda self, images, requests, limit, text=said[version]: [(text, f"{limit}")] * len(images),
        )
        (score,) = critic.score(pictures((64, 64)), [Task("a fox")])
        assert score.value == pytest.approx(value, abs=1e-9)
        monkeypatch.undo()


def completion(text):
    return "body-" + json.dumps({"choices": [{"message": {"content": text}}], "usage": {}})


def test_a_server(tmp_path):
    with stub_judge(lambda number: completion("dog (animal): 1\nFinal Score: 4")) as server:
        critic = naming.make(f"unified-reward,url={server.url},key=none", None, Place(tmp_path))
        first, second = critic.score([gray(9), gray(99)], [Task("a fox"), Task("a dog")])
        assert first.value == second.value == 0.75
        assert {body["model"] for body in server.seen} == {"CodeGoat24/UnifiedReward-qwen-7b"}
        assert {body["max_tokens"] for body in server.seen} == {512}
        assert any(text_of(body).endswith("Text Caption: [a dog]") for body in server.seen)
        assert critic.score([gray(9)], [Task("a fox")])[0].value == 0.75
        assert len(server.seen) == 2
        assert len(list((tmp_path / "replies").iterdir())) == 2  # it was told where it works
    with stub_judge(lambda number: completion(THREE)) as server:
        critic = naming.make(f"unified-reward:2.0,url={server.url},key=none,aspect=style", None)
        assert critic.score([gray(9)], [Task("a fox")])[0].value == 0.625
        assert server.seen[0]["model"] == "CodeGoat24/UnifiedReward-2.0-qwen-7b"
    with stub_judge(lambda number: completion(THREE) if number else "400") as server:
        (score,) = naming.make(f"unified-reward,url={server.url},key=none", None).score([gray(9)], [Task("a fox")])
        assert score.value is None
        assert "400" in score.reason


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unified-reward:3", "Unknown value for 'version'"),
        ("unified-reward,model=nowhere", "neither a folder nor a hub id"),
        ("unified-reward:2.0,aspect=beauty", "Unknown value for 'aspect'"),
        ("unified-reward,url=http://127.0.0.1:1/v1,key=sk-123", "never the key itself"),
        ("unified-reward,key=sk-123", "never the key itself"),
    ],
)
def test_wrong_settings(text, message):
    with pytest.raises(UserError, match=message):
        naming.make(text, None)
