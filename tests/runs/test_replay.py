import json

import pytest

from milr.drafts import UserError
from milr.runs.replay import replay
from runs_toy import draw
from toy_milr.backbone import ToyBackbone


@pytest.fixture
def folder(tmp_path):
    return draw(preset="official", budget=12, seed=3).save(tmp_path / "foxes")


def edit(folder, change):
    file = folder / "trajectory.json"
    raw = json.loads(file.read_text())
    change(raw)
    file.write_text(json.dumps(raw))


def test_a_trajectory_can_be_drawn_again(folder):
    heard = []
    outcome = replay(folder, ToyBackbone(), on_draft=lambda done, drafts: heard.append((done, drafts)))
    assert outcome.is_same
    assert outcome.circumstances == ()
    assert heard == [(8, 12), (12, 12)]
    assert replay(folder / "trajectory.json", ToyBackbone()).is_same


def test_other_tokens_are_named(folder):
    def change(raw):
        image = raw["drafts"][7]["image_tokens"]
        image[-1] = (image[-1] + 1) % 12

    edit(folder, change)
    outcome = replay(folder, ToyBackbone())
    assert not outcome.is_same
    assert outcome.changed == ("draft 7: image token 15 differs",)


def test_another_stream_draws_another_draft(folder):
    edit(folder, lambda raw: raw["drafts"][3].update(stream="99"))
    (changed,) = replay(folder, ToyBackbone()).changed
    assert changed.startswith("draft 3: ")


def test_circumstances_are_named_even_where_tokens_agree(folder):
    def change(raw):
        raw["versions"]["torch"] = "2.0.1"
        raw["versions"]["extra"] = "1"
        raw["model"].update(device="cuda:0", dtype="bfloat16")

    edit(folder, change)
    outcome = replay(folder, ToyBackbone())
    assert outcome.is_same
    told = " | ".join(outcome.circumstances)
    for what in (
        "device: cuda:0 then, cpu now",
        "dtype: bfloat16 then",
        "torch: 2.0.1 then",
        "extra: 1 then, not",
    ):
        assert what in told


def test_other_weights_are_refused_before_drawing(folder, monkeypatch):
    monkeypatch.setenv("TOY_WEIGHTS", "6")
    outcome = replay(folder, ToyBackbone())
    assert not outcome.is_same
    assert "fingerprint" in outcome.refused


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda raw: raw["drafts"][1]["image_tokens"].pop(), "15 tokens an image"),
        (lambda raw: raw["drafts"][1]["image_tokens"].__setitem__(0, 10**6), "does not know"),
        (lambda raw: raw["drafts"][1]["ask"]["text"]["tokens"].append(10**6), "does not know"),
        (lambda raw: raw["drafts"][1]["ask"]["image"].update(free=[3]), "no search can ask for"),
        (lambda raw: raw.update(prompt=" "), "prompt is empty"),
        (lambda raw: raw.update(prompt="x" * 10**6), "1,000,000 characters"),
    ],
)
def test_a_record_that_does_not_fit_the_model_is_refused(folder, change, complaint):
    edit(folder, change)
    with pytest.raises(UserError, match=complaint):
        replay(folder, ToyBackbone())
