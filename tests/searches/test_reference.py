"""The shipped search against tests/reference.py: same tokens, rewards and latents, on true Janus checkpoints."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import reference
from milr import lab
from milr.backbones.janus import JanusBackbone, load_janus
from milr.backbones.sampling import uniforms
from milr.drafts import Drawn, Latents, Score, Task
from milr.searches.driver import draft_stream, drive, search_rng
from milr.searches.latent import Milr, milr
from rounding import assert_tied_where_they_part, of_model

STEPS = 5
LAB_WEIGHTS = Path(lab.__file__).parent / "weights"

VARIANTS = get_args(get_type_hints(Milr)["variant"])
PAPER = {name: Milr(variant=name, text_ratio=0.25, image_ratio=0.2, reward_offset=-0.7) for name in VARIANTS}
CASES = {
    **PAPER,
    "as printed": Milr(),
    "official": Milr(
        reward_offset=-1.0, credit="arg-max", rounding="down", returned="last", text_ratio=0.3, image_ratio=0.1
    ),
    "sampled rest": Milr(text_rest="sampled", reward_offset=-1.0),
    "mean baseline": Milr(text_rest="sampled", baseline="mean"),
    "long steps": Milr(learning_rate=0.5, reward_offset=-1.0, text_ratio=1.0, image_ratio=1.0),
}


class Brightness:
    """A reward that any change of the picture changes, spread over (0, 1)."""

    name = "brightness"

    def score(self, images: Sequence[Image.Image], tasks: Sequence[Task]) -> list[Score]:
        return [Score(brightness(image)) for image in images]


def brightness(image: Image.Image) -> float:
    return zlib.crc32(np.asarray(image).tobytes()) % 1000 / 1001


def naive(directory: Path, backbone: JanusBackbone) -> reference.NaiveJanus:
    return reference.NaiveJanus(
        directory,
        reasoning=backbone.prompts.reasoning,
        drawing=backbone.prompts.drawing,
        undrawn=lambda ids: backbone.prompts.undrawn(ids),
        spell=lambda tokens: backbone.prompts.text(tokens).strip(),
        end=backbone.text_end(),
        longest_text=backbone.max_text_tokens,
        guidance=backbone.info.guidance,
    )


def compare(
    backbone: JanusBackbone, slow: reference.NaiveJanus, settings: Milr, prompt: str, seed: int, count: int = STEPS
) -> Any:
    """Run both searches for `count` steps and hold them against each other, draft by draft."""
    task = Task(prompt, id="7")
    seen: list[Latents] = []

    def watched(problem: Any, chosen: Milr) -> Any:
        return milr(problem, chosen, watch=seen.append)

    (fast,) = drive(backbone, Brightness(), [task], watched, settings, budget=count + 1, seed=seed, threshold=2.0)

    def numbers(stage: int, count: int) -> Any:
        return lambda draft: uniforms(draft_stream(seed, task.id, 0, draft), stage, count)

    steps = reference.search(
        slow,
        prompt,
        brightness,
        steps=count,
        variant=settings.variant,
        text_ratio=settings.text_ratio,
        image_ratio=settings.image_ratio,
        learning_rate=settings.learning_rate,
        offset=settings.reward_offset,
        credits_most_probable=settings.credit == "arg-max",
        rounds_down=settings.rounding == "down",
        samples_rest_of_text=settings.text_rest == "sampled",
        mean_baseline=settings.baseline == "mean",
        text_numbers=numbers(0, backbone.max_text_tokens),
        image_numbers=numbers(1, backbone.info.image_tokens),
        prefix_rng=search_rng(seed, task.id, 0),
    )
    assert len(fast.drafts) == len(seen) == len(steps) == count + 1
    for draft, latents, step in zip(fast.drafts, seen, steps, strict=True):
        if settings.variant != "image-only":
            assert_same(backbone, latents.text, step.text_latents, settings.learning_rate)
        if settings.variant != "text-only":
            assert_same(backbone, latents.image, step.image_latents, settings.learning_rate)
        if not same_tokens(backbone, draft.drawn, latents, step):
            break  # a tie went the other way on this machine: from here on the two rightly search on apart
        assert draft.reward == step.reward
    return steps


def same_tokens(backbone: JanusBackbone, drawn: Drawn, latents: Latents, step: reference.Step) -> bool:
    """Whether both drew the same. Where not, the first token that differs must have been a tie (rounding.py)."""

    def image_logits(latents: torch.Tensor) -> torch.Tensor:
        return backbone.image_logits(latents, drawn.guidance)

    for ours, theirs, margins, searched, reference_of, logits, guidance in (
        (drawn.text_tokens, step.text, step.text_margins, latents.text, step.text_latents, backbone.text_logits, 1.0),
        (
            drawn.image_tokens,
            step.image,
            step.image_margins,
            latents.image,
            step.image_latents,
            image_logits,
            drawn.guidance,
        ),
    ):
        if list(ours) != theirs:
            with torch.no_grad():
                plain = logits(reference_of)
                apart = float((logits(searched) - plain).abs().max()) if len(searched) else 0.0  # as the latents are
            bound = apart + of_model(backbone, plain, guidance)
            assert_tied_where_they_part(ours, theirs, [margin < bound for margin in margins])
            return False
    return True


def assert_same(backbone: JanusBackbone, shipped: torch.Tensor, plain: torch.Tensor, learning_rate: float) -> None:
    """Equal but for rounding, and for the few elements where the gradient itself is of the size of its rounding.

    There (a token of probability 0.9999...) Adam divides noise by its own size, whoever computes it; such an
    element may differ by a small part of a step. A wrong update moves nearly all elements by whole steps.
    """
    difference = (shipped - plain).abs()
    assert shipped.shape == plain.shape
    assert (difference <= of_model(backbone, plain) * max(1.0, learning_rate / 0.03)).double().mean() >= 0.99
    assert difference.max() <= 0.03 * learning_rate + of_model(backbone, plain)


@pytest.fixture(scope="module")
def tiny_naive(tiny_checkpoint: Path, tiny_backbone: JanusBackbone) -> reference.NaiveJanus:
    return naive(tiny_checkpoint, tiny_backbone)


@pytest.mark.parametrize("case", CASES)
def test_a_tiny_janus_is_searched_as_the_paper_says(
    tiny_backbone: JanusBackbone, tiny_naive: reference.NaiveJanus, case: str
) -> None:
    steps = compare(tiny_backbone, tiny_naive, CASES[case], "two red foxes above a blue car", seed=3)
    assert len(steps[0].text) > 3  # there is something to search
    assert len({tuple(step.image) for step in steps}) == STEPS + 1
    if case == "long steps":
        assert len({tuple(step.text) for step in steps}) > 2  # the text was really searched


@pytest.mark.skipif(not LAB_WEIGHTS.is_dir(), reason="the lab model's weights are not there yet")
@pytest.mark.parametrize(
    "variant",
    # Every variant is compared on tiny checkpoints above; here one will do, and the others run with the slow tests.
    [v if v == "joint" else pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS],
)
def test_the_lab_model_is_searched_as_the_paper_says(variant: str) -> None:
    backbone = load_janus("lab", device="cpu", dtype="float32")
    count = 3 if variant == "joint" else STEPS
    compare(backbone, naive(LAB_WEIGHTS, backbone), PAPER[variant], "two red foxes above a blue car", 1, count)


def test_the_reference_really_steps() -> None:
    """Against a slip that would make both sides agree on nothing: an Adam step by hand."""
    z = torch.ones(2, requires_grad=True)
    adam = torch.optim.Adam([z], lr=0.5)
    z.grad = torch.tensor([3.0, -0.1])
    adam.step()
    assert_close(z.detach(), torch.tensor([0.5, 1.5]))
