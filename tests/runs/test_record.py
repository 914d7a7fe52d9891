import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milr.drafts import Forced, Greedy, Sample, UserError
from milr.runs.record import _check_choice, _choice, _plain, dump, fingerprint, read_record
from runs_toy import draw
from toy_milr.backbone import ToyBackbone


@pytest.fixture(scope="module")
def result():
    return draw(preset="official", threshold=1.0)


def test_a_record_reads_back_as_it_was_written(result, tmp_path):
    (tmp_path / "trajectory.json").write_bytes(dump(result.record))
    record = read_record(tmp_path)
    assert json.loads(json.dumps(result.record)) == record.raw
    assert record.prompt == "two red foxes"
    assert len(record.drafts) == len(result.trajectory.drafts)
    for read, draft in zip(record.drafts, result.trajectory.drafts, strict=True):
        assert (read.ask, read.stream) == (draft.ask, draft.stream)
        assert (read.text_tokens, read.image_tokens) == (draft.drawn.text_tokens, draft.drawn.image_tokens)


tokens = st.lists(st.integers(0, 2**31 - 1), max_size=5).map(tuple)
simple = st.one_of(st.just(Greedy()), st.floats(0.01, 10).map(Sample))
free = st.none() | st.frozensets(st.integers(0, 100))


@given(st.one_of(simple, st.builds(Forced, tokens, simple, free)))
def test_every_choice_survives_json(choice):
    assert _check_choice(json.loads(json.dumps(_choice(choice)))) == choice


def test_a_record_says_what_a_stranger_needs_and_nothing_of_the_machine(result, monkeypatch, tmp_path):
    text = dump(result.record).decode()
    for word in ("toy", "milr", "official", "torch", "seed", "stream", "redness"):
        assert word in text
    assert str(tmp_path.parent) not in text
    assert "/home" not in text
    assert "/root" not in text


def test_values_that_json_cannot_say_become_text():
    assert _plain({1: math.nan, "a": (math.inf, 2), "b": {3}}) == {"1": "nan", "a": ["inf", 2], "b": [3]}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda raw: raw.pop("format"), "no 'format'"),
        (lambda raw: raw.update(format="milr-trajectory/9"), "format is 'milr-trajectory/9'"),
        (lambda raw: raw.update(drafts=[]), "no drafts"),
        (lambda raw: raw.update(drafts={}), "'drafts' is missing or not of type list"),
        (lambda raw: raw.update(prompt=5), "'prompt'"),
        (lambda raw: raw.update(best=99), "best draft is number 99"),
        (lambda raw: raw.update(best=True), "'best'"),
        (lambda raw: raw["drafts"].reverse(), "out of order"),
        (lambda raw: raw["drafts"][0].update(stream=7), "'stream'"),
        (lambda raw: raw["drafts"][0].update(stream="1" * 30), "stream of draft 0 is not a number"),
        (lambda raw: raw["drafts"][0].update(image_tokens=[-1]), "'image_tokens' is not a list of token ids"),
        (lambda raw: raw["drafts"][0].update(text_tokens=["1"]), "'text_tokens' is not a list of token ids"),
        (lambda raw: raw["drafts"][0]["ask"].update(text_ratio=None), "'text_ratio' is not a number"),
        (lambda raw: raw["drafts"][0]["ask"]["image"].update(how="magic"), "'magic'"),
        (lambda raw: raw["drafts"][0]["ask"]["image"].update(temperature=0), "not above 0"),
        (lambda raw: raw["versions"].update(torch=None), "'versions'"),
    ],
)
def test_what_is_wrong_with_a_record_is_said(result, tmp_path, change, complaint):
    raw = json.loads(dump(result.record))
    change(raw)
    file = tmp_path / "trajectory.json"
    file.write_text(json.dumps(raw))
    with pytest.raises(UserError, match=complaint):
        read_record(file)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null", b"[]"])
def test_rubbish_is_refused(tmp_path, content):
    (tmp_path / "trajectory.json").write_bytes(content)
    with pytest.raises(UserError, match=r"trajectory\.json"):
        read_record(tmp_path)


def test_a_missing_record_is_named(tmp_path):
    with pytest.raises(UserError, match=r"Cannot read .*No such file"):
        read_record(tmp_path / "nothing")


def test_fingerprints_tell_weights_apart(monkeypatch):
    one = fingerprint(ToyBackbone())
    assert one == fingerprint(ToyBackbone())
    monkeypatch.setenv("TOY_WEIGHTS", "6")
    assert one != fingerprint(ToyBackbone())


def test_a_bfloat16_model_has_a_fingerprint_too(tiny_checkpoint):
    # A strided sample of bfloat16 weights is not copied by .to(); as bytes it can only be seen when contiguous.
    from milr.backbones.janus import load_janus

    half = load_janus(str(tiny_checkpoint), device="cpu", dtype="bfloat16")
    assert fingerprint(half) == fingerprint(load_janus(str(tiny_checkpoint), device="cpu", dtype="bfloat16"))
