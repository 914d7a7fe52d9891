"""MILR: search the latents behind a draft by policy gradient (arXiv 2509.22761). The whole method, top to bottom.

    z^0       latents of a first draft: the final hidden states behind its first lambda_t T text and lambda_v V image
              tokens. They are the inputs of the heads, so p(t, v | z) = prod softmax(head(z_i)), position by position.
    (t, v)    a draft whose first tokens come from the current z and whose rest the model continues; R its reward.
    z <- z + eta R grad_z log p(t, v | z)      with Adam, one sample a step; with `width` the mean over so many.

The latents are taken once, from the first draft, and persist: later drafts are other texts of other lengths,
but the number of searched positions stays. Text and image latents enter log p in separate terms, so the joint
update is two updates with the same reward. The classifier-free guidance of image logits is part of p: both
halves are searched.

This file knows neither model nor critic; budget, stopping and keeping the best are the driver's.
`docs/method.md` sets the paper, the authors' code and our options side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from milr.backbones.policies import Policy
from milr.drafts import Ask, Choice, Draft, Drawn, Forced, Greedy, Latents, Sample, reaches
from milr.searches.base import WIDEST, LooksAtBudget, Problem, Search
from milr.settings import check, setting

NAME = "milr"
SUMMARY = "MILR: policy gradient on the latents of the first text and image tokens (arXiv 2509.22761)"


@dataclass(frozen=True)
class Milr:
    """Settings of `milr`. The defaults are the paper's."""

    variant: Literal["joint", "alternate", "text-then-image", "text-only", "image-only"] = setting(
        "joint",
        "which latents a step moves: both, text and image in turn, text in the first half, or only one kind",
    )
    text_ratio: float = setting(0.2, "share of text tokens searched, lambda_t (paper: 0.2)", low=0, high=1)
    image_ratio: float = setting(0.02, "share of image tokens searched, lambda_v (paper: 0.02)", low=0, high=1)
    ratio_of: Literal["tokens", "entropy"] = setting(
        "tokens",
        "what the ratios are shares of: tokens (paper), or entropy: the shortest prefix that holds this share of all "
        "that the model was unsure of, so that each prompt has ratios of its own",
    )
    learning_rate: float = setting(0.03, "step size of Adam, eta (paper: 0.03)", low=0, high=100)
    reward_offset: float = setting(
        0.0,
        "added to rewards in [0, 1] before a step (formula: 0; the authors' rewards amount to -1)",
        low=-10,
        high=10,
    )
    baseline: Literal["none", "mean"] = setting(
        "none",
        "what a reward is measured against (paper: nothing), or the mean of the rewards before it, counted from 1",
    )
    credit: Literal["drawn", "arg-max"] = setting(
        "drawn",
        "whose log p a step moves: the tokens that drew the scored image, or the most probable ones",
    )
    text_prefix: Literal["arg-max", "sampled"] = setting(
        "arg-max", "how updated text latents become tokens (authors' code: arg-max)"
    )
    image_prefix: Literal["sampled", "arg-max"] = setting(
        "sampled", "how updated image latents become tokens (authors' code: sampled)"
    )
    text_rest: Literal["greedy", "sampled"] = setting(
        "greedy",
        "how the text goes on after the searched prefix (authors' code: greedy; sampled repairs the method)",
    )
    text_temperature: float = setting(1.0, "softmax temperature of sampled text", low=0.01, high=10)
    image_temperature: float = setting(1.0, "softmax temperature of the image tokens (paper: 1)", low=0.01, high=10)
    rounding: Literal["up", "down"] = setting(
        "up",
        "of ratio x length: up, or down as in the authors' code (but at least 1, where it gives up)",
    )
    returned: Literal["best", "last"] = setting("best", "the draft handed to the user (authors' code: the last)")
    stop_above: float | None = setting(
        None,
        "also stop when a reward exceeds this (authors' code: 0.9, that is -0.1 after their shift)",
        low=0,
        high=1,
    )
    width: int = setting(
        1, "samples of a step after the first, drawn and judged together (paper: 1)", low=1, high=WIDEST
    )

    def __post_init__(self) -> None:
        check(self)


