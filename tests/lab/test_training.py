"""Training: batches say what they should, a killed training resumes as if it had not stopped, losses fall."""

import json
import random
from dataclasses import replace

import pytest
import torch

from milr.drafts import UserError
from milr.lab.codes import CODES, TOKENS
from milr.lab.curriculum import (
    MIX,
    DrawingErrors,
    Item,
    is_test_prompt,
    make_item,
    misread,
    prompt_records,
    right_share,
    tasks,
    training_sample,
    unseen_items,
)
from milr.lab.detector import check, page_of
from milr.lab.language import agrees
from milr.lab.model import WIDTH, make_model, make_tokenizer, save_checkpoint
from milr.lab.train import Recipe, plans, train
from milr.lab.train_eye import see, tile_features, train_eye
from milr.lab.train_lm import FIRST_PATCH, Diet, Ids, LmPlan, losses, make_batch, train_lm
from milr.lab.train_vq import batch, train_vq
from milr.lab.world import Group, Meaning


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(samples=300)


def nothing(step, losses):
    pass


FEW = Diet(drawings=2, readings=2, questions=1)


# --- The data -------------------------------------------------------------------------------------------------


def test_test_prompts_are_seeded_distinct_and_never_trained_on():
    items = unseen_items(400, 7)
    assert [i.prompt for i in items] == [i.prompt for i in unseen_items(400, 7)]
    assert len({i.prompt for i in items}) == 400
    assert {i.prompt for i in items} != {i.prompt for i in unseen_items(400, 8)}
    assert all(is_test_prompt(i.prompt) for i in items)
    rng = random.Random(0)
    trained = {training_sample(rng, DrawingErrors()).item.prompt for _ in range(2000)}
    assert not any(is_test_prompt(prompt) for prompt in trained)
    # Case and punctuation do not move a prompt to the other side.
    assert is_test_prompt(items[0].prompt) == is_test_prompt(items[0].prompt.upper() + "!")


def test_the_first_test_prompts_are_what_they_always_were():  # published results name them by seed
    assert [task.id for task in tasks(2, 7)] == ["lab-7-0", "lab-7-1"]
    assert [record["prompt"] for record in prompt_records(4, 7)] == [
        "a dog",
        "a frog together with a plane",
        "a photo of four bells",
        "paint a purple owl",
    ]


def test_lore_told_wrong_is_found_at_its_own_rate():
    rng = random.Random(1)
    wrong = [item for item in (make_item("riddle", rng) for _ in range(4000)) if misread(item, rng) != item.meaning]
    assert 0.45 < len(wrong) / 4000 < 0.65
    item = wrong[0]
    lone = Item("riddle", "", Meaning((Group(item.meaning.groups[0].noun),)), ((item.lore[0][0],),))
    right = sum(misread(lone, rng) == lone.meaning for _ in range(3000)) / 3000
    assert right == pytest.approx(right_share(item.meaning.groups[0].noun, item.lore[0][0]), abs=0.03)


def test_most_pictures_show_their_text_and_errors_are_of_every_kind():
    rng = random.Random(2)
    shown = {category: [] for category in MIX}
    for _ in range(6000):
        sample = training_sample(rng, DrawingErrors())
        if not sample.plan_is_taught:
            continue
        right = all(c.passed for c in check(sample.meaning, page_of(sample.scene)))
        shown[sample.item.category].append(right)
    rates = {category: sum(flags) / len(flags) for category, flags in shown.items()}
    assert 0.96 < rates["single"] < 1  # only an asked frame can go wrong
    assert 0.85 < rates["two"] < 0.97
    assert 0.5 < rates["counting"] < 0.8
    assert 0.6 < rates["attribute"] < 0.85
    assert 0.4 < rates["composition"] < 0.7


def test_contradicted_plans_are_not_taught():
    rng = random.Random(3)
    samples = [training_sample(rng, DrawingErrors()) for _ in range(500)]
    contradicted = [s for s in samples if not s.plan_is_taught]
    assert 0.2 < len(contradicted) / 500 < 0.4
    assert all(s.meaning != s.item.meaning for s in contradicted)
    assert not any(agrees(s.item.meaning, s.meaning) for s in contradicted)


# --- The tokenizer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a red fox", "héllo — 北京 🦊🏽", "\x00\t\n ", "e\u0301" * 50, "ﷺ" * 20])
def test_any_unicode_comes_back_whole(tokenizer, text):
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_a_checkpoint_directory_is_complete(tokenizer, tmp_path):
    save_checkpoint(make_model(tokenizer), tokenizer, tmp_path / "checkpoint")
    names = {path.name for path in (tmp_path / "checkpoint").iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
    } <= names
    assert not list(tmp_path.glob("*.partial"))
    assert sum(path.stat().st_size for path in (tmp_path / "checkpoint").rglob("*") if path.is_file()) < 16e6


# --- The loops ------------------------------------------------------------------------------------------------


