"""The lab's flow model: its parts are diffusers' own, its training resumes exactly, its states are the writer's."""

import json
import random
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of diffusers' imports
    diffusers = pytest.importorskip("diffusers")

from milr.backbones import load
from milr.drafts import Ask, Order, UserError
from milr.lab import flow_data, train_dit, train_kl
from milr.lab.codes import BLANK, CODES, FIRST_FRAME, FIRST_SPRITE, page_tokens
from milr.lab.curriculum import is_test_prompt, unseen_items
from milr.lab.detector import check, page_of
from milr.lab.flow_data import FAULTLESS, Data, Told, tell
from milr.lab.flow_model import (
    CELL_WIDTH,
    MAX_TEXT,
    FlowSize,
    cells_of,
    draw,
    drawer_text,
    grid_of,
    language_model,
    make_autoencoder,
    make_pipeline,
    make_transformer,
    save_pipeline,
    states_of,
    tile_latents,
    token_counts,
)
from milr.lab.language import agrees, parse, read_reading, write_reading
from milr.lab.measure_flow import write_readings
from milr.lab.optimizers import load_state
from milr.lab.train_dit import FlowPlan, endpoints, names
from milr.lab.train_flow import SMALL, load_pipeline, train_flow
from milr.lab.train_kl import statistics
from milr.lab.world import COLOUR_NAMES, LOOKS, NOUNS, lay_out

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers, diffusers and torch warn of what is meant here
TINY = FlowSize(heads=1, double_blocks=1, single_blocks=1, mlp_ratio=1.0)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def writer():
    return language_model()


@pytest.fixture(scope="module")
def pipeline(writer):
    return make_pipeline(make_autoencoder().eval(), make_transformer(TINY).eval(), *writer)


def nothing(step, losses):
    pass


# --- Latents --------------------------------------------------------------------------------------------------


def test_every_tile_has_latents_of_its_own_and_nouns_are_equally_far_apart():
    table = tile_latents()
    assert table.shape == (CODES, CELL_WIDTH)
    mean, variance = statistics(pages=300)
    normal = (table - mean) / variance.sqrt()
    apart = torch.cdist(normal, normal) + 99 * torch.eye(CODES)
    assert apart.min() > 5  # noise of 1 in every direction moves a latent by less than half of that towards another
    sprites = table[FIRST_SPRITE:].view(len(NOUNS), LOOKS, 4, CELL_WIDTH)
    between = torch.cdist(sprites[:, 3, 2], sprites[:, 3, 2])[~torch.eye(len(NOUNS), dtype=torch.bool)]
    assert {round(distance, 2) for distance in between.tolist()} == {5.66, 8.0}
    # A look is the same step for every noun.
    steps = sprites[:, 3, 1] - sprites[:, 7, 1]
    assert torch.equal(steps, steps[:1].expand_as(steps))


def test_tiles_are_named_as_they_are():
    nouns, looks = names()
    assert (nouns[BLANK], looks[BLANK]) == (len(NOUNS) + 1, LOOKS)
    green = FIRST_FRAME + 8 * COLOUR_NAMES.index("green") + 5
    assert (nouns[green], looks[green]) == (len(NOUNS), 1 + COLOUR_NAMES.index("green"))
    last = CODES - 1
    assert (nouns[last], looks[last]) == (len(NOUNS) - 1, LOOKS - 1)


def test_cells_are_packed_as_the_pipeline_packs_them():
    grid = torch.randn(2, 8, 16, 16)
    packed = diffusers.Flux2KleinPipeline._pack_latents(diffusers.Flux2KleinPipeline._patchify_latents(grid))
    assert torch.equal(cells_of(grid), packed)
    assert torch.equal(grid_of(cells_of(grid)), grid)


# --- The language model ---------------------------------------------------------------------------------------


