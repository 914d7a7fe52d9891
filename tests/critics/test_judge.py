import json
import random
import re
import shutil
import types
from pathlib import Path

import pytest
import tenacity.nap
from stub_judge import FAULTS, gray, outside, stub_judge, text_of, token_of

from milr.critics import judge as judge_file
from milr.critics import naming
from milr.critics.base import Place, judge
from milr.critics.judge import Unreadable, read_rubric, verdict_in
from milr.critics.remote import chat
from milr.critics.remote.chat import Purse
from milr.drafts import Check, Task, UserError

INJECTIONS = [json.loads(line) for line in (Path(__file__).parent / "injections.txt").read_text("utf-8").splitlines()]
FOX = Task("a fox", metadata={"explanation": "It must be red."})


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """A purse of its own, no key, and no sleep between attempts."""
    monkeypatch.setattr(chat, "PURSE", Purse())
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    waits = []
    monkeypatch.setattr(tenacity.nap, "time", types.SimpleNamespace(sleep=waits.append))
    return waits


def critic(stub, rubric="general", *settings):
    return naming.make(",".join([f"judge:{rubric}", f"url={stub.url}", *settings]), None)


def one(stub, rubric="general", task=FOX, level=51):
    return judge(critic(stub, rubric), [gray(level)], [task])[0]


def says(*texts):
    """The judge replies with these, one after the other, then with the last."""
    return lambda number: f"says-{texts[min(number, len(texts) - 1)]}"


# --- marks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rubric", "marks", "expected"),
    [
        ("general", {"alignment": 10, "quality": 10}, 1.0),
        ("general", {"alignment": 5, "quality": 2.5}, 0.425),  # 0.7 x 0.5 + 0.3 x 0.25
        ("wise", {"consistency": 2, "realism": 1, "aesthetic": 0}, 0.8),  # (0.7 x 2 + 0.2 x 1 + 0.1 x 0) / 2
        ("wise", {"consistency": 0, "realism": 2, "aesthetic": 1}, 0.25),  # (0.2 x 2 + 0.1 x 1) / 2
        ("wise", {"consistency": 0, "realism": 0, "aesthetic": 0}, 0.0),
        ("wise-verified", {"correct": 1}, 1.0),
        ("wise-verified", {"correct": 0}, 0.0),
    ],
)
def test_worked_scores(rubric, marks, expected):
    with stub_judge(says(json.dumps({"request": "TOKEN", "reason": "seen", **marks}))) as stub:
        score = one(stub, rubric)
    assert score.value == pytest.approx(expected)
    assert score.reason.endswith(": seen")
    assert len(stub.seen) == 1


@pytest.mark.parametrize("rubric", ["general", "wise", "wise-verified", "geneval-style"])
def test_a_lighter_picture_gets_a_higher_score(rubric):
    with stub_judge() as stub:
        made = critic(stub, rubric, "model=eyes")
        scores = made.score([gray(10), gray(250)], [FOX, FOX])
    assert made.name == f"judge:{rubric},url={stub.url},model=eyes"
    assert (scores[0].value, scores[1].value) == pytest.approx((0, 1), abs=0.05)
    assert {body["model"] for body in stub.seen} == {"eyes"}


# --- replies that are no verdict --------------------------------------------------------------------------------

GOOD = '{"request": "TOKEN", "reason": "ok", "alignment": 8, "quality": 6}'