def milr(problem: Problem, settings: Milr, watch: Callable[[Latents], None] | None = None) -> Search:
    """z <- z + eta (R + offset) grad_z log p(t, v | z), one draft a step, or the mean over `width` drafts of it.

    A draft that the critic could not score moves nothing; the search draws again from where it stands.
    `watch` is shown z before the first step and after every step.
    """
    image_rest = Sample(settings.image_temperature)
    text_rest = Greedy() if settings.text_rest == "greedy" else Sample(settings.text_temperature)

    # z^0: the latents behind the first tokens of a greedy text and a sampled image.
    whole = settings.ratio_of == "entropy"  # then all latents are needed to see where the model was unsure
    first: Draft = yield Ask(
        text=Greedy(),
        image=image_rest,
        text_ratio=0.0 if settings.variant == "image-only" else 1.0 if whole else settings.text_ratio,
        image_ratio=0.0 if settings.variant == "text-only" else 1.0 if whole else settings.image_ratio,
    )
    z = _start(first.drawn, problem, settings)
    if watch is not None:
        watch(_snapshot(z))

    # A greedy rest follows from its prefix: written once and then forced, so that it is charged once.
    prefix = first.drawn.text_tokens[: z["text"].length] if "text" in z else ()
    written = {prefix: problem.text.drew(first)}
    keeps_text = "text" not in z or settings.text_rest == "greedy"
    step, rewards, drafts = 0, [1.0], [first]
    while drafts[-1].number + 1 < problem.budget and not any(_is_solved(one, problem, settings) for one in drafts):
        note: dict[str, Any] = {f"{kind}_searched": latents.length for kind, latents in z.items()}
        moving: dict[str, Any] = {}  # what the step did, for the record of the first draft that follows it

        # z <- z + eta (R + offset) grad_z log p(t, v | z)
        scored = [(draft, draft.reward) for draft in drafts if draft.reward is not None]
        if scored:
            advantages = [reward + settings.reward_offset for _, reward in scored]
            if settings.baseline == "mean":  # one baseline for all samples of a step: they were drawn from the same z
                advantages = [advantage - sum(rewards) / len(rewards) for advantage in advantages]
            rewards += [reward for _, reward in scored]
            moved = [kind for kind in _moved(settings, step, problem.budget) if kind in z]
            for kind in moved:
                tokens = [_credited(z[kind], draft, problem, settings) for draft, _ in scored]
                before = z[kind].last_gradient
                moving[f"{kind}_gradient"] = z[kind].move(advantages, tokens)
                moving[f"{kind}_cosine"] = _cosine(before, z[kind].last_gradient)
            pulls = [z[kind].last_gradient for kind in moved]
            widths = {pull.shape[-1] if pull.dim() > 1 else None for pull in pulls}
            if len(pulls) == 2 and len(widths) == 1:
                # One space: the mean pull on a text latent and on an image latent can be compared.
                moving["text_image_cosine"] = _cosine(*(pull.reshape(-1, pull.shape[-1]).mean(0) for pull in pulls))
            step += 1
        if watch is not None:
            watch(_snapshot(z))

        # The next drafts begin with tokens of the updated z; the model continues.
        prefixes, asks = [], []
        for number in range(settings.width):
            facts = note | (moving if number == 0 else {})
            if "text" in z:
                prefix = problem.text.choice(z["text"].drawn(settings.text_prefix, problem.rng), text_rest).tokens
            text = Forced(written.get(prefix, prefix) if keeps_text else prefix, then=text_rest)
            image: Choice = image_rest
            if "image" in z:
                values = z["image"].drawn(settings.image_prefix, problem.rng)
                image = z["image"].policy.choice(values, image_rest)
                facts["image_changed_tokens"] = _changed(values, z["image"].policy.drew(drafts[-1]))
            if "text" in z:
                facts["text_changed_tokens"] = _changed(prefix, drafts[-1].drawn.text_tokens)
            prefixes.append(prefix)
            asks.append(Ask(text=text, image=image, note=facts))
        drafts = yield asks
        written |= {
            prefix: problem.text.drew(draft)
            for prefix, draft in zip(prefixes, drafts, strict=False)  # the last round may be cut
        }
    if settings.returned == "last":
        return next((one.number for one in drafts if _is_solved(one, problem, settings)), drafts[-1].number)
    return None


class SearchedLatents:
    """The searched latents of one kind (z_t or z_v), what moves them (Adam), and how choices follow from them.

    float32 whatever the model's dtype: in bfloat16 most steps of 0.03 round to nothing.
    """

    def __init__(self, start: Tensor, policy: Policy, learning_rate: float) -> None:
        self.values = start.detach().clone().float().requires_grad_()
        self.policy = policy
        self.optimizer = policy.optimizer(self.values, learning_rate)
        self.last_gradient = torch.zeros_like(self.values)

    @property
    def length(self) -> int:
        """Number of searched positions."""
        return len(self.values)

    def move(self, advantages: Sequence[float], samples: Sequence[Sequence[Any]]) -> float | None:
        """z <- z + eta mean(A grad_z log p(values | z)) over the samples. Returns the norm of the mean grad_z log p.

        None: a gradient was not finite and the step left out; one such step would spoil Adam's averages.
        """
        gradients = torch.stack([self.score(values) for values in samples])
        self.last_gradient = gradients.mean(0)
        norm = float(self.last_gradient.norm())
        if not math.isfinite(norm):
            return None
        weights = gradients.new_tensor(advantages).reshape(-1, *[1] * self.values.dim())
        self.values.grad = -(weights * gradients).mean(0)  # optimizers descend
        self.optimizer.step()
        return norm

    def score(self, values: Sequence[Any]) -> Tensor:
        """grad_z log p(values | z), of the shape of z."""
        return self.policy.score(self.values, values)

    def drawn(self, how: Literal["arg-max", "sampled"], rng: np.random.Generator) -> tuple[Any, ...]:
        """One choice a position from p(. | z)."""
        return self.policy.values(self.values, how, rng)


