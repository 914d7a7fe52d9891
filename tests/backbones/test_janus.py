"""Loading, prompts, heads, pixels and the understanding path; mistakes and what is said about them."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoTokenizer, JanusForConditionalGeneration

from milr import backbones
from milr.backbones import checkpoint
from milr.backbones.checkpoint import Memory, describe_memory, memory_needed
from milr.backbones.janus import JanusBackbone, load_janus
from milr.backbones.random_checkpoint import janus_pro_1b, janus_pro_7b, main, make_checkpoint, tiny
from milr.backbones.sampling import choose
from milr.drafts import Ask, Forced, Greedy, Order, Sample, UserError
from rounding import assert_same_tokens, of_model

# --- Loading --------------------------------------------------------------------------------------------------


def test_info_says_what_a_result_must_say(tiny_backbone: JanusBackbone) -> None:
    info = tiny_backbone.info
    assert (info.name, info.dtype, info.device) == ("tiny", "float32", "cpu")
    assert (info.image_tokens, info.grid, info.image_size, info.hidden_size) == (16, 4, 16, 64)
    assert info.guidance == 2.0
    assert tiny_backbone.max_text_tokens == 24
    assert tiny_backbone.max_batch == 64


def test_the_heads_are_not_tied_and_nothing_trains(tiny_backbone: JanusBackbone) -> None:
    model = tiny_backbone.model
    assert not torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_configuration_that_ties_by_default_does_not_tie_stored_heads(
    tiny_checkpoint: Path, tmp_path: Path, tiny_backbone: JanusBackbone
) -> None:
    """Janus-Pro's own config.json has no `tie_word_embeddings`, whose default is to tie."""
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))
    fields = json.loads((copy / "config.json").read_text())
    del fields["tie_word_embeddings"]
    (copy / "config.json").write_text(json.dumps(fields))
    loaded = load_janus(str(copy), "cpu")
    assert_close(loaded.model.lm_head.weight, tiny_backbone.model.lm_head.weight)


def test_a_tied_checkpoint_stays_tied(tiny_checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))
    weights = load_file(copy / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    model = load_janus(str(copy), "cpu").model
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def test_save_and_load_round_trip(tiny_checkpoint: Path, tiny_backbone: JanusBackbone, tmp_path: Path) -> None:
    """What transformers saves (jinja files beside the tokenizer) loads as the same backbone, also in shards."""
    model = JanusForConditionalGeneration.from_pretrained(tiny_checkpoint)
    model.save_pretrained(tmp_path / "saved", max_shard_size="500KB")
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "model.safetensors.index.json").exists()
    again = load_janus(str(tmp_path / "saved"), "cpu", "float32")
    order = Order("a red apple", Ask(text=Sample()), 5)
    one, other = again.draw([order])[0], tiny_backbone.draw([order])[0]
    if assert_same_tokens(tiny_backbone, order, one, other):
        assert np.abs(np.asarray(one.image, dtype=int) - np.asarray(other.image, dtype=int)).max() <= 1


def test_fusing_leaves_the_module_as_it_was(pair: Any) -> None:
    """The module's weights are views of the fused ones: transformers' own forward still works, nothing is doubled."""
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        ours = pair.ours.model.model.language_model(input_ids=ids).last_hidden_state
        theirs = pair.theirs.model.language_model(input_ids=ids).last_hidden_state
    assert_close(ours, theirs, atol=of_model(pair.ours, theirs), rtol=0)
    attention = pair.ours.model.model.language_model.layers[0].self_attn
    storages = {layer.weight.untyped_storage().data_ptr() for layer in (attention.q_proj, attention.v_proj)}
    assert len(storages) == 1


def test_bfloat16_draws_and_its_heads_agree_with_the_engine(tiny_checkpoint: Path) -> None:
    backbone = load_janus(str(tiny_checkpoint), "cpu", "bfloat16")
    assert backbone.info.dtype == "bfloat16"
    ask = Ask(image=Greedy(), text_ratio=1.0, image_ratio=1.0, guidance=4.0)
    drawn = backbone.draw([Order("a red apple", ask, 0)])[0]
    assert drawn.latents
    assert drawn.latents.text.dtype == drawn.latents.image.dtype == torch.float32
    for logits, expected in (
        (backbone.text_logits(drawn.latents.text), drawn.text_tokens),
        (backbone.image_logits(drawn.latents.image, 4.0), drawn.image_tokens),
    ):
        assert logits.dtype == torch.float32
        count = len(expected)
        assert tuple(choose(logits, torch.zeros(count), torch.zeros(count).double()).tolist()) == expected


