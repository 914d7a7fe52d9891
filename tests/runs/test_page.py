import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milr.runs.page import asked_in_words, curve, render_page, word_changes
from runs_toy import draw

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)> \"' onload=alert(3) "
    "</title></style><style>@import 'http://evil'</style> {{ 7 * 7 }} {% raw %} javascript:alert(4) \u202e &lt;"
)


class Page(HTMLParser):
    """What a browser would act on: tags and their attributes."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, text):
        self.text += text


def page_of(result):
    return render_page(result.record, [draft.drawn.image for draft in result.trajectory.drafts])


def test_the_page_shows_the_search():
    result = draw(preset="official")
    page = Page(page_of(result))
    assert sum(tag == "article" for tag, _ in page.tags) == len(result.trajectory.drafts)
    pictures = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert all(picture.startswith("data:image/") for picture in pictures)
    for word in ("two red foxes", "redness", "official", "top left is red", "decoded tokens", result.reasoning):
        assert word in re.sub(r"\s+", " ", page.text)


def test_nothing_leaves_the_page_and_nothing_runs_in_it():
    result = draw(HOSTILE, budget=2)
    record = {
        **result.record,
        "notes": [HOSTILE],
        "critic": HOSTILE,
        "settings": {HOSTILE: HOSTILE},
        "held_out": {HOSTILE: {"value": None, "reason": HOSTILE, "checks": []}},
    }
    for draft in record["drafts"]:
        draft["reasoning"] = draft["searched_text"] = HOSTILE
        draft["score"] = {"value": 0.5, "reason": HOSTILE, "checks": [{"text": HOSTILE, "passed": False, "boxes": []}]}
    text = render_page(record, [draft.drawn.image for draft in result.trajectory.drafts])
    page = Page(text)
    assert not {"script", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in page.tags}
    assert sum(tag == "style" for tag, _ in page.tags) == 1
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        if tag != "meta":
            assert all(
                attributes.get(name, "#").startswith(("#", "data:image/"))
                for name in ("href", "src", "xlink:href", "srcset", "action")
            )
    assert "49" not in page.text.split("decoded tokens")[0], "templates in a prompt must not run"
    policy = next(attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes)
    assert "default-src 'none'" in policy
    assert page.text.count("alert(1)") > 5, "it is all there, as text"


def test_a_search_that_returns_less_than_its_best_says_so():
    result = draw(preset="official", budget=20, seed=3, settings={"learning_rate": 1.0, "text_ratio": 0.4})
    rewards = [draft.reward for draft in result.trajectory.drafts]
    assert result.reward < max(rewards), "the case that this test is about"
    shown = re.sub(r"\s+", " ", Page(page_of(result)).text)
    assert f"draft {rewards.index(max(rewards))} has the highest reward" in shown


def test_drafts_without_a_score_are_shown_as_such():
    class Mute:
        name = "mute"

        def score(self, images, tasks):
            raise OSError("no network")

    result = draw(reward=Mute(), budget=12)
    assert result.reward is None
    assert result.trajectory.stopped == "abstained"
    text = page_of(result)
    assert "not scored" in text
    assert "no network" in text


def test_changes_are_marked_word_by_word():
    changes = word_changes("a red fox above a car", "a blue fox above a big car", searched="a blue")
    assert [(words.text.strip(), words.change, words.searched) for words in changes] == [
        ("a", "same", True),
        ("red", "gone", False),
        ("blue", "new", True),
        ("fox above a", "same", False),
        ("big", "new", False),
        ("car", "same", False),
    ]


sentences = st.text("ab \n", max_size=40)


@given(sentences, sentences)
def test_what_is_shown_as_not_gone_is_the_new_text(before, after):
    changes = word_changes(before, after)
    kept = " ".join(words.text for words in changes if words.change != "gone")
    assert kept.split() == after.split()
    if before.strip():
        kept = " ".join(words.text for words in changes if words.change != "new")
        assert kept.split() == before.split()


@pytest.mark.parametrize("rewards", [[None], [0.5], [None, 0.2, None, 1.0], [1.0] * 1000])
def test_the_curve_stays_in_its_frame(rewards):
    drawn = curve(rewards)
    assert len(drawn["points"]) == len(rewards)
    for point in drawn["points"]:
        assert 0 <= point.x <= drawn["width"]
        assert drawn["margin"] <= point.y <= drawn["height"] - drawn["margin"]


def test_what_was_asked_is_said_in_words():
    greedy, sample = {"how": "greedy"}, {"how": "sample", "temperature": 1.0}
    repair = {"how": "forced", "tokens": [1] * 16, "then": sample, "free": [3, 4]}
    prefix = {"how": "forced", "tokens": [1, 2], "then": greedy, "free": None}
    draft = {"ask": {"text": prefix, "image": repair, "note": {}}}
    assert asked_in_words(draft) == (
        "Reasoning first 2 tokens given by the search, rest greedy; "
        "image 2 tokens drawn afresh (sampled), all others kept."
    )