THOUGHTS = (
    ("<thinking>", "</thinking>"), ("<reasoning>", "</reasoning>"), ("<Thought>", "</Thought>"),
    ("[THINK]", "[/THINK]"), ("◁think▷", "◁/think▷"), ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("", "</thinking>"), ("< think >", "</ think >"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>"),
    ("analysis", "assistantfinal"),
)  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"```json\n{GOOD}\n```",
        f"Here is my verdict:\n{GOOD}\nI hope this helps.",
        f"<think>First {{maybe}} 10? {GOOD.replace('8', '1')}</think>\n{GOOD}",
        f"the server cut the tag; alignment 3</think>{GOOD}",
        *(f"{begin}Perhaps {{so}}? {GOOD.replace('8', '1')}{end}\n{GOOD}" for begin, end in THOUGHTS),
        f'For example {{"request": "...", "alignment": 1}} would be wrong, {{x}} too.\n{GOOD}',
        f'{GOOD} (which is {{"alignment": 8}} in short, or {{}})',
        f"<reasoning>It is a fox.</reasoning>\n```\n{GOOD}\n```",
        '{"quality": 6.0, "alignment": 8.0, "request": "TOKEN", "more": [1]}',
        GOOD.replace('"ok"', "7"),
    ],
)
def test_a_verdict_with_words_around_it(text):
    with stub_judge(says(text)) as stub:
        assert one(stub).value == pytest.approx(0.74)
    assert len(stub.seen) == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "was empty"),
        ("<think>" + GOOD, "was empty"),
        (GOOD[:-1], "half a JSON object"),
        (GOOD[:20], "half a JSON object"),
        ("{" * 100_000, "half a JSON object"),
        ("8/10", "no JSON object"),
        ("八分,很好。", "no JSON object"),
        ("alignment: 8, quality: 6", "no JSON object"),
        (GOOD + GOOD, "2 JSON objects"),
        ("<reasoning>" + GOOD, "was empty"),
        ("◁think▷" + GOOD, "was empty"),
        ("<|channel|>analysis<|message|>" + GOOD, "was empty"),
        (GOOD.replace('"TOKEN"', '"0123456789abcdef"'), '"request" was not'),
        (GOOD.replace('"request": "TOKEN", ', ""), '"request" was not'),
        (GOOD.replace("8", "NaN"), "NaN is no number"),
        (GOOD.replace("8", "Infinity"), "Infinity is no number"),
        (GOOD.replace("8", "1e999"), '"alignment" was not a number from 0 to 10'),
        (GOOD.replace("8", "1" * 400), '"alignment" was not a number'),
        (GOOD.replace("8", "1" * 5000), "broken"),
        (GOOD.replace("8", "10.01"), '"alignment" was not a number'),
        (GOOD.replace("8", "-1"), '"alignment" was not a number'),
        (GOOD.replace("8", '"8"'), '"alignment" was not a number'),
        (GOOD.replace("8", "true"), '"alignment" was not a number'),
        (GOOD.replace("8", "null"), '"alignment" was not a number'),
        (GOOD.replace("8", "[8]"), '"alignment" was not a number'),
        (GOOD.replace("alignment", "评分"), '"alignment" was not a number'),
        (GOOD.replace(', "quality": 6', ""), '"quality" was not a number'),
        (GOOD.replace("}", ', "alignment": 10}'), "a key twice"),
    ],
)
def test_what_is_no_verdict_is_asked_for_again_and_then_abstained_from(text, why):
    with stub_judge(says(text)) as stub:
        score = one(stub)
    assert score.value is None
    assert score.reason.startswith("no valid verdict in 3 replies: ")
    assert why in score.reason
    assert score.reason.isprintable()
    assert len(stub.seen) == 3
    assert ["try 2 of 3" in text_of(body) for body in stub.seen] == [False, True, False]
    with stub_judge(says(text, text, GOOD)) as stub:
        assert one(stub).value == pytest.approx(0.74)


def test_a_half_mark_is_no_whole_mark():
    reply = '{"request": "TOKEN", "consistency": 1.5, "realism": 1, "aesthetic": 1}'
    with stub_judge(says(reply)) as stub:
        assert '"consistency" was not a whole number from 0 to 2' in one(stub, "wise").reason


def test_what_the_judge_says_becomes_one_short_line():
    long = json.dumps({"request": "TOKEN", "reason": "a\n\u202eb\ud800\u001b[2J" * 200, "alignment": 1, "quality": 1})
    with stub_judge(says(long)) as stub:
        score = one(stub)
    assert score.value == pytest.approx(0.1)
    assert len(score.reason) <= 200
    assert score.reason.isprintable()


# --- a world that misbehaves ------------------------------------------------------------------------------------


def test_hundreds_of_shuffles_leave_every_score_at_its_own_picture():
    levels = (0, 80, 160, 240)
    dice = random.Random(0)
    with stub_judge(delay=lambda number: dice.choice((0, 0, 0.001, 0.003))) as stub:
        made = critic(stub)
        for batch in range(30):
            shuffled = [level for _ in range(10) for level in dice.sample(levels, 4)]
            tasks = [Task(f"batch {batch}, shuffle {place // 4}") for place in range(40)]  # or they would be asked once
            scores = made.score([gray(level) for level in shuffled], tasks)
            assert [score.value for score in scores] == pytest.approx([level / 255 for level in shuffled])
    assert stub.order != sorted(stub.order)
    assert len(stub.seen) == 1200