def test_heads_are_differentiable_in_the_latents(tiny_backbone: JanusBackbone) -> None:
    drawn = tiny_backbone.draw([Order("a red apple", Ask(text_ratio=0.5, image_ratio=0.2), 0)])[0]
    assert drawn.latents
    text, image = (latent.clone().requires_grad_() for latent in (drawn.latents.text, drawn.latents.image))
    (tiny_backbone.text_logits(text).logsumexp(-1).sum() + tiny_backbone.image_logits(image, 2.0).sum()).backward()
    assert text.grad is not None
    assert image.grad is not None
    assert text.grad.abs().sum(-1).min() > 0
    assert image.grad.abs().sum(-1).min() > 0


# --- Mistakes -------------------------------------------------------------------------------------------------


def test_unknown_names_get_a_hint() -> None:
    with pytest.raises(UserError, match=r"Unknown model 'janus-pro-1': did you mean 'janus-pro-1b'\?"):
        load_janus("janus-pro-1")
    with pytest.raises(UserError, match="known are lab, janus-pro-1b, janus-pro-7b"):
        load_janus("zzz")
    with pytest.raises(UserError, match="Unknown model"):
        load_janus("./no/such/folder")


def test_without_network_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"^some-owner/some-model is not on this machine and could not be fetched"):
        load_janus("some-owner/some-model")


@pytest.mark.parametrize(
    ("device", "dtype", "message"),
    [
        ("tpu", "auto", "Unknown device 'tpu'"),
        ("cuda:9", "auto", "There is no device 'cuda:9'"),
        ("cpu", "int8", "Unknown dtype 'int8'"),
        ("cpu", "float16", "float16 needs a GPU"),
    ],
)
def test_wrong_device_or_dtype(tiny_checkpoint: Path, device: str, dtype: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_janus(str(tiny_checkpoint), device, dtype)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda path: (path / "config.json").unlink(), "has no config.json"),
        (lambda path: (path / "config.json").write_text("{"), "config.json of broken cannot be read"),
        (lambda path: (path / "config.json").write_text('{"model_type": "llama"}'), "a 'llama' model, not a Janus"),
        (lambda path: (path / "config.json").write_text('{"model_type": "multi_modality"}'), "DeepSeek's own format"),
        (lambda path: (path / "config.json").write_text('{"model_type": "janus", "vq_config": 3}'), "not that of"),
        (
            lambda path: (path / "model.safetensors").rename(path / "model.bin"),
            "no weights as safetensors but as model",
        ),
        (lambda path: (path / "model.safetensors").write_bytes(b"x" * 99), "weights of broken cannot be read"),
        (lambda path: (path / "tokenizer.json").write_text("{"), "broken cannot be read"),
    ],
)
def test_broken_checkpoints(tiny_checkpoint: Path, tmp_path: Path, break_it: Any, message: str) -> None:
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "broken"))
    break_it(copy)
    with pytest.raises(UserError, match=message) as caught:
        load_janus(str(copy), "cpu")
    assert str(tmp_path) not in str(caught.value) or "cannot be read" in message
    assert "\n" not in str(caught.value)


def test_missing_weights_and_shards(tiny_checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))
    weights = load_file(copy / "model.safetensors")
    del weights["model.generation_head.vision_head.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"incomplete: 1 weights are missing, the first is model.generation_head"):
        load_janus(str(copy), "cpu")
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"model-00001-of-00002\.safetensors is missing"):
        load_janus(str(copy), "cpu")


