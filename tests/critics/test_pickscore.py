import math

import pytest
import torch
from tiny_models import pictures, tiny_clip
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from milr.critics import naming, pickscore
from milr.drafts import Task, UserError
from rounding import of_critic


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Weights alone, as PickScore's repository has them, and the other repository with all that they need."""
    weights, words = (tiny_clip(tmp_path_factory.mktemp(name)) for name in ("weights", "words"))
    for file in weights.glob("*token*"):
        file.unlink()
    (weights / "preprocessor_config.json").unlink()
    return weights, words


@pytest.mark.parametrize(
    ("found", "score"),
    [(21, 0.5), (22, 1 / (1 + math.exp(-1))), (20, 1 - 1 / (1 + math.exp(-1))), (-5000, 0.0), (5000, 1.0)],
)
def test_worked_scores(found, score):
    assert pickscore.chance(found, 21, 1) == pytest.approx(score)
    assert pickscore.chance(3 * (found - 21), 0, 3) == pytest.approx(score)


def test_two_pictures_at_the_scores_of_a_and_b_have_the_odds_of_the_model():
    """With width 1: P(A over the centre) against P(B over the centre), in odds, is exp(A - B)."""
    odds = [pickscore.chance(found, 21, 1) / (1 - pickscore.chance(found, 21, 1)) for found in (22.5, 20.9)]
    assert odds[0] / odds[1] == pytest.approx(math.exp(1.6))


def test_the_score_is_the_logistic_of_the_published_formula(folders):
    weights, words = folders
    text = f"pickscore,model={weights},processor={words},device=cpu,centre=5,width=30"
    images, prompts = pictures((28, 28), (64, 40)), ["a fox", "two red birds"]
    scores = naming.make(text, None).score(images, [Task(prompt) for prompt in prompts])
    model, tokenizer = CLIPModel.from_pretrained(weights), AutoTokenizer.from_pretrained(words)
    prepare = CLIPImageProcessorPil.from_pretrained(words)
    for image, prompt, score in zip(images, prompts, scores, strict=True):
        with torch.no_grad():
            seen = model.get_image_features(**prepare(image, return_tensors="pt")).pooler_output[0]
            meant = model.get_text_features(**tokenizer([prompt], return_tensors="pt")).pooler_output[0]
            found = float(model.logit_scale.exp() * (seen / seen.norm()) @ (meant / meant.norm()))
        assert score.value == pytest.approx(1 / (1 + math.exp(-(found - 5) / 30)), abs=of_critic(1.0))
    assert abs(scores[0].value - scores[1].value) > 0.01


def test_only_the_small_files_of_the_other_repository_are_fetched(folders, monkeypatch):
    weights, words = folders
    fetched = []
    monkeypatch.setattr("milr.hub.fetch", lambda name, patterns: fetched.append((name, patterns)) or str(words))
    naming.make(f"pickscore,model={weights},device=cpu", None)
    assert fetched == [("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", ("*.json", "*.txt"))]


def test_weights_without_a_tokenizer_beside_them_need_the_other_repository(folders):
    weights, _ = folders
    with pytest.raises(UserError, match="cannot read the files of"):
        naming.make(f"pickscore,model={weights},processor={weights},device=cpu", None)
    with pytest.raises(UserError, match="neither a folder nor a hub id"):
        naming.make(f"pickscore,model={weights},processor=words", None)