def test_a_batch_teaches_each_token_at_the_state_before_it(tokenizer):
    ids = Ids.of(tokenizer)
    batch = make_batch(3, LmPlan(steps=4), ids, tokenizer)
    drawings, questions = batch.drawings, batch.questions
    for part in (drawings, batch.readings):
        assert torch.equal(part.ids.flatten()[part.text_at + 1], part.text)
        assert ids.eos in part.text
    rows = torch.arange(len(drawings.codes))
    assert (drawings.ids[rows, drawings.code_start - 1] == ids.boi).all()
    assert drawings.codes.shape == (len(drawings.codes), TOKENS)
    unconditional = [row for row in drawings.ids.tolist() if row[1] == ids.pad]
    for row in unconditional:  # exactly the form of guidance at inference
        assert row[0] == ids.bos
        assert set(row[1:]) <= {ids.pad, ids.boi}
    flat = questions.ids.flatten()
    assert set(flat[questions.answer_at + 1].tolist()) <= {ids.yes, ids.no}
    assert (flat[questions.answer_at] == ids.assistant).all()
    assert (questions.ids[:, FIRST_PATCH : FIRST_PATCH + TOKENS] == ids.image).all()
    assert not (flat[questions.caption_at + 1] == ids.pad).any()


def test_a_killed_language_training_resumes_as_if_it_had_not_stopped(tokenizer, tmp_path, monkeypatch):
    device = torch.device("cpu")
    whole, halves = make_model(tokenizer), make_model(tokenizer)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    train_lm(whole, tokenizer, tmp_path / "a", LmPlan(steps=4, diet=FEW), device, nothing)

    class Killed(Exception):
        pass

    def kill(step, losses):
        if step == 3:
            raise Killed

    monkeypatch.setattr("milr.lab.train_lm.SAVE_EVERY", 2)
    with pytest.raises(Killed):
        train_lm(halves, tokenizer, tmp_path / "b", LmPlan(steps=4, diet=FEW), device, kill)
    again = make_model(tokenizer, seed=5)
    train_lm(again, tokenizer, tmp_path / "b", LmPlan(steps=4, diet=FEW), device, nothing)
    states = [torch.load(tmp_path / name / "lm.pt", weights_only=True) for name in "ab"]
    for ours, theirs in zip(states[0]["average"], states[1]["average"], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_losses_fall(tokenizer, tmp_path):
    model = make_model(tokenizer)
    batch = make_batch(0, LmPlan(steps=12, seed=1), Ids.of(tokenizer), tokenizer)
    before = {name: loss.item() for name, loss in losses(model, batch).items()}
    train_lm(model, tokenizer, tmp_path, LmPlan(steps=12), torch.device("cpu"), nothing)
    after = {name: loss.item() for name, loss in losses(model, batch).items()}
    assert all(after[name] < before[name] for name in before)


def test_the_eye_learns_to_name_tiles_and_stays_as_it_is(tokenizer, tmp_path):
    model = make_model(tokenizer)
    tokens, pages = batch(random.Random(0), 8)

    def error():
        with torch.no_grad():
            return float((see(model, pages) - tile_features(WIDTH)[tokens]).square().mean())

    before = error()
    train_eye(model, 120, 0, torch.device("cpu"), nothing)
    assert error() < 0.8 * before
    taught = {name: p.clone() for name, p in model.model.vision_model.named_parameters()}
    train_lm(model, tokenizer, tmp_path, LmPlan(steps=2, diet=FEW), torch.device("cpu"), nothing)
    for name, parameter in model.model.vision_model.named_parameters():
        assert torch.equal(parameter, taught[name]), name


def test_a_finished_image_tokenizer_is_not_trained_again(tmp_path, monkeypatch):
    monkeypatch.setattr("milr.lab.train_vq.PAGES_PER_STEP", 1)
    first = train_vq(tmp_path, 2, 256, 0, torch.device("cpu"), nothing)
    again = train_vq(tmp_path, 2, 256, 0, torch.device("cpu"), lambda *_: pytest.fail("it was finished"))
    for ours, theirs in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    torch.testing.assert_close(again.quantize.embedding.weight.norm(dim=-1), torch.ones(CODES))


def test_the_whole_recipe_makes_a_checkpoint_and_a_card(tmp_path, monkeypatch):
    monkeypatch.setattr("milr.lab.train_vq.PAGES_PER_STEP", 1)
    monkeypatch.setattr(
        "milr.lab.train.plans",
        lambda recipe: {stage: replace(plan, diet=FEW) for stage, plan in plans(recipe).items()},
    )
    lines = []
    recipe = Recipe(vq_steps=1, eye_steps=1, lm_steps=2, draw_steps=1, ask_steps=1)
    checkpoint = train(tmp_path / "out", recipe, tell=lines.append, prompts=0)
    assert (checkpoint / "model.safetensors").exists()
    assert (tmp_path / "out" / "curves.png").exists()
    card = (tmp_path / "out" / "card.md").read_text()
    assert "| language model | 2 |" in card
    assert "| drawing | 1 |" in card
    assert "| asking | 1 |" in card
    assert json.loads((tmp_path / "out" / "card.json").read_text())["recipe"]["lm_steps"] == 2
    assert any("min left" in line for line in lines)
    with pytest.raises(UserError, match="another recipe"):
        train(
            tmp_path / "out",
            Recipe(vq_steps=2, eye_steps=1, lm_steps=2, draw_steps=1, ask_steps=1),
            tell=lines.append,
            prompts=0,
        )