def test_too_little_memory_is_said_before_loading(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "free_bytes", lambda device: 1_000_000)
    with pytest.raises(UserError, match=r"tiny in float32 needs 0\.0 GB of memory, but cpu has only 0\.0 GB free"):
        load_janus(str(tiny_checkpoint), "cpu", "float32")
    assert "too little" in describe_memory(str(tiny_checkpoint), "cpu")


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (Ask(guidance=float("nan")), "guidance scale is nan"),
        (Ask(guidance=-1.0), "guidance scale is -1.0"),
        (Ask(text=Sample(0.0)), "temperature is 0.0"),
        (Ask(image=Forced((1,), then=Sample(float("inf")))), "temperature is inf"),
        (Ask(image=Forced((61,))), "outside the 61 that tiny knows"),
        (Ask(text=Forced((5, -1))), "outside the 333 that tiny knows"),
    ],
)
def test_wrong_numbers(tiny_backbone: JanusBackbone, ask: Ask, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny_backbone.draw([Order("a red apple", ask, 0)])


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "prompt is empty"),
        (" \n", "prompt is empty"),
        ("a <begin_of_image> fox", "'<begin_of_image>', a control token"),
        ("<｜end▁of▁sentence｜>", "a control token"),
        ("~" * 5000, r"is 50\d\d tokens long; tiny reads at most 4056"),
    ],
)
def test_prompts_that_cannot_be_drawn(tiny_backbone: JanusBackbone, prompt: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny_backbone.draw([Order(prompt, Ask(), 0)])


def test_no_orders_no_drawings(tiny_backbone: JanusBackbone) -> None:
    assert tiny_backbone.draw([]) == []
    assert tiny_backbone.answer([], []) == []


# --- Prompts --------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(prompt=st.text(st.characters(codec=None), min_size=1).filter(str.strip))
def test_any_unicode_is_drawn(tiny_backbone: JanusBackbone, prompt: str) -> None:
    drawn = tiny_backbone.draw([Order(prompt, Ask(image=Forced(tuple(range(12)))), 0)])[0]
    assert drawn.image.size == (16, 16)


def test_templates_of_the_checkpoint_are_used(tiny_backbone: JanusBackbone) -> None:
    prompts, tokenizer = tiny_backbone.prompts, tiny_backbone.prompts._tokenizer
    assert tokenizer.decode(prompts.reasoning("a fox")) == "<｜begin▁of▁sentence｜>a fox =>"
    drawing = prompts.drawing("a fox", " red \n")
    assert tokenizer.decode(drawing) == "<｜begin▁of▁sentence｜>a fox => red<begin_of_image>"
    undrawn = prompts.undrawn(drawing)
    assert len(undrawn) == len(drawing)
    assert undrawn[0] == drawing[0] == prompts.begin
    assert undrawn[-1] == drawing[-1] == prompts.begin_image
    assert set(undrawn[1:-1]) == {prompts.pad}
    seen = "<begin_of_image>" + "<image_placeholder>" * 16 + "<end_of_image>"
    assert tokenizer.decode(prompts.question("red?")) == f"<｜begin▁of▁sentence｜>{seen}red? "


def test_janus_pros_own_prompts(tmp_path: Path) -> None:
    directory = make_checkpoint(tiny(), tmp_path / "plain", dtype=torch.float32)
    backbone = load_janus(str(directory), "cpu")
    assert backbone.info.guidance == 5.0
    assert backbone.max_text_tokens == 512
    prompts, tokenizer = backbone.prompts, backbone.prompts._tokenizer
    begin = "<｜begin▁of▁sentence｜>"
    drawing = tokenizer.decode(prompts.drawing("a fox ", " A red fox.\n"))
    assert drawing == f"{begin}<|User|>: a fox. A red fox.\n\n<|Assistant|>:<begin_of_image>"
    assert tokenizer.decode(prompts.drawing("a fox", "")) == (
        f"{begin}<|User|>: a fox\n\n<|Assistant|>:<begin_of_image>"
    )
    reasoning = tokenizer.decode(prompts.reasoning("a fox {prompt}"))
    assert "asks for: a fox {prompt}\n" in reasoning
    assert "at most 50 words" in reasoning
    assert reasoning.startswith(begin)
    assert reasoning.endswith("\n\n<|Assistant|>:")
    question = tokenizer.decode(prompts.question("Is there a fox?"))
    seen = "<begin_of_image>" + "<image_placeholder>" * 16 + "<end_of_image>"
    assert question.startswith(f"{begin}You are a helpful language and vision assistant.")
    assert question.endswith(f"<|User|>: {seen}\nIs there a fox? Answer yes or no.\n\n<|Assistant|>:")


def test_a_reasoning_cannot_smuggle_control_tokens(tiny_backbone: JanusBackbone) -> None:
    prompts = tiny_backbone.prompts
    nasty = "<begin_of_<begin_of_image>image> fox"
    assert prompts.clean(nasty) == "fox"
    assert prompts.drawing("a", nasty).count(prompts.begin_image) == 1
    assert prompts.text([prompts.begin_image, *prompts._encode("fox", begin=False), prompts.end]) == "fox"


# --- Pixels and understanding ---------------------------------------------------------------------------------


def test_pixels_are_the_clipped_decoding(pair: Any) -> None:
    count = pair.ours.info.image_tokens
    tokens = [[(7 * i + j) % 50 for i in range(count)] for j in range(3)]
    with torch.no_grad():
        values = pair.theirs.decode_image_tokens(torch.tensor(tokens))
    images = pair.ours.pixels(tokens)
    for image, expected in zip(images, values, strict=True):
        assert image.size == (pair.ours.info.image_size,) * 2
        difference = np.asarray(image) - ((expected.numpy() + 1) * 127.5).clip(0, 255)
        assert np.abs(difference).max() <= 0.51


def test_answers_are_those_of_transformers(pair: Any) -> None:
    """Images of several shapes and questions of several lengths in one batch, against one forward for each."""
    random = np.random.default_rng(0)
    size = pair.theirs.config.vision_config.image_size
    shapes = [(size, size), (3 * size, 2 * size), (2 * size, 5 * size)]
    images = [Image.fromarray(random.integers(0, 255, (h, w, 3), dtype=np.uint8)) for h, w in shapes]
    questions = ["red?", "is there a blue thing left of it?", "x"]
    answers = pair.ours.answer(images, questions)
    tokenizer = AutoTokenizer.from_pretrained(pair.directory)
    words = ("yes", "Yes", " yes", " Yes"), ("no", "No", " no", " No")
    yes, no = ({tokenizer.encode(word)[0] for word in spellings} for spellings in words)
    for image, question, answer in zip(images, questions, answers, strict=True):
        scaled = image.resize([round(side * size / max(image.size)) for side in image.size], Image.Resampling.BICUBIC)
        square = Image.new("RGB", (size, size), (127, 127, 127))
        square.paste(scaled, ((size - scaled.width) // 2, (size - scaled.height) // 2))
        pixels = torch.tensor(np.asarray(square) / 127.5 - 1).permute(2, 0, 1)[None].float()
        ids = torch.tensor([pair.ours.prompts.question(question)])
        with torch.no_grad():
            logits = pair.theirs(input_ids=ids, pixel_values=pixels).logits[0, -1]
        mass = logits.softmax(-1)
        said_yes, said_no = (mass[sorted(chosen)].sum() for chosen in (yes - no, no - yes))
        # A share moves by no more than the logits do.
        assert answer == pytest.approx(float(said_yes / (said_yes + said_no)), abs=of_model(pair.ours, logits))
    assert len({round(answer, 3) for answer in answers}) == 3


def test_descriptions_are_those_of_transformers(pair: Any) -> None:
    """Greedy answers of several lengths of question in one batch, against `generate` for each: token for token."""
    random = np.random.default_rng(1)
    size = pair.theirs.config.vision_config.image_size
    images = [Image.fromarray(random.integers(0, 255, (size, size, 3), dtype=np.uint8)) for _ in range(4)]
    questions = ["what is it?", "which colour has the thing to the left of it?", "x", "and how many?"]
    answers = pair.ours.describe(images, questions, 20)
    written, gaps, roundings = [], [], []
    for image, question in zip(images, questions, strict=True):
        pixels = torch.tensor(np.asarray(image) / 127.5 - 1).permute(2, 0, 1)[None].float()
        ids = torch.tensor([pair.ours.prompts.question(question, closing="")])
        said = pair.theirs.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixels,
            generation_mode="text",
            do_sample=False,
            max_new_tokens=20,
            output_logits=True,
            return_dict_in_generate=True,
        )
        written.append(said.sequences[0, ids.shape[1] :].tolist())
        logits = torch.cat(said.logits)
        best, second = logits.topk(2, -1).values.unbind(-1)
        gaps.append(float((best - second).min()))
        roundings.append(of_model(pair.ours, logits))
    for answer, tokens, gap, rounded in zip(answers, written, gaps, roundings, strict=True):
        assert answer == pair.ours.prompts.text(tokens).strip() or gap < 2 * rounded  # a tie: see rounding.py
    assert len(set(answers)) > 1
    assert pair.ours.describe(images[:1], questions[:1], 5) == [pair.ours.prompts.text(written[0][:5]).strip()]


def test_a_description_ends_where_the_model_ends_it(tiny_backbone: JanusBackbone) -> None:
    """The end token is not part of the text, and a row that goes on longer is not cut with it."""
    backbone = copy.copy(tiny_backbone)
    backbone.prompts = copy.copy(tiny_backbone.prompts)
    backbone.prompts.text = lambda tokens: " ".join(map(str, tokens))  # type: ignore[method-assign]
    images, questions = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")], ["x", "a longer one?"]
    whole, other = (text.split() for text in backbone.describe(images, questions, 12))
    end = next(token for token in whole[2:] if token not in other)
    backbone.prompts.end = int(end)
    assert backbone.describe(images, questions, 12) == [" ".join(whole[: whole.index(end)]), " ".join(other)]


@pytest.mark.parametrize(
    ("part", "what"),
    [
        ("model.language_model.layers.1.mlp.down_proj.weight", "logits or latents"),
        ("lm_head.weight", "logits or latents"),
        ("model.generation_head.vision_head.weight", "logits or latents"),
        ("model.vqmodel.decoder.conv_out.bias", "pixels"),
    ],
)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_model_that_computes_nan_is_not_drawn_with(
    tiny_checkpoint: Path, part: str, what: str, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_janus(str(tiny_checkpoint), device="cpu", dtype="float32")
    weights = dict(backbone.model.named_parameters())
    with torch.no_grad():
        weights[part].view(-1)[0] = bad
    orders = [Order("a fox", Ask(text=Sample(), image=Sample(), text_ratio=0.2), stream) for stream in range(3)]
    with pytest.raises(UserError, match=rf"computes NaN \({what}\) even in float32"):
        backbone.draw(orders)
    for dtype, mend in (("float16", "use --dtype bfloat16 or --dtype float32"), ("bfloat16", "use --dtype float32")):
        monkeypatch.setattr(backbone, "info", replace(backbone.info, dtype=dtype))
        with pytest.raises(UserError, match=mend):
            backbone.draw(orders)


def test_a_model_that_computes_nan_answers_nothing(tiny_checkpoint: Path) -> None:
    backbone = load_janus(str(tiny_checkpoint), device="cpu", dtype="float32")
    with torch.no_grad():
        backbone.model.lm_head.weight[0, 0] = float("nan")
    image = Image.new("RGB", (32, 32))
    for ask in (backbone.answer, lambda images, asked: backbone.describe(images, asked, 4)):
        with pytest.raises(UserError, match="computes NaN"):
            ask([image], ["Is it a fox?"])


def test_an_open_question_does_not_ask_for_yes_or_no(tmp_path: Path) -> None:
    directory = make_checkpoint(tiny(), tmp_path / "plain", dtype=torch.float32)
    prompts = load_janus(str(directory), "cpu").prompts
    text = prompts.text(prompts.question("What is it?", closing=""))
    assert text.endswith("\nWhat is it?\n\n<|Assistant|>:")


def test_a_question_that_leaves_no_room_for_the_answer(tiny_backbone: JanusBackbone) -> None:
    with pytest.raises(UserError, match="shorten the prompt"):
        tiny_backbone.describe([Image.new("RGB", (16, 16))], ["~" * 4000], 128)


# --- Sizes ----------------------------------------------------------------------------------------------------


def test_sizes_of_janus_pro() -> None:
    """2.077 B and 7.408 B parameters, as transformers counts those of the published checkpoints."""
    for config, parameters, cache_of_a_token in (
        (janus_pro_1b(), 2.077e9, 196_608),
        (janus_pro_7b(), 7.408e9, 491_520),
    ):
        memory = memory_needed(config, torch.bfloat16)
        inputs = 16_384 * config.text_config.hidden_size  # of image tokens, worked out once
        assert memory.weights == pytest.approx(2 * (parameters + inputs), rel=2e-4)
        assert memory.image >= 2 * 576 * cache_of_a_token
        assert (memory.pixels, memory.pictures) == (8 * 384 * 384 * 128 * 2, 7)
    assert describe_memory("janus-pro-7b", "cpu").startswith("janus-pro-7b in bfloat16 needs 14.95 GB")


def test_what_an_image_holds_on_its_way() -> None:
    """By hand, for the 7B in bfloat16: two rows of 776 tokens, each with its keys and values in 30 layers; float32
    latents, twice; and, of 8,192 tokens at a time, the widest of what a layer makes of them."""
    memory = memory_needed(janus_pro_7b(), torch.bfloat16)
    cache, passing = 2 * 30 * 4096 * 2, (4 * 11_008 + 3 * 4096) * 2
    assert memory.image == 2 * 776 * cache + 2 * 576 * 2 * 4096 * 4
    assert memory.reading == 2 * 776 * passing
    assert memory.reading_at_once == 8192 * passing


def test_as_many_images_as_fit() -> None:
    """Prompts are read and pixels decoded a few at a time, so many images need no more room for them than a few."""
    memory = Memory(weights=1000, image=10, reading=7, reading_at_once=20, pixels=30, pictures=4)
    assert memory.total == 1047
    for room, images in ((46, 0), (47, 1), (93, 1), (94, 2), (180, 4), (190, 5), (700, 56), (10_000, 64)):
        assert memory.images_in(room) == images
        assert memory.of(images) <= room
        assert images == 64 or memory.of(images + 1) > room


def test_the_random_checkpoint_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    assert main(["janus-pro-1b", "--out", str(tmp_path / "there")]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_the_large_tokenizer_has_janus_pros_ids() -> None:
    from milr.backbones.random_checkpoint import make_tokenizer

    tokenizer = make_tokenizer(janus_pro_1b(), templates=False)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (100_000, 100_001, 100_002)
    assert tokenizer.convert_tokens_to_ids("<image_placeholder>") == 100_581
    assert tokenizer.decode(tokenizer.encode("a red fox, 苹果 🍎")) == "a red fox, 苹果 🍎"
    assert max(tokenizer.get_vocab().values()) < 102_400


# --- The door -------------------------------------------------------------------------------------------------


def test_the_door_is_light_and_lists_the_models() -> None:
    code = "import sys, milr.backbones as b; print(*b.names()); assert not {'torch', 'transformers'} & set(sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stderr == ""
    assert run.stdout.split()[:3] == ["lab", "janus-pro-1b", "janus-pro-7b"]


def test_load_by_directory(tiny_checkpoint: Path) -> None:
    assert backbones.load(str(tiny_checkpoint), device="cpu").info.name == "tiny"


@pytest.mark.real_weights
def test_golden_tokens_of_janus_pro_1b() -> None:
    """First image tokens of transformers' own integration test (tests/models/janus): greedy, w = 5, no template."""
    backbone = load_janus(os.environ.get("MILR_JANUS", "janus-pro-1b"))
    text = "A portrait of young girl. masterpiece, film grained, best quality."
    request = [*backbone.prompts._encode(text), backbone.prompts.begin_image]
    assert len(request) == 17
    backbone.prompts.drawing = lambda prompt, reasoning: request  # type: ignore[method-assign]
    silent = Forced((backbone.text_end(),))
    drawn = backbone.draw([Order(text, Ask(text=silent, image=Greedy(), guidance=5.0), 0)])[0]
    golden = [4484, 4015, 15750, 506, 3758, 11651, 8597, 5739, 4861, 971, 14985, 14834, 15438, 7548, 1820, 1465]
    assert list(drawn.image_tokens[:16]) == golden


def test_what_critics_hold_by_the_first_draft_is_counted(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_janus(str(tiny_checkpoint), device="cpu", dtype="float32")
    assert backbone.max_batch == 64
    memory = backbone._memory
    assert memory is not None
    monkeypatch.setattr("milr.backbones.batches.free_bytes", lambda device: int(memory.of(10) / 0.8) + 1)
    backbone.draw([Order("a red apple", Ask(), 1)])
    assert backbone.max_batch == 8, "ten would fit, and a board has eight places"
    monkeypatch.setattr("milr.backbones.batches.free_bytes", lambda device: 0)
    backbone.draw([Order("a red apple", Ask(), 1)])
    assert backbone.max_batch == 8, "looked at once: what the engine itself holds is not free any more"


def test_looking_at_pictures_makes_no_plans_either(
    tiny_backbone: JanusBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A described picture brings a new length with every word, as a drawn one does with every token."""
    inside: list[bool] = []

    @contextmanager
    def planless(device: torch.device) -> Iterator[None]:
        inside.append(True)
        yield
        inside.pop()

    real = tiny_backbone._decoder.forward

    def forward(*arguments: Any, **named: Any) -> Any:
        assert inside, "attention outside of the guard"
        return real(*arguments, **named)

    monkeypatch.setattr("milr.backbones.janus.planless_attention", planless)
    monkeypatch.setattr(tiny_backbone._decoder, "forward", forward)
    image = Image.new("RGB", (32, 32))
    tiny_backbone.describe([image], ["what is it?"], 3)
    tiny_backbone.answer([image], ["is it red?"])
