import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from milr.drafts import Ask, Forced, Greedy, Latents, Sample, UserError
from milr.runs.record import RecordedDraft
from milr.runs.replay import likelihood_of, replay
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


# --- Other tokens: rounding, or another model? ---------------------------------------------------------------------


class Rounding(ToyBackbone):
    """Draws with other random numbers than the record: other tokens, as probable as those."""

    def draw(self, orders):
        return super().draw([replace(order, stream=order.stream ^ 1) for order in orders])


class Another(Rounding):
    """Its weights are its own."""

    def __init__(self):
        super().__init__()
        for weight in self.model.parameters():
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(1), std=2.0)


def test_other_tokens_of_the_same_model_are_as_probable_as_its_own(folder):
    outcome = replay(folder, Rounding())
    found = outcome.likelihood
    assert not outcome.is_same
    assert len(outcome.changed) == 12
    assert found.is_of_this_model
    assert found.sampled > 100
    assert abs(found.surprise - found.expected) < 4 * found.error
    assert str(found).startswith("other tokens by rounding, the same model: ")


def test_tokens_of_another_model_are_not(folder, monkeypatch):
    edit(folder, lambda raw: raw["model"].pop("fingerprint"))  # else it is refused
    found = replay(folder, Another()).likelihood
    assert not found.is_of_this_model
    assert str(found).startswith("more than rounding, another model: ")


def test_where_the_tokens_are_the_same_nothing_more_is_asked(folder):
    assert replay(folder, ToyBackbone()).likelihood is None


def test_likelihood_by_hand():
    """One text token, greedy, with logits (0, 1); one of an image, sampled at temperature 2 from (0, 2 ln 3)."""

    class Two:
        info = SimpleNamespace(choices="tokens")

        def draw(self, orders):
            (order,) = orders
            assert (order.ask.text, order.ask.image) == (Forced((0, 9)), Forced((0,), free=frozenset()))
            one = torch.ones(1, 1)
            return [SimpleNamespace(latents=Latents(one, one[:, None].repeat(1, 2, 1)), guidance=3.0)]

        def text_end(self):
            return 9

        def text_logits(self, latents):
            return torch.tensor([[0.0, 1.0]])

        def image_logits(self, latents, guidance):
            assert guidance == 3.0
            return torch.tensor([[0.0, 2 * math.log(3)]])

    draft = RecordedDraft(0, Ask(Greedy(), Sample(2.0)), 0, "", (0,), (0,))
    found = likelihood_of(Two(), "a fox", [draft])
    assert (found.sampled, found.greedy) == (1, 1)
    assert found.behind == pytest.approx(1.0)
    assert found.surprise == pytest.approx(math.log(4))  # 1 to 3
    entropy = math.log(4) / 4 + math.log(4 / 3) * 3 / 4
    assert found.expected == pytest.approx(entropy)
    assert found.error == pytest.approx(math.sqrt(math.log(4) ** 2 / 4 + math.log(4 / 3) ** 2 * 3 / 4 - entropy**2))
    assert not found.is_of_this_model