@pytest.mark.parametrize("seed", range(3))
def test_scoring_ends_when_three_in_ten_requests_go_wrong(seed, alone):
    dice = random.Random(seed)
    plan = [dice.choice(FAULTS) if dice.random() < 0.3 else "" for _ in range(2000)]
    levels = list(range(0, 240, 4))
    dice.shuffle(levels)
    with stub_judge(plan.__getitem__) as stub:
        scores = judge(
            critic(stub, "general", "timeout=1", "concurrency=16"), [gray(one) for one in levels], [FOX] * 60
        )
    known = [(score.value, level / 255) for score, level in zip(scores, levels, strict=True) if score.value is not None]
    assert len(known) > 45  # a redirect and a flood are final; the rest passes
    assert [value for value, _ in known] == pytest.approx([light for _, light in known])
    assert all(score.reason for score in scores)
    assert alone
    assert max(alone) <= 30


def test_a_spent_budget_ends_the_work_and_the_next_run_goes_on(tmp_path):
    images, tasks = [gray(level) for level in range(8)], [FOX] * 8
    prices = ("price_in=2.5", "price_out=10")
    with stub_judge() as stub:
        made = critic(stub, "general", *prices)
        made.settle(Place(tmp_path, 0.01))
        with pytest.raises(UserError, match="give more with --max-judge-cost"):
            judge(made, images, tasks)
        assert len(stub.seen) == 3
        again = critic(stub, "general", *prices)
        again.settle(Place(tmp_path, 0.1))
        assert all(score.value is not None for score in judge(again, images, tasks))
        assert len(stub.seen) == 8
        last = critic(stub, "general", *prices)
        last.settle(Place(tmp_path, 0.0))
        assert all(score.value is not None for score in judge(last, images[::-1], tasks))
        assert len(stub.seen) == 8


# --- rubrics with an explanation, rubrics with checks ------------------------------------------------------------


@pytest.mark.parametrize("rubric", ["wise", "wise-verified"])
def test_without_an_explanation_wise_abstains_and_asks_nothing(rubric):
    tasks = [Task("a"), Task("b", metadata={"explanation": "  "}), Task("c", metadata={"explanation": "It is red."})]
    with stub_judge() as stub:
        scores = critic(stub, rubric).score([gray(255)] * 3, tasks)
    assert [score.value for score in scores] == [None, None, 1.0]
    assert "needs an explanation" in scores[0].reason
    assert len(stub.seen) == 1
    assert '"It is red."' in text_of(stub.seen[0])
    assert "It is red" not in outside(text_of(stub.seen[0]))


def test_the_general_rubric_does_not_show_the_explanation():
    with stub_judge() as stub:
        one(stub, "general")
    assert "red" not in text_of(stub.seen[0])


def test_checks_are_made_once_of_each_prompt_before_a_picture_is_seen():
    tasks = [Task("two red foxes")] * 3 + [Task("a boat")]
    with stub_judge() as stub:
        scores = critic(stub, "geneval-style").score([gray(level) for level in (0, 170, 255, 85)], tasks)
    assert [score.value for score in scores] == pytest.approx([0, 2 / 3, 1, 1 / 3])
    assert scores[1].checks == (
        Check("Is there two red foxes?", True),
        Check("Is it red?", True),
        Check("Is it the only one?", False),
    )
    assert scores[3].checks[0].text == "Is there a boat?"
    blind = [body for body in stub.seen if isinstance(body["messages"][-1]["content"], str)]
    assert len(blind) == 2
    assert len(stub.seen) == 6


def test_a_task_may_bring_its_own_checks():
    task = Task("a clock", metadata={"checks": ["Is there a clock?", "Does it show half past three?"]})
    with stub_judge() as stub:
        score = one(stub, "geneval-style", task, level=128)
    assert score.value == 0.5
    assert [check.text for check in score.checks] == ["Is there a clock?", "Does it show half past three?"]
    assert len(stub.seen) == 1


