import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import pictures, tiny_clip
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from milr.critics import clip, naming
from milr.critics.local import models
from milr.critics.local.models import ModelSettings
from milr.drafts import Task, UserError
from rounding import of_critic

CPU = ModelSettings(device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("clip"))


def transformers_own(folder, images, prompts):
    """exp(logit_scale) x cosine of each picture and prompt, by the model's own forward, one at a time."""
    model, tokenizer = CLIPModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prepare = CLIPImageProcessorPil.from_pretrained(folder)
    logits = []
    for image, prompt in zip(images, prompts, strict=True):
        words = tokenizer([prompt], truncation=True, max_length=77, return_tensors="pt")
        with torch.no_grad():
            logits.append(model(**words, **prepare(image, return_tensors="pt")).logits_per_image.item())
    return logits


def test_a_batch_is_what_transformers_gives_one_by_one(folder):
    images = pictures((28, 28), (64, 40), (30, 90), (384, 384))
    prompts = ["a fox", "two red birds above a very small blue car", "", "naïve 狐 🦊"]
    found = clip.Clip(str(folder), CPU).compare(images, prompts)
    expected = transformers_own(folder, images, prompts)
    assert [near.logit for near in found] == pytest.approx(expected, abs=1e-4 * 100)
    assert [near.cosine for near in found] == pytest.approx([logit / 100 for logit in expected], abs=1e-4)
    assert len({round(near.cosine, 3) for near in found}) == 4
    for image, prompt, near in zip(images, prompts, found, strict=True):
        (alone,) = clip.Clip(str(folder), ModelSettings(device="cpu", batch=1)).compare([image], [prompt])
        assert alone.cosine == pytest.approx(near.cosine, abs=of_critic(1.0))


def test_features_may_come_bare_or_in_an_object():
    class Output:
        pooler_output = torch.tensor([[3.0, 4.0]])

    for features in (Output(), Output.pooler_output):
        assert models.unit_vectors(features, "a CLIP").tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]


@pytest.mark.parametrize(
    ("cosine", "score"), [(0.1, 0.0), (0.35, 1.0), (0.225, 0.5), (0.3, 0.8), (-0.2, 0.0), (0.6, 1.0)]
)
def test_worked_scores(cosine, score):
    assert clip.spread(cosine, 0.1, 0.35) == pytest.approx(score)


def test_a_long_prompt_is_cut_and_the_score_says_so(folder):
    critic = naming.make(f"clip,model={folder},device=cpu,low=-1,high=1", None)
    assert critic.name == f"clip,model={folder},device=cpu,low=-1,high=1"
    (image,) = pictures((28, 28))
    fits, long, longer = "x" * 75, "x" * 76, "x" * 4000  # 77 with begin and end
    scores = critic.score([image] * 3, [Task(prompt) for prompt in (fits, long, longer)])
    assert [score.reason for score in scores] == ["", *["only the first 77 tokens of the prompt were read"] * 2]
    assert scores[1].value == pytest.approx(scores[2].value, abs=of_critic(1.0))
    assert 0 < scores[0].value < 1
    (alone,) = critic.score([image], [Task(fits)])
    assert alone.value == pytest.approx(scores[0].value, abs=of_critic(1.0))


def test_bfloat16_gives_about_the_same(folder):
    images, prompts = pictures((28, 28), (50, 50)), ["a fox", "two birds"]
    exact = clip.Clip(str(folder), CPU).compare(images, prompts)
    half = clip.Clip(str(folder), ModelSettings(device="cpu", dtype="bfloat16")).compare(images, prompts)
    assert [near.cosine for near in half] == pytest.approx([near.cosine for near in exact], abs=0.05)


def only_a_pickle(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def without_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (only_a_pickle, "has no weights as safetensors"),
        (without_a_weight, r"is no complete CLIPModel: visual_projection.weight"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (
            lambda folder: (folder / "preprocessor_config.json").unlink(),
            "CLIPImageProcessorPil cannot read",
        ),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "AutoTokenizer cannot read the files of copy "),
        (lambda folder: (folder / "config.json").write_text(json.dumps({"model_type": "clip"})), "cannot be loaded"),
    ],
)
def test_broken_checkpoints_are_refused_in_one_sentence(folder, tmp_path, spoil, message):
    copy = shutil.copytree(folder, tmp_path / "copy")
    spoil(copy)
    with pytest.raises(UserError, match=message) as caught:
        naming.make(f"clip,model={copy}", None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("model=nowhere", "neither a folder nor a hub id"),
        ("low=0.4", "must be less than 'high'"),
        ("low=2", "must be a number from -1 to 1"),
        ("modle=x", "Did you mean 'model'"),
        ("dtype=int8", "Unknown dtype"),
        ("device=tpu", "Unknown device"),
        ("batch=0", "from 1 to 1024"),
    ],
)
def test_wrong_settings(folder, settings, message):
    given = settings if settings.startswith("model=") else f"model={folder},{settings}"
    with pytest.raises(UserError, match=message):
        naming.make(f"clip,{given}", None)


def test_a_model_that_is_nowhere(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="some-owner/some-clip is not on this machine"):
        naming.make("clip,model=some-owner/some-clip", None)
