"""MILR as slowly and plainly as it can be said: the specification that the shipped search is compared with.

One prompt, no cache, no batches; transformers' own modules and autograd, written from the paper (arXiv 2509.22761,
section 3). It shares with the package only the wording of the prompts and the random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import JanusForConditionalGeneration

Numbers = Sequence[float]
Picked = tuple[int, float]  # a token, and the margin by which it was chosen


@dataclass
class Step:
    """One draft and the latents that its first tokens came from."""

    text: list[int]
    image: list[int]
    reward: float
    text_latents: Tensor
    image_latents: Tensor
    text_margins: list[float]
    image_margins: list[float]


@dataclass
class NaiveJanus:
    """A Janus checkpoint and what its prompts are. `reasoning`, `drawing` and `undrawn` give prompt token ids."""

    directory: Path
    reasoning: Callable[[str], list[int]]
    drawing: Callable[[str, str], list[int]]
    undrawn: Callable[[list[int]], list[int]]
    spell: Callable[[list[int]], str]
    end: int
    longest_text: int
    guidance: float
    model: Any = field(init=False)

    def __post_init__(self) -> None:
        self.model = JanusForConditionalGeneration.from_pretrained(
            self.directory, dtype=torch.float32, attn_implementation="eager"
        )
        self.model.requires_grad_(False).eval()
        # Not slow, but the engine's layout: rewards of the tests see every rounding of a pixel.
        self.model.model.vqmodel.to(memory_format=torch.channels_last)
        self.image_tokens = int(self.model.config.vq_config.num_patches) ** 2

    def last_states(self, embeddings: Tensor) -> Tensor:
        """Final hidden states at the last position, [rows, D]: a full forward pass each time."""
        output = self.model.model.language_model(inputs_embeds=embeddings, use_cache=False)
        return output.last_hidden_state[:, -1]  # type: ignore[no-any-return]

    def text_state(self, prompt: str, before: list[int]) -> Tensor:
        """The latent behind the text token that follows `before`."""
        embed = self.model.get_input_embeddings()
        return self.last_states(embed(torch.tensor([self.reasoning(prompt) + before])))[0]

    def text_logits(self, latent: Tensor) -> Tensor:
        return self.model.lm_head(latent)  # type: ignore[no-any-return]

    def image_state(self, prompt: str, text: list[int], before: list[int]) -> Tensor:
        """The latents behind the image token that follows `before`, [2, D]: conditional, unconditional."""
        conditional = self.drawing(prompt, self.spell(text))
        ids = torch.tensor([conditional, conditional if self.guidance == 1 else self.undrawn(conditional)])
        embeddings = self.model.get_input_embeddings()(ids)
        if before:
            drawn = self.model.prepare_embeddings_for_image_generation(torch.tensor([before, before]))
            embeddings = torch.cat([embeddings, drawn], dim=1)
        return self.last_states(embeddings)

    def image_logits(self, latents: Tensor) -> Tensor:
        conditional, unconditional = self.model.model.generation_head(latents)
        return unconditional + self.guidance * (conditional - unconditional)  # type: ignore[no-any-return]

    @torch.no_grad()
    def write(
        self, prompt: str, start: list[Picked], sampled_with: Numbers | None
    ) -> tuple[list[int], list[Tensor], list[float]]:
        """A text that begins with `start`, end token included if it came; for each token its latent and its margin."""
        text: list[int] = []
        states, margins = [], []
        while len(text) < self.longest_text and self.end not in text:
            states.append(self.text_state(prompt, text))
            at = len(text)
            number = None if sampled_with is None else sampled_with[at]
            token, margin = start[at] if at < len(start) else pick(self.text_logits(states[-1]), number)
            text.append(token)
            margins.append(margin)
        return text, states, margins

    @torch.no_grad()
    def paint(
        self, prompt: str, text: list[int], start: list[Picked], numbers: Numbers
    ) -> tuple[list[int], list[Tensor], list[float]]:
        """The image tokens that begin with `start`; for each its latents and its margin."""
        image: list[int] = []
        states, margins = [], []
        while len(image) < self.image_tokens:
            states.append(self.image_state(prompt, text, image))
            at = len(image)
            token, margin = start[at] if at < len(start) else pick(self.image_logits(states[-1]), numbers[at])
            image.append(token)
            margins.append(margin)
        return image, states, margins

    @torch.no_grad()
    def show(self, image: list[int]) -> Image.Image:
        pixels = (self.model.decode_image_tokens(torch.tensor([image]))[0] + 1) / 2 * 255
        return Image.fromarray(pixels.round().clamp(0, 255).numpy().astype(np.uint8))


def pick(logits: Tensor, number: float | None) -> Picked:
    """The most probable token, or the one where the cumulative probability passes `number`; and by which margin: how
    far all logits may move before it could be another."""
    if number is None:
        best, second = logits.topk(2).values.tolist()
        return int(logits.argmax()), (best - second) / 2
    total, nearest, chosen = 0.0, 1.0, -1
    probabilities = torch.softmax(logits, -1).tolist()
    for token, probability in enumerate(probabilities):
        total += probability
        nearest = min(nearest, abs(total - number))
        if total > number and chosen < 0:
            chosen = token
    return (chosen if chosen >= 0 else len(probabilities) - 1), nearest


def search(
    janus: NaiveJanus,
    prompt: str,
    reward_of: Callable[[Image.Image], float],
    *,
    steps: int,
    variant: str,
    text_ratio: float,
    image_ratio: float,
    learning_rate: float,
    offset: float,
    credits_most_probable: bool,
    rounds_down: bool,
    samples_rest_of_text: bool,
    mean_baseline: bool,
    text_numbers: Callable[[int], Numbers],
    image_numbers: Callable[[int], Numbers],
    prefix_rng: np.random.Generator,
) -> list[Step]:
    """z <- z + lr (R + offset) grad log p(t, v | z) for `steps` steps; `*_numbers(draft)` are uniform numbers."""
    # z0: the latents of a first draft.
    text, text_states, text_margins = janus.write(prompt, [], None)
    words = [token for token in text if token != janus.end]
    image, image_states, image_margins = janus.paint(prompt, words, [], image_numbers(0))
    reward = reward_of(janus.show(image))
    rewards = [1.0]

    def count(ratio: float, length: int) -> int:
        return max(1, int(ratio * length)) if rounds_down else math.ceil(ratio * length)

    z_text = torch.stack(text_states[: count(text_ratio, len(words))]).requires_grad_()
    z_image = torch.stack(image_states[: count(image_ratio, len(image))]).requires_grad_()
    adam_text = torch.optim.Adam([z_text], lr=learning_rate)
    adam_image = torch.optim.Adam([z_image], lr=learning_rate)

    def snapshot() -> Step:
        latents = z_text.detach().clone(), z_image.detach().clone()
        return Step(list(words), list(image), reward, *latents, text_margins, image_margins)

    history = [snapshot()]
    for step in range(steps):
        moves_text, moves_image = {
            "joint": (True, True),
            "alternate": (step % 2 == 0, step % 2 == 1),
            "text-then-image": (step < (steps + 1) // 2, step >= (steps + 1) // 2),
            "text-only": (True, False),
            "image-only": (False, True),
        }[variant]

        log_p = torch.zeros(())
        for position, latent in enumerate(z_text):
            if position < len(text) and moves_text:
                logits = janus.text_logits(latent)
                token = int(logits.argmax()) if credits_most_probable else text[position]
                log_p = log_p + torch.log_softmax(logits.double(), -1)[token]
        for position, latents in enumerate(z_image):
            if moves_image:
                logits = janus.image_logits(latents)
                token = int(logits.argmax()) if credits_most_probable else image[position]
                log_p = log_p + torch.log_softmax(logits.double(), -1)[token]
        adam_text.zero_grad()
        adam_image.zero_grad()
        before = sum(rewards) / len(rewards) if mean_baseline else 0.0
        rewards.append(reward)
        torch.autograd.backward(-(reward + offset - before) * log_p)
        if moves_text:
            adam_text.step()
        if moves_image:
            adam_image.step()

        # The next draft: its first tokens from z, the rest from the model.
        text_start = [pick(janus.text_logits(latent), None) for latent in z_text]
        if variant == "image-only":
            text_start = [(token, math.inf) for token in text]
        text, _, text_margins = janus.write(
            prompt, text_start, text_numbers(step + 1) if samples_rest_of_text else None
        )
        words = [token for token in text if token != janus.end]
        image_start: list[Picked] = []
        if variant != "text-only":
            image_start = [pick(janus.image_logits(latents), prefix_rng.random()) for latents in z_image]
        image, _, image_margins = janus.paint(prompt, words, image_start, image_numbers(step + 1))
        reward = reward_of(janus.show(image))
        history.append(snapshot())
    return history
