"""A flow pipeline as a model that thinks: it writes what its encoder writes, and a draft is its order's alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flow_pipelines import KINDS, Kind
from PIL.Image import Image
from torch.testing import assert_close

from milr import hub
from milr.backbones import PRESETS, checkpoint, load
from milr.backbones.flow import folder
from milr.backbones.flow.backbone import FlowBackbone, keys_of
from milr.backbones.flow.families import KLEIN, QWEN_IMAGE
from milr.backbones.flow.noise import coarse_to_fine, gaussian
from milr.backbones.speed import measure, reckoning_for
from milr.critics import naming
from milr.drafts import Ask, Check, Drawn, Forced, Greedy, Noise, Order, Repaint, Sample, Score, Task, UserError
from milr.reports.reading import read_run, write_report
from milr.reports.report import curves, to_markdown
from milr.reports.report_page import render_report
from milr.runs.bench import Terms, bench
from milr.runs.generate import generate
from milr.runs.methods import choose_methods
from milr.runs.record import draft_from_json, to_record
from milr.runs.replay import replay
from milr.searches import best_of_n, latent, neighbour, repair, single
from milr.searches.driver import Job, drive, drive_jobs

TEXT, STEPS = 10, 3
PROMPTS = ("a red fox", "two green birds above a blue car, left of the white dog on the table", "a {reasoning} cat")


@pytest.fixture(scope="module")
def backbone_of(folder_of: Callable[[Kind], Path]) -> Callable[[Kind], FlowBackbone]:
    known: dict[Kind, FlowBackbone] = {}

    def loaded(kind: Kind) -> FlowBackbone:
        if kind not in known:
            found = load(str(folder_of(kind)), device="cpu", dtype="float32")
            assert isinstance(found, FlowBackbone)
            found.max_text_tokens, found.drawer.steps = TEXT, STEPS
            known[kind] = found
        return known[kind]

    return loaded


@pytest.fixture(params=[kind for kind in KINDS if not kind.is_distilled], ids=str)
def backbone(request: pytest.FixtureRequest, backbone_of: Callable[[Kind], FlowBackbone]) -> FlowBackbone:
    return backbone_of(request.param)


@pytest.fixture
def klein(backbone_of: Callable[[Kind], FlowBackbone]) -> FlowBackbone:
    return backbone_of(Kind(KLEIN))


def draw(model: FlowBackbone, prompt: str = PROMPTS[0], stream: int = 0, **ask: Any) -> Drawn:
    return model.draw([Order(prompt, Ask(**ask), stream)])[0]


def levels_apart(one: Image, other: Image) -> int:
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


# --- Words --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_encoder_writes_what_its_own_generate_writes(backbone: FlowBackbone, prompt: str) -> None:
    """Queries and keys with norms (Qwen3), grouped heads, biases and positions of three axes (Qwen2.5-VL)."""
    ours = draw(backbone, prompt)
    ids = torch.tensor([backbone._request_ids(prompt)])
    theirs = backbone.drawer.pipe.text_encoder.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=TEXT
    )[0, ids.shape[1] :].tolist()
    assert [*ours.text_tokens, *[backbone.text_end()] * ours.text_ended] == theirs


def test_latents_of_the_text_are_the_states_of_a_full_forward(backbone: FlowBackbone) -> None:
    drawn = draw(backbone, text=Sample(), text_ratio=1.0)
    request = backbone._request_ids(PROMPTS[0])
    encoder = backbone.drawer.pipe.text_encoder
    seen = encoder(input_ids=torch.tensor([[*request, *drawn.text_tokens]]), output_hidden_states=True)
    states = seen.hidden_states[-1][0, len(request) - 1 : -1]
    assert drawn.latents
    assert_close(drawn.latents.text, states, atol=1e-4, rtol=1e-3)
    assert_close(backbone.text_logits(drawn.latents.text), seen.logits[0, len(request) - 1 : -1], atol=1e-4, rtol=1e-3)


def test_the_picture_sees_prompt_and_reasoning(klein: FlowBackbone) -> None:
    """Whatever they hold: what looks like a place for words in a prompt is no place for words."""
    assert klein._seen("a {reasoning} cat", "It has {prompt}.") == "a {reasoning} cat. It has {prompt}."
    assert klein._seen(" a cat ", "") == "a cat"
    one, other = (draw(klein, text=Forced((*klein.encode_text(words), klein.text_end()))) for words in ("red", "blue"))
    assert one.image_tokens == other.image_tokens
    assert levels_apart(one.image, other.image) > 1, "the same noise, other words"


# --- Drafts -------------------------------------------------------------------------------------------------


def test_a_draft_is_the_same_alone_and_in_batches(backbone: FlowBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    first = draw(backbone, stream=7)
    orders = [
        Order(PROMPTS[0], Ask(text=Sample(), text_ratio=0.5, image_ratio=0.1), 1),
        Order(PROMPTS[1], Ask(guidance=2.0), 2),
        Order(PROMPTS[2], Ask(image=Noise((0.5, -1.0, 2.0))), 3),
        Order(PROMPTS[0], Ask(image=Repaint(Forced(first.image_tokens, free=frozenset()), frozenset({0, 1, 8, 9}))), 4),
    ]
    alone = [backbone.draw([order])[0] for order in orders]
    monkeypatch.setattr(backbone, "max_batch", 3)
    for one, other in zip(alone, backbone.draw(orders), strict=True):
        assert (one.text_tokens, one.image_tokens) == (other.text_tokens, other.image_tokens)
        assert (one.cost.evaluations, one.cost.work) == (other.cost.evaluations, other.cost.work)
        assert levels_apart(one.image, other.image) <= 1


def test_keys_are_numbers_that_every_reader_keeps(klein: FlowBackbone) -> None:
    drawn = draw(klein, stream=2**64 - 1)
    assert drawn.image_tokens == tuple(keys_of(2**64 - 1, 64).tolist())
    assert all(0 <= key < 2**53 for key in drawn.image_tokens)
    assert tuple(keys_of(5, 64)[:10]) == tuple(keys_of(5, 10)), "a key belongs to its place"
    assert json.loads(json.dumps(drawn.image_tokens[0])) == drawn.image_tokens[0]


def test_forced_keys_hold_the_noise(klein: FlowBackbone) -> None:
    drawn = draw(klein, stream=1)
    again = draw(klein, stream=2, image=Forced(drawn.image_tokens, then=Sample()))
    assert levels_apart(drawn.image, again.image) == 0
    half = draw(klein, stream=2, image=Forced(drawn.image_tokens[:32], then=Sample()))
    assert half.image_tokens == (*drawn.image_tokens[:32], *draw(klein, stream=2).image_tokens[32:])


def test_coarse_noise_is_set_and_the_rest_follows_from_the_keys(klein: FlowBackbone) -> None:
    plain = draw(klein, stream=1, image_ratio=1.0)
    values = (1.5, -0.25, 0.125, 2.0)
    moved = draw(klein, stream=1, image=Noise(values), image_ratio=1.0)
    assert plain.latents
    assert moved.latents
    noise = coarse_to_fine(gaussian(plain.image_tokens, klein.drawer.channels, klein.drawer.grid))
    assert_close(plain.latents.image, noise, atol=1e-5, rtol=0)
    assert moved.image_tokens == plain.image_tokens
    assert_close(moved.latents.image[:4], torch.tensor(values), atol=1e-5, rtol=0)
    assert_close(moved.latents.image[4:], noise[4:], atol=1e-5, rtol=0)
    assert levels_apart(plain.image, moved.image) > 0


def test_a_repaint_keeps_what_it_does_not_draw_and_needs_nobody_to_remember(klein: FlowBackbone) -> None:
    """Repainted twice; drawn again by a model that remembers nothing it is the same picture."""
    first = draw(klein, stream=1)
    once = Repaint(Forced(first.image_tokens, free=frozenset()), frozenset({0, 1, 8, 9}))
    second = draw(klein, stream=2, image=once)
    twice = Repaint(replace(once, tokens=second.image_tokens), frozenset({54, 55, 62, 63}))
    third = draw(klein, stream=3, image=twice)
    free = [cell in twice.free for cell in range(64)]
    assert [a == b for a, b in zip(third.image_tokens, second.image_tokens, strict=True)] == [
        not is_free for is_free in free
    ]
    assert levels_apart(first.image, second.image) > 1
    klein._finished.clear()
    assert levels_apart(draw(klein, stream=3, image=twice).image, third.image) == 0
    nothing = draw(klein, stream=9, image=replace(twice, free=frozenset(), tokens=()))
    assert levels_apart(nothing.image, second.image) == 0, "with nothing free it is the picture that is kept"


def test_what_is_done_is_told(klein: FlowBackbone) -> None:
    whole, part = draw(klein, stream=1), draw(klein, stream=1, guidance=1.0)
    assert (whole.cost.evaluations, part.cost.evaluations) == (2 * STEPS, STEPS)
    assert whole.cost.work > part.cost.work > 0
    half = Repaint(Forced(whole.image_tokens, free=frozenset()), frozenset({0}), strength=0.3)
    assert draw(klein, stream=2, image=half).cost.evaluations == 2
    assert whole.cost.image_tokens == 0
    assert whole.cost.text_tokens == len(whole.text_tokens) + whole.text_ended


# --- Searches -----------------------------------------------------------------------------------------------


class Bright:
    """Likes light pictures, and points at the upper left."""

    name = "bright"

    def score(self, images: Sequence[Image], tasks: Sequence[Task]) -> list[Score]:
        found = []
        for image in images:
            half = image.width / 2
            check = Check("a light corner", False, ((0.0, 0.0, half, half),))
            found.append(Score(float(np.asarray(image.convert("L"), dtype=float).mean() / 255), (check,)))
        return found


SEARCHES: list[tuple[str, Any, Any, type]] = [
    ("single", single.single, single.Single(), Sample),
    ("best-of-n", best_of_n.best_of_n, best_of_n.BestOfN(text="distinct", width=2), Sample),
    ("milr", latent.milr, latent.Milr(image_ratio=0.1), Noise),
    ("repaired", latent.milr, latent.PRESETS["repaired"], Noise),
    ("neighbour", neighbour.neighbour, neighbour.Neighbour(width=2), Noise),
    ("repair", repair.repair, repair.Repair(text_ratio=0.0, again=0.0, width=2), Repaint),
]


@pytest.mark.parametrize(("name", "search", "settings", "kind"), SEARCHES, ids=[name for name, *_ in SEARCHES])
@pytest.mark.parametrize("family", [KLEIN, QWEN_IMAGE], ids=lambda family: family.name)
def test_every_search_draws_records_and_replays(
    backbone_of: Callable[[Kind], FlowBackbone], family: Any, name: str, search: Any, settings: Any, kind: type
) -> None:
    """No search asks what kind of model it is; and what is on record is all that it takes to draw a draft again."""
    model = backbone_of(Kind(family))
    (found,) = drive(model, Bright(), [Task(PROMPTS[0])], search, settings, budget=5, threshold=2.0)
    assert isinstance(found.drafts[-1].ask.image, kind)
    record = json.loads(json.dumps(to_record(found, model)))
    model._finished.clear()
    for draft, raw in zip(found.drafts, record["drafts"], strict=True):
        read = draft_from_json(raw, draft.drawn.image)
        assert (read.ask, read.stream) == (draft.ask, draft.stream)
        (again,) = model.draw([Order(PROMPTS[0], read.ask, read.stream)])
        assert (again.text_tokens, again.image_tokens) == (draft.drawn.text_tokens, draft.drawn.image_tokens)
        assert levels_apart(again.image, draft.drawn.image) <= 1


def test_a_generated_folder_is_replayed(klein: FlowBackbone, tmp_path: Path) -> None:
    result = generate(klein, PROMPTS[0], reward="noise", search="repair", budget=3, width=1, out=tmp_path / "out")
    assert result.folder
    found = replay(result.folder, klein)
    assert found.is_same, found
    assert found.drafts == 3
    page = (result.folder / "trajectory.html").read_text()
    assert f"{3 * 2 * STEPS} evaluations of the drawing network" in page
    picture, other = (result.folder / "drafts" / name for name in ("01.png", "02.png"))
    picture.write_bytes(other.read_bytes())
    (changed,) = replay(result.folder, klein).changed
    assert changed.startswith("draft 1: the picture differs by "), "keys and words say nothing of a picture"
    picture.unlink()
    with pytest.raises(UserError, match=r"01\.png is missing, and a flow model is told by its pictures"):
        replay(result.folder, klein)
    pictures = [draft.drawn.cost.evaluations for draft in result.trajectory.drafts]
    assert pictures == [2 * STEPS] * 3


@pytest.mark.parametrize(
    ("where", "choice", "message"),
    [
        ("image", {"how": "noise", "values": [0.5] * 99_999, "tokens": []}, "99999 coefficients of noise are given"),
        ("image", {"how": "noise", "values": [0.5], "tokens": [1, 2]}, "for an image that no search can ask for"),
        ("image", {"how": "repaint", "of": "whole", "free": [64], "strength": 1.0, "tokens": []}, "no search can ask"),
        ("image", {"how": "repaint", "of": "short", "free": [1], "strength": 1.0, "tokens": []}, "no search can ask"),
        ("image", {"how": "repaint", "of": "half", "free": [1], "strength": 1.0, "tokens": []}, "no search can ask"),
        ("image", {"how": "repaint", "of": "whole", "free": [1], "strength": 7.0, "tokens": []}, "is no picture"),
        ("text", {"how": "noise", "values": [0.5], "tokens": []}, "a text is said to be made of noise"),
    ],
)
def test_records_that_no_search_made_are_refused_in_a_sentence(
    klein: FlowBackbone, tmp_path: Path, where: str, choice: dict[str, Any], message: str
) -> None:
    """The file may come from anywhere."""
    result = generate(klein, PROMPTS[0], reward="noise", search="single", budget=1, out=tmp_path / "out")
    assert result.folder
    record = json.loads((result.folder / "trajectory.json").read_text())
    sample = {"how": "sample", "temperature": 1.0}
    kept = {"how": "forced", "tokens": list(range(64)), "then": sample, "free": []}
    pictures = {"whole": kept, "short": {**kept, "tokens": [1, 2]}, "half": {**kept, "free": [5]}}
    of = {"of": pictures[choice["of"]]} if "of" in choice else {}
    record["drafts"][0]["ask"][where] = {**choice, **of, "then": sample}
    (result.folder / "trajectory.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=message):
        replay(result.folder, klein)


def test_a_killed_search_goes_on_from_its_records(klein: FlowBackbone) -> None:
    """Two drafts are on record and lack the latents that the search asks for: it ends as it would have without."""
    settings = latent.Milr(image_ratio=0.1, baseline="mean")
    whole = drive(klein, Bright(), [Task(PROMPTS[0])], latent.milr, settings, budget=5, threshold=2.0)[0]
    recorded = [draft.without_latents() for draft in whole.drafts[:2]]
    job = Job(Task(PROMPTS[0]), 0, recorded)
    (again,) = drive_jobs(klein, Bright(), iter([job]), latent.milr, settings, budget=5, threshold=2.0)
    assert [draft.ask for draft in again.drafts] == [draft.ask for draft in whole.drafts]
    assert [draft.drawn.image_tokens for draft in again.drafts] == [draft.drawn.image_tokens for draft in whole.drafts]


def test_a_repair_changes_what_the_critic_points_at(klein: FlowBackbone) -> None:
    (found,) = drive(
        klein,
        Bright(),
        [Task(PROMPTS[0])],
        repair.repair,
        repair.Repair(text_ratio=0.0, again=0.0),
        budget=3,
        threshold=2,
    )
    before, after = (np.asarray(draft.drawn.image, dtype=int) for draft in found.drafts[:2])
    assert isinstance(found.drafts[1].ask.image, Repaint)
    assert {cell // 8 < 4 and cell % 8 < 4 for cell in found.drafts[1].ask.image.free} == {True}
    apart = np.abs(before - after).sum(-1)
    assert apart[:16, :16].mean() > 2 * apart[20:, 20:].mean()


# --- What cannot be asked -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "ask", "message"),
    [
        ("a fox<|im_end|>", Ask(), "The prompt holds .*a control token of this model"),
        ("a fox " * 600, Ask(), r"The prompt is \d+ tokens long; .* reads at most \d+"),
        ("a fox", Ask(guidance=float("nan")), "The guidance scale is nan"),
        ("a fox", Ask(guidance=-1.0), "The guidance scale is -1.0"),
        ("a fox", Ask(text=Sample(0.0)), "The temperature is 0.0"),
        ("a fox", Ask(text=Forced((10**6,))), "A forced token lies outside"),
    ],
)
def test_what_a_token_model_refuses_is_refused_here_too(
    klein: FlowBackbone, prompt: str, ask: Ask, message: str
) -> None:
    control = next(iter(klein._tokenizer.all_special_tokens))
    with pytest.raises(UserError, match=message):
        klein.draw([Order(prompt.replace("<|im_end|>", control), ask, 1)])


def test_a_reasoning_cannot_spell_a_control_token_and_lines_are_joined(klein: FlowBackbone) -> None:
    control = next(iter(klein._tokenizer.all_special_tokens))
    half = len(control) // 2
    said = f"A fox. {control[:half]}{control}{control[half:]}\nRed."
    assert klein._seen("a\n fox\udcff", said) == "a fox?. A fox. Red."


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (Ask(image=Greedy()), "makes its pictures of noise, of which none is the most probable"),
        (Ask(image=Sample(0.7)), "draws from has no temperature; set image_temperature to 1"),
        (Ask(image=Forced((1, 2), then=Sample(2.0))), "has no temperature"),
        (Ask(image=Repaint(Forced((1,) * 64, then=Sample(2.0)), frozenset({1}))), "has no temperature"),
    ],
)
def test_what_noise_cannot_do_is_said_in_a_sentence(klein: FlowBackbone, ask: Ask, message: str) -> None:
    with pytest.raises(UserError, match=message):
        klein.draw([Order("a fox", ask, 1)])


@pytest.mark.parametrize("critic", ["self", "self:json", "vqa-score,model=backbone", "learned"])
def test_critics_that_need_its_eyes_say_so_before_anything_is_drawn(klein: FlowBackbone, critic: str) -> None:
    with pytest.raises(UserError, match="cannot look at pictures; choose a critic that has eyes of its own"):
        naming.make(critic, klein)


def test_saying_what_a_preset_needs_fetches_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tens of gigabytes otherwise, for a line of `milr doctor` or the hours of a recipe."""

    def never(*arguments: Any, **options: Any) -> str:
        raise AssertionError("fetched")

    for module in (folder, checkpoint, hub):
        monkeypatch.setattr(module, "fetch", never)
    monkeypatch.setattr(hub, "_cache_of", lambda repository: tmp_path / "empty")
    presets = [preset for preset in PRESETS.values() if preset.is_flow]
    assert len(presets) == 4
    for preset in presets:
        assert f"about {preset.gigabytes:.0f} GB of weights, fetched when first used" in folder.describe(
            preset.name, "cpu"
        )
        assert reckoning_for(preset.name, "cpu", "auto") is None


