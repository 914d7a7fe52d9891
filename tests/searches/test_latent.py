"""MILR: the gradient, the update rule, and what each setting does. The whole search is compared with a naive
implementation on a true Janus in test_reference.py."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from toy import DIM, END, VOCAB, CountingCritic, Toy, match, tasks

from milr.backbones.policies import ImageTokens
from milr.drafts import Forced, Latents, Sample, Task, Trajectory
from milr.searches.driver import drive
from milr.searches.latent import PRESETS, Milr, SearchedLatents, milr

Judge = Callable[[tuple[int, ...], Task], float | None]


def run(
    settings: Milr, judge: Judge = match, backbone: Toy | None = None, **options: Any
) -> tuple[Trajectory, list[Latents]]:
    """One search, and z before the first and after every step."""
    seen: list[Latents] = []

    def watched(problem: Any, settings: Milr) -> Any:
        return milr(problem, settings, watch=seen.append)

    critic = CountingCritic(judge)
    (trajectory,) = drive(backbone or Toy(), critic, tasks(), watched, settings, **{"budget": 8, **options})
    return trajectory, seen


# --- The gradient -------------------------------------------------------------------------------------------


def head(seed: int = 0) -> Callable[[Tensor], Tensor]:
    weight = torch.randn(VOCAB, DIM, generator=torch.Generator().manual_seed(seed))
    return lambda latents: latents @ weight.T


def start(length: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(length, DIM, generator=torch.Generator().manual_seed(seed))


def searched_by(latents: Tensor, logits: Callable[[Tensor], Tensor], learning_rate: float) -> SearchedLatents:
    return SearchedLatents(latents, ImageTokens(logits), learning_rate)


def test_the_gradient_is_that_of_the_softmax_by_hand() -> None:
    # For logits W z: grad log p(t) = W^T (onehot(t) - p), worked out by hand.
    latents, logits = start(), head()
    weight = logits(torch.eye(DIM)).T
    tokens = (5, 0, 7)
    expected = (torch.eye(VOCAB)[list(tokens)] - torch.softmax(logits(latents), -1)) @ weight
    assert_close(searched_by(latents, logits, 0.1).score(tokens), expected)


def test_the_gradient_is_that_of_autograd_for_a_deep_head() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(DIM, 16), torch.nn.GELU(), torch.nn.Linear(16, VOCAB)).double()
    latents = start().double().requires_grad_()
    log_prob = sum(torch.log_softmax(net(latents)[i], -1)[t] for i, t in enumerate((3, 3, 1)))
    log_prob.backward()  # type: ignore[union-attr]
    ours = searched_by(latents, net.float(), 0.1).score((3, 3, 1))
    assert latents.grad is not None
    assert_close(ours, latents.grad.float())


def test_a_text_that_ended_early_credits_its_own_tokens_only() -> None:
    gradient = searched_by(start(), head(), 0.1).score((2, END))
    assert gradient[:2].abs().min() > 0
    assert gradient[2].abs().max() == 0


@pytest.mark.parametrize("kind", ["text", "image"])
def test_the_estimate_is_unbiased_against_the_exact_policy_gradient(kind: str) -> None:
    """Vocabulary 8, length 3: all 512 outcomes give grad E[R]; the mean of 10,000 sampled steps agrees."""
    toy = Toy(sharpness=0.5)
    logits = toy.text_logits if kind == "text" else lambda z: toy.image_logits(z, 2.0)
    shape = (3, DIM) if kind == "text" else (3, 2, DIM)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    share = torch.linspace(0, 1 / 3, VOCAB)  # each token adds its share, the first two interact
    rewards = share[:, None, None] + share[:, None] + share
    rewards = rewards * torch.rand(VOCAB, VOCAB, 1, generator=torch.Generator().manual_seed(2))
    outcomes = list(itertools.product(range(VOCAB), repeat=3))

    z = latents.clone().requires_grad_()
    probs = torch.softmax(logits(z), -1)
    expectation = torch.einsum("a,b,c,abc->", probs[0], probs[1], probs[2], rewards)
    (exact,) = torch.autograd.grad(expectation, z)

    searched, rng = searched_by(latents, logits, 0.1), np.random.default_rng(3)
    step = {outcome: float(rewards[outcome]) * searched.score(outcome) for outcome in outcomes}
    samples = torch.stack([step[searched.drawn("sampled", rng)] for _ in range(10_000)])
    error = samples.std(dim=0) / 100
    assert (exact.abs() / error).max() > 10  # else the test could not fail
    assert ((samples.mean(dim=0) - exact).abs() < 3 * error).all()


def test_tokens_are_sampled_from_the_softmax() -> None:
    searched, rng = searched_by(start(1), head(), 0.1), np.random.default_rng(0)
    drawn = [searched.drawn("sampled", rng)[0] for _ in range(10_000)]
    counts = np.bincount(drawn, minlength=VOCAB)
    expected = torch.softmax(head()(searched.values)[0], -1).detach().numpy() * 10_000
    assert ((counts - expected) ** 2 / expected).sum() < 24.3  # chi-squared, 7 degrees of freedom, p = .001


# --- The update ---------------------------------------------------------------------------------------------


def test_a_first_step_is_adams_by_hand() -> None:
    # Adam's first step is lr * g / (|g| + eps), whatever the scale of g (Kingma & Ba 2015, algorithm 1).
    searched = searched_by(start(), head(), 0.03)
    gradient = searched.score((1, 2, 3))
    assert_close(searched.move([0.25], [(1, 2, 3)]), float(gradient.norm()))
    assert_close(searched.values.detach(), start() + 0.03 * gradient.sign(), atol=1e-5, rtol=0)
    pushed = searched_by(start(), head(), 0.03)
    pushed.move([-0.25], [(1, 2, 3)])
    assert_close(pushed.values.detach(), start() - 0.03 * gradient.sign(), atol=1e-5, rtol=0)


def test_a_gradient_that_is_not_finite_moves_nothing_and_leaves_adam_clean() -> None:
    broken = False

    def logits(latents: Tensor) -> Tensor:
        return head()(latents) * (float("nan") if broken else 1.0)

    searched, clean = searched_by(start(), logits, 0.03), searched_by(start(), logits, 0.03)
    searched.move([-1], [(1, 2, 3)])
    broken = True
    assert searched.move([-1], [(1, 2, 3)]) is None
    broken = False
    searched.move([-1], [(1, 2, 3)])
    for _ in range(2):
        clean.move([-1], [(1, 2, 3)])
    assert_close(searched.values, clean.values, atol=0, rtol=0)


def test_latents_are_searched_in_float32() -> None:
    assert searched_by(start().bfloat16(), head(), 0.1).values.dtype == torch.float32


@pytest.mark.parametrize("preset", PRESETS)
def test_step_size_zero_changes_neither_latents_nor_text(preset: str) -> None:
    settings = replace(PRESETS[preset], learning_rate=0.0, text_rest="greedy", text_prefix="arg-max")
    trajectory, seen = run(settings, budget=12)
    assert len({draft.drawn.text_tokens for draft in trajectory.drafts}) == 1
    assert len(seen) == 12
    for latents in seen:
        assert_close(latents.text, seen[0].text, atol=0, rtol=0)
        assert_close(latents.image, seen[0].image, atol=0, rtol=0)


def test_with_rewards_of_at_least_zero_arg_max_text_never_changes() -> None:
    """R >= 0 only pulls up what is most probable already: the formula as printed is a best-of-N."""
    searched = 0
    for seed in range(30):
        trajectory, seen = run(PRESETS["paper"], backbone=Toy(seed), seed=seed, budget=20)
        assert len({draft.drawn.text_tokens for draft in trajectory.drafts}) == 1
        searched += bool((seen[-1].text - seen[0].text).abs().sum() > 0.1)
    assert searched > 20  # the latents did move (some toys write nothing, or are rewarded never)


def test_an_offset_of_minus_one_can_change_the_text() -> None:
    texts = [
        {d.drawn.text_tokens for d in run(replace(Milr(), reward_offset=-1.0), backbone=Toy(s))[0].drafts}
        for s in range(6)
    ]
    assert max(map(len, texts)) > 1


def test_a_shifted_reward_with_a_shifted_offset_gives_the_same_search() -> None:
    low, seen_low = run(replace(Milr(), reward_offset=-0.5), judge=lambda t, task: match(t, task) / 2)
    high, seen_high = run(replace(Milr(), reward_offset=-1.0), judge=lambda t, task: match(t, task) / 2 + 0.5)
    for one, other in zip(seen_low, seen_high, strict=True):
        assert_close(one.text, other.text)
        assert_close(one.image, other.image)
    tokens = [[d.drawn.image_tokens for d in trajectory.drafts] for trajectory in (low, high)]
    assert tokens[0] == tokens[1]


# --- What the settings do -----------------------------------------------------------------------------------


def moved(seen: Sequence[Latents]) -> tuple[list[bool], list[bool]]:
    pairs = list(itertools.pairwise(seen))
    return (
        [not torch.equal(one.text, other.text) for one, other in pairs],
        [not torch.equal(one.image, other.image) for one, other in pairs],
    )


@pytest.mark.parametrize(
    ("variant", "text", "image"),
    [
        ("joint", [True] * 7, [True] * 7),
        ("alternate", [True, False] * 3 + [True], [False, True] * 3 + [False]),
        ("text-then-image", [True] * 4 + [False] * 3, [False] * 4 + [True] * 3),
        ("text-only", [True] * 7, [False] * 7),
        ("image-only", [False] * 7, [True] * 7),
    ],
)
def test_variants_move_what_they_say(variant: Any, text: list[bool], image: list[bool]) -> None:
    trajectory, seen = run(replace(Milr(), variant=variant, reward_offset=-1.0))
    assert moved(seen) == (text, image)
    for draft, text_moved, image_moved in zip(trajectory.drafts[1:], text, image, strict=True):
        assert ("text_gradient" in draft.ask.note, "image_gradient" in draft.ask.note) == (
            text_moved,
            image_moved,
        )
        if variant == "text-only":
            assert draft.ask.image == Sample()
        if variant == "image-only":
            assert draft.drawn.text_tokens == trajectory.drafts[0].drawn.text_tokens
            assert draft.drawn.cost.text_tokens == 0  # the text is kept, not written again


def test_a_draft_without_a_score_moves_nothing_and_is_drawn_again() -> None:
    values = iter([0.1, None, 0.2, None, None, 0.3, 0.1, 0.1])
    settings = replace(Milr(), variant="alternate", reward_offset=-1.0)
    trajectory, seen = run(settings, judge=lambda tokens, task: next(values))
    text, image = moved(seen)
    assert text == [True, False, False, False, False, True, False]
    assert image == [False, False, True, False, False, False, True]
    assert len({d.drawn.image_tokens for d in trajectory.drafts}) == 8  # the prefix or the rest is drawn afresh


def first_text(toy: Toy) -> tuple[int, ...]:
    return run(Milr(), backbone=toy, budget=1)[0].drafts[0].drawn.text_tokens


@pytest.mark.parametrize(
    ("rounding", "text_ratio", "image_ratio", "text", "image"),
    [("up", 0.3, 0.3, 4, 3), ("down", 0.3, 0.3, 3, 2), ("down", 0.01, 0.01, 1, 1), ("up", 1.0, 1.0, 11, 9)],
)
def test_ratios_are_rounded_as_the_preset_says(
    rounding: Any, text_ratio: float, image_ratio: float, text: int, image: int
) -> None:
    toys = map(Toy, range(500))
    backbone = next(toy for toy in toys if len(first_text(toy)) == 11)
    settings = Milr(rounding=rounding, text_ratio=text_ratio, image_ratio=image_ratio)
    trajectory, seen = run(settings, backbone=backbone, budget=2)
    assert (len(seen[0].text), len(seen[0].image)) == (text, image)
    note = trajectory.drafts[1].ask.note
    assert (note["text_searched"], note["image_searched"]) == (text, image)
    image_ask = trajectory.drafts[1].ask.image
    assert isinstance(image_ask, Forced)
    assert len(image_ask.tokens) == image


def test_ratios_of_entropy_take_the_shortest_prefix_that_holds_the_share() -> None:
    from milr.searches.latent import _prefix

    sure, unsure = [9.0, 0.0], [0.0, 0.0]  # entropies of about 0 and of log 2
    latents = torch.tensor([sure, unsure, sure, unsure, sure])

    def searched(ratio: float) -> int:
        return len(_prefix(latents, ImageTokens(lambda values: values), ratio, 5, Milr(ratio_of="entropy")))

    assert [searched(ratio) for ratio in (0.0, 0.3, 0.6, 0.9, 1.0)] == [0, 2, 4, 4, 5]


def test_ratios_of_entropy_differ_from_prompt_to_prompt() -> None:
    settings = Milr(ratio_of="entropy", text_ratio=0.5)
    lengths = {len(run(settings, backbone=Toy(seed), budget=2)[1][0].text) for seed in range(8)}
    assert len(lengths) > 1


def test_nothing_to_search_is_best_of_n_with_greedy_text() -> None:
    from milr.searches.best_of_n import BestOfN, best_of_n

    trajectory, _ = run(Milr(text_ratio=0.0, image_ratio=0.0))
    (rival,) = drive(Toy(), CountingCritic(match), tasks(), best_of_n, BestOfN(text="greedy"), budget=8)
    assert [d.drawn.image_tokens for d in trajectory.drafts] == [d.drawn.image_tokens for d in rival.drafts]
    assert trajectory.cost.decoded_tokens == rival.cost.decoded_tokens


def test_official_returns_the_last_image_and_stops_above_its_threshold() -> None:
    rewards = iter([0.3, 0.8, 0.2, 0.1])
    trajectory, _ = run(PRESETS["official"], judge=lambda tokens, task: next(rewards), budget=4)
    assert (trajectory.best, trajectory.stopped) == (3, "budget")
    rewards = iter([0.3, 0.9, 0.95])
    trajectory, _ = run(PRESETS["official"], judge=lambda tokens, task: next(rewards), budget=9)
    assert (trajectory.best, trajectory.stopped, len(trajectory.drafts)) == (2, "search", 3)


def test_credit_goes_to_the_tokens_that_drew_or_to_the_most_probable() -> None:
    for credit in ("drawn", "arg-max"):
        settings = Milr(variant="image-only", credit=credit, reward_offset=-1.0, image_ratio=0.5)
        trajectory, seen = run(settings, budget=2)
        first, toy = trajectory.drafts[0], Toy()
        z = seen[0].image.clone().requires_grad_()
        log_probs = torch.log_softmax(toy.image_logits(z, toy.info.guidance), -1)
        best = log_probs.argmax(-1)
        drew = torch.tensor(first.drawn.image_tokens[: len(z)])
        assert not torch.equal(best, drew)  # else the two could not be told apart
        tokens = drew if credit == "drawn" else best
        (gradient,) = torch.autograd.grad(log_probs.gather(-1, tokens[:, None]).sum(), z)
        assert_close(seen[1].image, seen[0].image - 0.03 * gradient.sign(), atol=1e-5, rtol=0)


def test_both_halves_of_the_guided_latents_are_searched() -> None:
    _, seen = run(Milr(variant="image-only", image_ratio=0.5), budget=2)
    step = (seen[1].image - seen[0].image).abs().amax(dim=(0, 2))
    assert step.min() > 0.02  # [conditional, unconditional]


def test_sampled_prefixes_differ_and_arg_max_ones_follow_z() -> None:
    still = Milr(learning_rate=0.0, image_ratio=0.5, text_ratio=0.5)
    greedy, _ = run(replace(still, image_prefix="arg-max"))
    assert len({d.ask.image for d in greedy.drafts[1:]}) == 1
    sampled, _ = run(replace(still, text_prefix="sampled"))
    assert len({d.ask.image for d in sampled.drafts[1:]}) > 1
    assert len({d.drawn.text_tokens for d in sampled.drafts[1:]}) > 1


def test_a_sampled_rest_keeps_the_prefix_and_varies_the_rest() -> None:
    settings = Milr(text_rest="sampled", learning_rate=0.0, text_ratio=0.3)
    toy = Toy(3)
    trajectory, seen = run(settings, backbone=toy, budget=10)
    length = len(seen[0].text)
    texts = {draft.drawn.text_tokens for draft in trajectory.drafts}
    assert length > 0
    assert len({text[:length] for text in texts}) == 1
    assert len(texts) > 2


def test_a_prefix_that_comes_to_hold_the_end_ends_the_text() -> None:
    class Ending(Toy):
        """A text head that always ends when asked by the search, though it wrote on in the first draft."""

        def text_logits(self, latents: Tensor) -> Tensor:
            logits = super().text_logits(latents)
            return logits + 100 * torch.eye(VOCAB)[END] if len(latents) > 1 else logits

    trajectory, seen = run(Milr(text_ratio=0.9), backbone=Ending(3), budget=4)
    assert len(seen[0].text) > 1
    for draft in trajectory.drafts[1:]:
        assert draft.ask.text == Forced((END,))  # what follows the end is no part of the text
        assert draft.drawn.text_tokens == ()
    assert all(draft.drawn.cost.text_tokens == 0 for draft in trajectory.drafts[1:])


def test_a_greedy_text_is_charged_once() -> None:
    again = 0
    for seed in range(8):
        trajectory, seen = run(replace(Milr(), reward_offset=-1.0), backbone=Toy(seed), budget=20)
        length, known = len(seen[0].text), set()
        for draft in trajectory.drafts:
            prefix = draft.drawn.text_tokens[:length]
            assert (draft.drawn.cost.text_tokens == 0) == (prefix in known)
            again += prefix in known and prefix != trajectory.drafts[0].drawn.text_tokens[:length]
            known.add(prefix)
    assert again > 5  # some came back that were not the first


def test_an_empty_text_is_searched_in_the_image_alone() -> None:
    class Mute(Toy):
        def text_logits(self, latents: Tensor) -> Tensor:
            return super().text_logits(latents) + 100 * torch.eye(VOCAB)[END]

    trajectory, seen = run(Milr(), backbone=Mute())
    assert len(trajectory.drafts) == 8
    assert seen[0].text.numel() == 0
    assert "text_searched" not in trajectory.drafts[1].ask.note


def test_notes_say_how_the_latents_move() -> None:
    trajectory, _ = run(Milr(reward_offset=-1.0, text_rest="sampled", learning_rate=0.3), budget=12)
    notes = [draft.ask.note for draft in trajectory.drafts[1:]]
    assert notes[0]["text_cosine"] is None  # nothing before it
    later = [note for note in notes[1:] if note["text_cosine"] is not None]
    assert later
    assert all(-1 <= note[key] <= 1 for note in later for key in ("text_cosine", "image_cosine", "text_image_cosine"))
    assert len({round(note["text_image_cosine"], 6) for note in later}) > 1
    for draft, before, note in zip(trajectory.drafts[1:], trajectory.drafts, notes, strict=False):
        searched = note["text_searched"]
        pairs = zip(draft.drawn.text_tokens[:searched], before.drawn.text_tokens[:searched], strict=False)
        assert note["text_changed_tokens"] == sum(a != b for a, b in pairs)
    only = run(Milr(variant="text-only"), budget=4)[0].drafts[1].ask.note
    assert "image_cosine" not in only
    assert "text_image_cosine" not in only