def test_the_picture_attends_to_the_states_of_the_writing_itself(writer):
    model, tokenizer = writer
    prompt, reading = "two red foxes", "Two red foxes. Top left: a red fox. Middle: a red fox. No frame."
    # What milr's own templates make of the two, before the first image token.
    from transformers import PreTrainedTokenizerFast

    from milr.backbones.checkpoint import find

    own = PreTrainedTokenizerFast.from_pretrained(find("lab", "cpu", "float32").directory)
    ids = own.apply_chat_template(
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": reading}],
        chat_template="image",
        return_tensors="pt",
    )
    ids = ids["input_ids"] if not isinstance(ids, torch.Tensor) else ids
    states = states_of(model, tokenizer, [drawer_text(prompt, reading)])
    count = ids.shape[1]
    assert token_counts(tokenizer, [drawer_text(prompt, reading)]) == [count]
    written = model(ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(states[:, :count], torch.cat([written[k] for k in (2, 4, 6)], -1), atol=1e-3, rtol=1e-3)


def test_it_is_the_labs_language_model(writer, pipeline):
    items = unseen_items(8, 3, ("single", "two"))
    readings = [read_reading(text) for text in write_readings(pipeline, [item.prompt for item in items])]
    right = [
        reading is not None and reading.consistent and agrees(reading.meaning, item.meaning)
        for item, reading in zip(items, readings, strict=True)
    ]
    assert sum(right) >= 7


def test_no_text_of_the_world_is_cut_off(writer):
    rng = random.Random(0)
    texts = [tell(rng).text for _ in range(400)]
    assert max(token_counts(writer[1], texts)) <= MAX_TEXT


# --- The data -------------------------------------------------------------------------------------------------


def test_texts_and_their_pages_agree():
    rng = random.Random(1)
    told = [tell(rng) for _ in range(600)]
    assert 0.05 < sum(one.text == "" for one in told) / 600 < 0.15
    open_ones = [one for one in told if one.text and one.scene is None]
    assert 0.05 < len(open_ones) / 600 < 0.16
    assert not any(is_test_prompt(one.text.split("\n")[0]) for one in told if one.text)
    for one in told:
        prompt, _, reading = one.text.partition("\n")
        if one.scene is not None:
            assert read_reading(reading).scene == one.scene
            assert one.page(random.Random(2), FAULTLESS) == page_tokens(one.scene)
        elif one.text and not reading and (said := parse(prompt).meaning):
            assert said.groups == one.meaning.groups  # a prompt alone is drawn as what it means, not as misread
    # What the text leaves open is drawn anew each time.
    pages = {tuple(open_ones[0].page(random.Random(n), FAULTLESS)) for n in range(20)}
    assert len(pages) > 5


def test_drawing_errors_come_with_the_pages():
    item = next(item for item in unseen_items(80, 1) if item.category == "counting" and item.meaning.objects == 4)
    scene = lay_out(item.meaning, random.Random(0))
    told = Told(drawer_text(item.prompt, write_reading(item.meaning, scene)), item.meaning, scene)
    pages = [told.page(random.Random(n), flow_data.RECALIBRATED) for n in range(60)]
    assert 0.1 < sum(page != page_tokens(scene) for page in pages) / 60 < 0.99
    assert all(c.passed for c in check(item.meaning, page_of(scene)))


def test_a_batch_depends_on_its_step_alone(writer, monkeypatch):
    monkeypatch.setattr(flow_data, "BLOCK", 2)
    monkeypatch.setattr(flow_data, "USES", 2)
    one, other = (Data(0, 8, *writer) for _ in range(2))
    ahead = [one.batch(step) for step in range(6)]
    for step in (5, 1, 3):
        states, tokens = other.batch(step)
        assert torch.equal(states, ahead[step][0])
        assert torch.equal(tokens, ahead[step][1])
    # A text comes again, with another page.
    assert torch.equal(ahead[0][0], ahead[2][0])
    assert not torch.equal(ahead[2][1], ahead[0][1])


# --- Training -------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def test_a_killed_autoencoder_goes_on_as_if_never_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(train_kl, "SAVE_EVERY", 1)
    monkeypatch.setattr(train_kl, "STATISTICS_PAGES", 50)
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole = train_kl.train_kl(tmp_path / "whole", 3, 0, CPU, nothing)

    def kill(step, losses):
        raise Killed

    monkeypatch.setattr(train_kl, "REPORT_EVERY", 1)
    with pytest.raises(Killed):
        train_kl.train_kl(tmp_path / "killed", 3, 0, CPU, lambda step, losses: kill(step, losses) if step else None)
    resumed = train_kl.train_kl(tmp_path / "killed", 3, 0, CPU, nothing)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, atol=1e-5, rtol=1e-4)