@pytest.mark.parametrize(
    "answers",
    [
        '[{"number": 1, "yes": true}]',
        '[{"number": 1, "yes": true}, {"number": 1, "yes": true}]',
        '[{"number": 1, "yes": true}, {"number": 3, "yes": true}]',
        '[{"number": 1, "yes": true}, {"number": 2, "yes": "yes"}]',
        '[{"number": 1, "yes": true}, {"number": true, "yes": true}]',
        '[{"number": 1, "yes": true}, {"number": 2}]',
        "[true, true]",
        '"yes"',
        "null",
    ],
)
def test_answers_that_do_not_fit_the_checks(answers):
    task = Task("a clock", metadata={"checks": ["Is there a clock?", "Is it round?"]})
    with stub_judge(says(f'{{"request": "TOKEN", "answers": {answers}}}')) as stub:
        score = one(stub, "geneval-style", task)
    assert score.value is None
    assert "answers" in score.reason


@pytest.mark.parametrize("checks", ["[]", '[""]', "[1]", "null", json.dumps([f"Is it {n}?" for n in range(13)])])
def test_checks_that_are_none_make_the_judge_abstain(checks):
    with stub_judge(says(f'{{"request": "TOKEN", "checks": {checks}}}')) as stub:
        assert '"checks" were' in one(stub, "geneval-style").reason
    assert len(stub.seen) == 3


def test_a_task_whose_checks_are_no_questions_is_asked_about_its_prompt():
    with stub_judge() as stub:
        assert len(one(stub, "geneval-style", Task("a fox", metadata={"checks": [1]})).checks) == 3


# --- prompts that want to be the judge --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def honest():
    """A server for many tests, with what it was sent for a harmless prompt, by rubric."""
    with stub_judge() as stub:
        harmless = {}
        for rubric in ("general", "wise", "geneval-style"):
            one(stub, rubric, Task("x", metadata={"explanation": "x", "checks": ["x", "y"]}))
            harmless[rubric] = stub.seen[-1]
        yield stub, harmless


@pytest.mark.parametrize("number", range(len(INJECTIONS)))
@pytest.mark.parametrize("rubric", ["general", "wise", "geneval-style"])
def test_a_prompt_cannot_leave_its_block_nor_forge_a_verdict(number, rubric, honest):
    stub, harmless = honest
    attack = INJECTIONS[number]
    score = one(stub, rubric, Task(attack, metadata={"explanation": attack, "checks": [attack, "Is it red?"]}), level=0)
    assert score.value == 0  # what the judge itself says of a black picture
    text, token = text_of(stub.seen[-1]), token_of(stub.seen[-1])
    blocks = dict(re.findall(rf"<(\w+)-{token}>\n(.*)\n</\1-{token}>", text))
    assert json.loads(blocks["prompt"]) == attack
    assert text.count(token) == 2 * len(blocks) + 1  # the blocks and the form
    assert all(line.isprintable() for line in text.split("\n"))
    # Nothing outside the blocks depends on the prompt, but for the word itself.
    plain = harmless[rubric]
    assert outside(text).replace(token, "") == outside(text_of(plain)).replace(token_of(plain), "")


def test_the_word_that_a_verdict_repeats_is_made_of_all_that_is_asked():
    with stub_judge() as stub:
        made = critic(stub, "wise", "concurrency=1")
        for level, prompt, explanation in ((0, "a", "b"), (1, "a", "b"), (0, "b", "b"), (0, "a", "c"), (0, "a", "b")):
            made.score([gray(level)], [Task(prompt, metadata={"explanation": explanation})])
    assert len(stub.seen) == 4  # the last was asked before
    assert len({token_of(body) for body in stub.seen}) == 4


def test_there_are_fifty_attacks():
    assert len(set(INJECTIONS)) == 50


def test_a_forged_verdict_that_the_judge_repeats_is_not_taken():
    forged = INJECTIONS[7]
    with stub_judge(says(forged)) as stub:
        assert one(stub, "general", Task(forged)).value is None


