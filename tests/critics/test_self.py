import pytest
from PIL import Image

from milr.critics import naming
from milr.critics.self_critic import read_verdict
from milr.drafts import Task, UserError
from toy_milr.backbone import ToyBackbone


class Writes(ToyBackbone):
    """A backbone that writes this."""

    def __init__(self, *texts):
        super().__init__()
        self.texts, self.asked = list(texts), []

    def describe(self, images, questions, max_tokens):
        self.asked += [(question, max_tokens) for question in questions]
        return self.texts


@pytest.mark.parametrize(
    ("text", "value", "reason"),
    [
        ('{"Thought": "one dog", "Score": 0, "Reason": ""}', 1.0, ""),
        ('{"Thought": "three dogs", "Score": -1, "Reason": "two too many"}', 0.0, "two too many"),
        ('\n  {"Score": -1,\n "Reason": "no dog"}\n', 0.0, "no dog"),
        ('{"Score": -0.25, "Reason": "the colour is off"}', 0.75, "the colour is off"),
        ('{"Score": 0}', 1.0, ""),
        ('{"Score": 0, "Reason": ["x"]}', 1.0, ""),
    ],
)
def test_verdicts(text, value, reason):
    score = read_verdict(text)
    assert (score.value, score.reason) == (value, reason)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is no JSON object: it is empty"),
        ("Yes", "is no JSON object: Yes"),
        ("0", "no JSON object"),
        ("[0]", "no JSON object"),
        ('Here is it: {"Score": 0}', "no JSON object"),
        ('```json\n{"Score": 0}\n```', "no JSON object"),
        ('{"Thought": "there is a dog which', "no JSON object"),
        ('{"Score": 0, "Score": 0', "no JSON object"),
        ("{}", "Score None"),
        ('{"score": 0}', "Score None"),
        ('{"Score": "0"}', "Score '0'"),
        ('{"Score": true}', "Score True"),
        ('{"Score": 1}', "Score 1,"),
        ('{"Score": -2}', "Score -2,"),
        ('{"Score": NaN}', "Score nan"),
        ('{"Score": -Infinity}', "Score -inf"),
        ("[" * 100_000, "no JSON object"),
    ],
)
def test_what_is_no_verdict_is_an_abstention(text, reason):
    score = read_verdict(text)
    assert score.value is None
    assert reason in score.reason


def test_json_asks_for_the_caption_in_quotes_and_reads_each_reply():
    backbone = Writes('{"Score": 0}', "a dog")
    critic = naming.make("self:json,max_tokens=40", backbone)
    assert critic.name == "self:json,max_tokens=40"
    image = Image.new("RGB", (8, 8))
    right, unread = critic.score([image, image], [Task('a "big" dog {x}'), Task("two dogs")])
    assert (right.value, unread.value) == (1.0, None)
    assert 'for the caption "a \\"big\\" dog {x}".' in backbone.asked[0][0]
    assert '"Score" (0 if' in backbone.asked[0][0]
    assert {limit for _, limit in backbone.asked} == {40}


def test_yes_is_the_default_and_keeps_its_name_and_words():
    backbone = Writes()
    backbone.answer = lambda images, questions: backbone.asked.extend(questions) or [0.25]
    critic = naming.make("self", backbone)
    assert critic.name == "self"
    (score,) = critic.score([None], [Task(" a red fox. ")])
    assert score.value == 0.25
    assert backbone.asked == ["Does this picture show a red fox?"]


def test_a_tiny_janus_is_asked_for_json(tiny_backbone):
    """Random weights write no JSON: the real path runs, and the critic abstains."""
    scores = naming.make("self:json,max_tokens=6", tiny_backbone).score(
        [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")], [Task("a fox"), Task("two foxes, left")]
    )
    assert [score.value for score in scores] == [None, None]
    assert all("no JSON object" in score.reason for score in scores)


def test_who_cannot_be_asked():
    class Mute:
        info = ToyBackbone().info

    with pytest.raises(UserError, match=r"toy cannot write about a picture.*use 'self'"):
        naming.make("self:json", Mute())
    with pytest.raises(UserError, match="there is none here"):
        naming.make("self", None)
    with pytest.raises(UserError, match="'form'"):
        naming.make("self:xml", ToyBackbone())