def test_a_killed_transformer_goes_on_as_if_never_stopped(tmp_path, monkeypatch, writer):
    monkeypatch.setattr(train_dit, "SAVE_EVERY", 2)
    monkeypatch.setattr(train_dit, "REPORT_EVERY", 1)
    vae, plan = make_autoencoder(), FlowPlan(4, batch=2, size=TINY)
    examples = (states_of(*writer, ["a fox"]), torch.zeros(1, 64, dtype=torch.long))
    made = []
    for folder, killed_at in ((tmp_path / "whole", None), (tmp_path / "killed", 3)):
        folder.mkdir()
        made.append(folder)

        def report(step, losses, killed_at=killed_at):
            if step == killed_at:
                raise Killed

        if killed_at is not None:
            with pytest.raises(Killed):
                train_dit.train_dit(vae, Data(0, 2, *writer), examples, folder, plan, CPU, report)
    whole, resumed = (train_dit.train_dit(vae, Data(0, 2, *writer), examples, f, plan, CPU, nothing) for f in made)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, atol=1e-5, rtol=1e-4)


def test_losses_fall_and_the_factors_of_the_states_end_in_the_weights(tmp_path, writer, monkeypatch):
    tokens = torch.tensor([page_tokens(lay_out(unseen_items(1, 5)[0].meaning, random.Random(0)))])
    states = states_of(*writer, ["a dog"], 16)
    monkeypatch.setattr(Data, "batch", lambda self, step: (states.expand(4, -1, -1), tokens.expand(4, -1)))
    monkeypatch.setattr(train_dit, "LOOK_EVERY", 1000)
    losses = []
    plan = FlowPlan(30, batch=4, size=TINY)
    made = train_dit.train_dit(
        make_autoencoder(), Data(0, 4, *writer), (states, tokens), tmp_path, plan, CPU,
        lambda step, parts: losses.append(parts),
    )  # fmt: skip
    assert losses[-1]["velocity"] < 0.9 * losses[0]["velocity"]
    # The pipeline gives raw states: what training multiplied them with is in the weights that read them, once.
    state = load_state(tmp_path / "flow.pt")
    names_ = [name for name, _ in make_transformer(TINY).named_parameters()]
    average = dict(zip(names_, state["average"], strict=True))["context_embedder.weight"]
    assert state["scales"].std() > 0.1
    torch.testing.assert_close(made.context_embedder.weight, average * state["scales"])


# --- The pipeline ---------------------------------------------------------------------------------------------


def test_what_training_follows_is_what_the_pipeline_draws(pipeline):
    texts = ["a fox\nA fox. Middle: a fox. No frame."]
    states = states_of(pipeline.text_encoder, pipeline.tokenizer, texts)
    noise = torch.randn(CELL_WIDTH, 8, 8, generator=torch.Generator().manual_seed(4))
    ours = endpoints(pipeline.transformer, states, noise.flatten(1).T[None].contiguous())
    theirs = pipeline(
        prompt=texts, height=128, width=128, num_inference_steps=8, guidance_scale=1.0, latents=noise[None],
        max_sequence_length=MAX_TEXT, text_encoder_out_layers=(2, 4, 6), output_type="latent",
    ).images  # fmt: skip
    bn = pipeline.vae.bn
    spread = (bn.running_var + pipeline.vae.config.batch_norm_eps).sqrt()
    torch.testing.assert_close(cells_of(theirs), ours * spread + bn.running_mean, atol=1e-4, rtol=1e-4)