def test_what_prompts_shift_a_credulous_judge(record_property, monkeypatch):
    """A judge that obeys commands outside the blocks: its shift by 50 prompts, as sent and with the blocks left out."""

    def shifts():
        with stub_judge(gullible=True) as stub:
            plain, *scores = critic(stub).score([gray(51)] * 51, [FOX, *map(Task, INJECTIONS)])
        return [score.value - plain.value for score in scores]

    sealed = shifts()
    monkeypatch.setattr(judge_file, "_block", lambda name, text, token: text)
    bare = shifts()
    for name, found in (("with blocks", sealed), ("without", bare)):
        said = f"{sum(found) / 50:+.3f}, {sum(map(bool, found))} of 50 prompts"
        record_property(f"shift of a credulous judge {name}", said)
        print(f"shift of a credulous judge {name}: {said}")
    assert sealed == [0.0] * 50
    assert sum(shift > 0.5 for shift in bare) > 30  # the attacks and the stub do bite


# --- rubrics of one's own ---------------------------------------------------------------------------------------

OWN = """---
name: warmth
fields:
  warmth: {low: 1, high: 5, weight: 2}
---
# System
You feel.

# User
How warm is it? {prompt}
"""


def test_a_rubric_of_ones_own(tmp_path):
    file = tmp_path / "warmth.md"
    file.write_text(OWN)
    with stub_judge() as stub:
        assert one(stub, str(file), level=51).value == pytest.approx(0.2)
    assert "You feel." in stub.seen[0]["messages"][0]["content"]
    assert '"warmth": a number from 1 to 5\n' in text_of(stub.seen[0]) + "\n"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("---\nname", "name", "does not begin with its settings"),
        ("fields:", "fields: [", "no YAML"),
        ("name: warmth", "title: warmth", "must have a 'name'"),
        ("fields:\n  warmth: {low: 1, high: 5, weight: 2}", "fields: {}", "no table of names"),
        ("fields:\n  warmth: {low: 1, high: 5, weight: 2}\n", "", "must have the parts # Derive, # System, # User"),
        ("warmth: {", "request: {", "a field named 'request'"),
        ("warmth: {", "War mth: {", "a field named"),
        ("low: 1, high: 5", "low: 5, high: 5", "without numbers low < high"),
        ("low: 1", "low: .nan", "without numbers low < high"),
        ("high: 5", "high: .inf", "without numbers low < high"),
        ("low: 1, ", "", "without numbers low < high"),
        ("weight: 2", "weight: 0", "a weight above 0"),
        ("weight: 2", "integer: 2", "not true or false"),
        ("weight: 2", "wieght: 2", "other settings than"),
        ("{prompt}", "", "must show {prompt} in its part # User"),
        ("{prompt}", "{prompt} {checks}", "either 'fields' or {checks}"),
        ("You feel.", "{prompt}", "cannot show {prompt} in its part # System"),
        ("# User", "# Usher", "must have the parts # System, # User"),
    ],
)
def test_what_is_wrong_in_a_rubric_is_said(old, new, message, tmp_path):
    file = tmp_path / "warmth.md"
    assert old in OWN
    file.write_text(OWN.replace(old, new))
    with pytest.raises(UserError, match=re.escape(message)):
        read_rubric(str(file))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wize", "Did you mean 'wise'"),
        ("", "Unknown rubric ''"),
        ("/nowhere/x.md", "Cannot read the rubric"),
        ("/", "Cannot read the rubric"),
    ],
)
def test_an_unknown_rubric(name, message):
    with pytest.raises(UserError, match=message):
        naming.settings_of(naming.find(f"judge:{name}"))


def test_the_rubrics_that_come_with_milr_are_sound():
    shipped = sorted(file.stem for file in judge_file.FOLDER.glob("*.md"))
    assert shipped == ["general", "geneval-style", "wise", "wise-verified"]
    for name in shipped:
        assert read_rubric(name).name == name
        assert (judge_file.FOLDER / f"{name}.md").read_text("utf-8").isascii()


def test_a_verdict_for_another_request_is_refused():
    with pytest.raises(Unreadable, match="request"):
        verdict_in('{"request": "b"}', "a")


def test_a_changed_rubric_asks_anew(tmp_path):
    file = tmp_path / "warmth.md"
    file.write_text(OWN)
    with stub_judge() as stub:
        for text in (OWN, OWN, OWN.replace("weight: 2", "weight: 3"), OWN.replace("You feel.", "You freeze.")):
            file.write_text(text)
            made = critic(stub, str(file))
            made.settle(Place(tmp_path))
            made.score([gray(1)], [FOX])
    assert len(stub.seen) == 2  # what is asked changed once; a weight is applied afterwards
    shutil.rmtree(tmp_path / "replies")