def test_speed_is_not_measured_in_tokens_that_it_has_not(klein: FlowBackbone) -> None:
    with pytest.raises(UserError, match="makes its pictures of noise, and what is measured here are tokens"):
        measure(klein)
    assert klein.good_width == 1


def test_an_empty_prompt_and_eyes_are_refused(klein: FlowBackbone) -> None:
    assert not klein.info.sees
    with pytest.raises(UserError, match="The prompt is empty"):
        draw(klein, "  ")
    for look in (klein.answer, klein.understand, lambda images, questions: klein.describe(images, questions, 3)):
        with pytest.raises(UserError, match="cannot look at pictures, so it cannot judge its own"):
            look([], [])


def test_reports_of_flow_models_compare_at_equal_work(klein: FlowBackbone, tmp_path: Path) -> None:
    """Their drafts have few tokens and differ in evaluations: a repaint is a part of a picture."""
    chosen = choose_methods(["best-of-n:greedy-text", "repair,text_ratio=0,again=0"])
    tasks = [Task(prompt, str(number)) for number, prompt in enumerate(PROMPTS[:2])]
    terms = Terms(critic="noise", budget=3, threshold=1.0)
    bench(klein, tasks, tmp_path / "run", terms, methods=chosen, baseline=chosen[0].name)
    report = write_report(tmp_path / "run")
    assert {pair["axis"] for pair in report["pairs"]} == {"calls", "work", "seconds"}
    for row in report["searches"].values():
        assert row["work"] > row["evaluations"] >= 3 * 2 * STEPS * 0.5
        assert row["by_calls"]["3"]["work"] == pytest.approx(row["work"])
        assert row["by_calls"]["1"]["work"] < row["work"]
    assert "GFLOP a search (evaluations of the drawing network)" in to_markdown(report)
    assert "floating point operations" in curves(report)
    assert "at equal calls, equal work, equal seconds" in render_report(report, [read_run(tmp_path / "run")])