def _start(drawn: Drawn, problem: Problem, settings: Milr) -> dict[str, SearchedLatents]:
    """z^0 by kind, 'text' before 'image'; a kind that is not searched is not there."""
    kinds: dict[str, tuple[Policy, float]] = {}
    if settings.variant != "image-only":
        kinds["text"] = problem.text, settings.text_ratio
    if settings.variant != "text-only":
        kinds["image"] = problem.image(drawn.guidance, settings.image_temperature), settings.image_ratio
    z = {}
    for kind, (policy, ratio) in kinds.items():
        start = policy.latents(drawn)
        if len(start) > 0:
            start = _prefix(start, policy, ratio, policy.count(drawn), settings)
        if len(start) > 0:
            z[kind] = SearchedLatents(start, policy, settings.learning_rate)
    return z


def _prefix(latents: Tensor, policy: Policy, ratio: float, length: int, settings: Milr) -> Tensor:
    """The latents that are searched: the first ratio * length choices, or the first that hold so much of the entropy.

    Backbones give the former rounded up; 'down' takes fewer. The authors' code gives up where that leaves none; the
    paper's method does not, so one is the least.
    """
    if settings.ratio_of == "entropy":
        held = policy.entropy(latents).cumsum(0)
        return latents[: int((held < ratio * held[-1]).sum()) + (ratio > 0)]
    return latents if settings.rounding == "up" else latents[: max(1, int(ratio * length))]


def _moved(settings: Milr, step: int, budget: int) -> tuple[str, ...]:
    """Which kinds step number `step` moves (from 0; there are as many as rounds of `width` drafts in the budget)."""
    if settings.variant == "alternate":
        return ("text",) if step % 2 == 0 else ("image",)
    if settings.variant == "text-then-image":
        return ("text",) if step * settings.width < budget // 2 else ("image",)
    return ("text", "image")


def _credited(latents: SearchedLatents, draft: Draft, problem: Problem, settings: Milr) -> tuple[Any, ...]:
    """The t or v whose log p(. | z) is moved: the choices that drew the scored image, or the most probable."""
    if settings.credit == "arg-max":
        return latents.drawn("arg-max", problem.rng)
    return latents.policy.drew(draft)[: latents.length]


def _is_solved(draft: Draft, problem: Problem, settings: Milr) -> bool:
    if draft.reward is None:
        return False
    is_above = settings.stop_above is not None and draft.reward > settings.stop_above
    return is_above or reaches(draft.reward, problem.threshold)


def _cosine(a: Tensor, b: Tensor) -> float | None:
    """Of two gradients; None where one is nothing, or not finite."""
    if not (torch.isfinite(a).all() and torch.isfinite(b).all() and a.any() and b.any()):
        return None
    return float(torch.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))


def _changed(values: Sequence[Any], before: Sequence[Any]) -> int:
    """How many of these first choices are others than in the draft before."""
    return sum(a != b for a, b in zip(values, before, strict=False))


def _snapshot(z: Mapping[str, SearchedLatents]) -> Latents:
    values = {kind: latents.values.detach().clone() for kind, latents in z.items()}
    return Latents(text=values.get("text", torch.empty(0)), image=values.get("image", torch.empty(0)))


def looks_at_budget(settings: Milr) -> LooksAtBudget:
    """Whether k drafts of a longer search are what a budget of k brings: 'text-then-image' turns at half the budget."""
    return "always" if settings.variant == "text-then-image" else ""


SETTINGS = Milr
PRESETS = {
    "paper": Milr(),
    "official": Milr(
        reward_offset=-1.0, credit="arg-max", rounding="down", returned="last", stop_above=0.9
    ),  # the authors' code at d71fd71, branch "both", with the paper's hyper-parameters
    "alternate": Milr(variant="alternate"),
    "text-then-image": Milr(variant="text-then-image"),
    "text-only": Milr(variant="text-only"),
    "image-only": Milr(variant="image-only"),
    "sampled-rest": Milr(reward_offset=-1.0, text_rest="sampled"),  # see "The sign decides" in docs/method.md
    "repaired": Milr(baseline="mean", text_rest="sampled", text_prefix="sampled"),  # the least that competes
}
search = milr