def test_a_draft_depends_on_its_seed_and_not_on_its_batch(pipeline, tmp_path):
    texts = ["a fox", "a red bus\nA red bus. Middle: a red bus. No frame."]
    one, two = draw(pipeline, texts, [5, 6])
    assert _near(draw(pipeline, texts[1:], [6])[0], two)
    assert draw(pipeline, texts[:1], [7])[0].tobytes() != one.tobytes()


def _near(one, other):
    return np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1


def test_the_whole_recipe_in_two_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(train_kl, "STATISTICS_PAGES", 50)
    monkeypatch.setattr(flow_data, "BLOCK", 2)
    monkeypatch.setattr(train_dit, "SNAPSHOT_EVERY", 1)
    recipe = SMALL
    told = []
    folder = train_flow(tmp_path / "out", recipe, "cpu", told.append, prompts=2, pages=2)
    assert folder == tmp_path / "out" / "model"
    assert any("min left" in line and "pages a second" in line for line in told)
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["measured"]["profile"]["all"]["success"]["of"] == 2
    assert "| transformer | 2 |" in (tmp_path / "out" / "card.md").read_text()
    for name in ("curves.png", "samples/step-000001.png", "samples/finished.png"):
        assert (tmp_path / "out" / name).stat().st_size > 1000
    settings = json.loads((folder / "milr.json").read_text())
    assert settings == {
        "image_size": 128, "steps": 8, "guidance": 1.0, "text_tokens": 96, "text_layers": [2, 4, 6],
        "reasoning": "{prompt}", "drawing": "{prompt}\n{reasoning}", "reasoning_tokens": 64,
    }  # fmt: skip
    # The very classes, from safetensors alone.
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "Flux2KleinPipeline"
    assert not [file for file in folder.rglob("*") if file.suffix in (".bin", ".pt", ".pkl", ".ckpt")]
    image = draw(load_pipeline(folder), ["a fox"], [0])[0]
    assert image.size == (128, 128)
    # As a model that is searched: it writes what the lab model writes, and draws from both.
    thinking, lab = load(str(folder), device="cpu"), load("lab", device="cpu")
    drawn, theirs = (model.draw([Order("a yellow animal that says moo", Ask(), 3)])[0] for model in (thinking, lab))
    assert drawn.text_tokens == theirs.text_tokens
    assert drawn.text_ended
    assert drawn.image.size == (128, 128)
    assert (drawn.cost.evaluations, len(drawn.image_tokens)) == (8, 64)
    # The same without a language model of its own: that of the lab model is the same.
    lent = tmp_path / "lent"
    shutil.copytree(folder, lent)
    shutil.rmtree(lent / "text_encoder")
    with pytest.raises(UserError, match="its folder text_encoder is missing"):
        load(str(lent), device="cpu")
    (lent / "milr.json").write_text(json.dumps({**settings, "text_encoder": "lab"}))
    borrowing = load(str(lent), device="cpu")
    again = borrowing.draw([Order("a yellow animal that says moo", Ask(), 3)])[0]
    assert again.text_tokens == drawn.text_tokens
    assert _near(again.image, drawn.image)
    (lent / "milr.json").write_text(json.dumps({**settings, "text_encoder": "other"}))
    with pytest.raises(UserError, match="text_encoder is 'other', not 'lab'"):
        load(str(lent), device="cpu")
    with pytest.raises(UserError, match="another recipe"):
        train_flow(tmp_path / "out", replace(SMALL, kl_steps=3), "cpu", told.append)


def test_the_recipes_size_is_within_what_was_promised():
    sizes = [sum(p.numel() for p in part.parameters()) for part in (make_transformer(), make_autoencoder())]
    assert 2 * sum(sizes) <= 12_000_000  # bytes in bfloat16


def test_without_diffusers_the_error_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"pip install 'milr\[flow\]'"):
        make_transformer()


def test_saving_leaves_the_pipeline_as_it_was(pipeline, tmp_path):
    before = pipeline.transformer.proj_out.weight.clone()
    save_pipeline(pipeline, tmp_path / "model", {"steps": 8})
    assert pipeline.transformer.dtype == torch.float32
    torch.testing.assert_close(pipeline.transformer.proj_out.weight, before, atol=1e-2, rtol=1e-2)
