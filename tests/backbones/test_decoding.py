"""The engine against transformers' own `generate` and forward: the slow path is the specification of the fast one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from milr.backbones import decoding, load
from milr.backbones.janus import JanusBackbone
from milr.backbones.leaping import WEIGHT, Lore, Pace, Trust
from milr.backbones.sampling import choose, guide, prefix_length, uniforms
from milr.drafts import Ask, Drawn, Forced, Greedy, Order, Sample, UserError
from rounding import assert_same_tokens, assert_tied_where_they_part, of_model, ties

PROMPTS = ("a red apple", "two green birds above a blue car", "x", "ein Äpfelchen, 苹果 🍎")


def draw(backbone: JanusBackbone, prompt: str, stream: int = 0, **ask: Any) -> Drawn:
    return backbone.draw([Order(prompt, Ask(**ask), stream)])[0]


# --- Against transformers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_is_that_of_transformers(pair: Any, prompt: str) -> None:
    request = torch.tensor([pair.ours.prompts.reasoning(prompt)])
    theirs = pair.theirs.generate(
        request,
        attention_mask=torch.ones_like(request),
        do_sample=False,
        max_new_tokens=pair.ours.max_text_tokens,
    )[0, request.shape[1] :].tolist()
    ours = draw(pair.ours, prompt)
    said = [*ours.text_tokens, *[pair.ours.text_end()] * ours.text_ended]
    assert ours.cost.text_tokens == len(said)
    if said != theirs:
        assert_tied_where_they_part(said, theirs, ties(pair.ours, Order(prompt, Ask(), 0))[0])


@pytest.mark.parametrize("guidance", [2.0, 5.0])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_image_is_that_of_transformers(pair: Any, prompt: str, guidance: float) -> None:
    ours = draw(pair.ours, prompt, image=Greedy(), guidance=guidance)
    request = torch.tensor([pair.ours.prompts.drawing(prompt, ours.reasoning)])
    try:
        theirs = pair.theirs.generate(
            request,
            attention_mask=torch.ones_like(request),
            do_sample=False,
            generation_mode="image",
            guidance_scale=guidance,
        )[0].tolist()
    except TypeError as error:  # transformers 5.17 cannot draw: its own image mode forgets an argument
        if "prefill_chunk_size" not in str(error):
            raise
        pytest.skip(str(error))
    if list(ours.image_tokens) != theirs:
        order = Order(prompt, Ask(image=Greedy(), guidance=guidance), 0)
        assert_tied_where_they_part(ours.image_tokens, theirs, ties(pair.ours, order)[1])
    assert len(set(theirs)) > 3, "a constant image proves nothing"


def full_forward_latents(pair: Any, drawn: Drawn, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents of every text and image token of a draft by transformers' forward: no cache, one row at a time."""
    core, prompts = pair.theirs.model, pair.ours.prompts
    with torch.no_grad():
        request = prompts.reasoning(prompt)
        ids = torch.tensor([[*request, *drawn.text_tokens]])
        text = core.language_model(input_ids=ids).last_hidden_state[0, len(request) - 1 :]
        drawing = prompts.drawing(prompt, drawn.reasoning)
        image = []
        for ids in (drawing, prompts.undrawn(drawing)):
            inputs = [core.get_input_embeddings()(torch.tensor([ids]))]
            inputs += [pair.theirs.prepare_embeddings_for_image_generation(torch.tensor([drawn.image_tokens]))]
            states = core.language_model(inputs_embeds=torch.cat(inputs, 1)).last_hidden_state
            image.append(states[0, len(drawing) - 1 : -1])
    return text, torch.stack(image, 1)


@pytest.mark.parametrize("guidance", [1.0, 2.0, 5.0])
def test_latents_and_logits_are_those_of_a_full_forward(pair: Any, guidance: float) -> None:
    for prompt in PROMPTS:
        drawn = draw(pair.ours, prompt, text=Sample(), text_ratio=1.0, image_ratio=1.0, guidance=guidance)
        text, image = full_forward_latents(pair, drawn, prompt)
        text = text[: len(drawn.text_tokens)]  # the state that predicts the end is not a latent
        if guidance == 1:
            image[:, 1] = image[:, 0]
        assert drawn.latents is not None
        assert_close(drawn.latents.text, text, atol=of_model(pair.ours, text), rtol=0)
        assert_close(drawn.latents.image, image, atol=of_model(pair.ours, image), rtol=0)
        said = pair.theirs.lm_head(text)
        assert_close(pair.ours.text_logits(drawn.latents.text), said, atol=of_model(pair.ours, said), rtol=0)
        heads = pair.theirs.model.generation_head(image)
        expected = heads[:, 1] + guidance * (heads[:, 0] - heads[:, 1])
        tolerance = of_model(pair.ours, heads, guidance)
        assert_close(pair.ours.image_logits(drawn.latents.image, guidance), expected, atol=tolerance, rtol=0)


def test_heads_on_latents_choose_the_drawn_tokens(pair: Any) -> None:
    """The logits of the returned latents are those that the engine chose from: the same numbers pick the same."""
    for stream, prompt in enumerate(PROMPTS):
        order = Order(prompt, Ask(text=Sample(0.7), text_ratio=1.0, image_ratio=1.0, guidance=3.0), stream)
        (drawn,) = pair.ours.draw([order])
        assert drawn.latents is not None
        for stage, logits, expected, temperature in (
            (0, pair.ours.text_logits(drawn.latents.text), drawn.text_tokens, 0.7),
            (1, pair.ours.image_logits(drawn.latents.image, 3.0), drawn.image_tokens, 1.0),
        ):
            numbers = torch.from_numpy(uniforms(stream, stage, len(expected)))
            again = choose(logits.detach(), torch.full((len(expected),), temperature), numbers)
            # All of them at once are another shape than one by one, so ties may go the other way; nothing else.
            for token, drew, tied in zip(again.tolist(), expected, ties(pair.ours, order)[stage], strict=False):
                assert token == drew or tied


# --- Batches --------------------------------------------------------------------------------------------------


def mixed_orders() -> list[Order]:
    """Prompts from 1 to some 60 tokens, every kind of choice, guided and not."""
    words = re.findall(r"\w+", "a red apple and two green birds above a blue car left of the white dog on the table")
    whole = tuple(range(16))
    asks = [
        Ask(text_ratio=0.2, image_ratio=0.1),
        Ask(text=Sample(), guidance=5.0),
        Ask(text=Forced((70, 71, 72), then=Sample(0.8)), image=Greedy(), text_ratio=0.5),
        Ask(text=Sample(), image=Sample(0.5), guidance=1.0, image_ratio=0.2),
        Ask(
            text=Forced((70, 328)),
            image=Forced(whole, then=Sample(), free=frozenset({3, 4, 9})),
            guidance=3.0,
            image_ratio=0.9,
        ),
        Ask(image=Forced((5, 6, 7), then=Sample()), image_ratio=0.5),
        Ask(text=Forced((70, 328)), image=Forced(whole, free=frozenset())),
        Ask(text=Sample(2.0), image=Sample(2.0), guidance=0.0),
    ]
    return [Order(" ".join(words[: 1 + 3 * i]), ask, stream=i * i) for i, ask in enumerate(asks)]


def test_a_draft_is_the_same_alone_and_in_batches(tiny_backbone: JanusBackbone) -> None:
    orders = mixed_orders()
    alone = [tiny_backbone.draw([order])[0] for order in orders]
    assert len({drawn.image_tokens for drawn in alone}) == len(alone)
    for size in (2, 3, 8):
        together = [drawn for i in range(0, 8, size) for drawn in tiny_backbone.draw(orders[i : i + size])]
        for order, one, other in zip(orders, alone, together, strict=True):
            if not assert_same_tokens(tiny_backbone, order, one, other):
                continue
            assert one.cost.decoded_tokens == other.cost.decoded_tokens
            assert one.cost.prefilled_tokens == other.cost.prefilled_tokens
            assert (one.latents is None) == (other.latents is None)
            if one.latents and other.latents:
                assert_close_latents(tiny_backbone, one.latents.text, other.latents.text)
                assert_close_latents(tiny_backbone, one.latents.image, other.latents.image)
            difference = np.asarray(one.image, dtype=int) - np.asarray(other.image, dtype=int)
            assert np.abs(difference).max() <= 1


def assert_close_latents(backbone: JanusBackbone, one: torch.Tensor, other: torch.Tensor) -> None:
    assert_close(one, other, atol=of_model(backbone, one), rtol=0)


@settings(deadline=None, max_examples=15)
@given(pads=st.integers(0, 64), stream=st.integers(0, 2**70), place=st.integers(0, 1))
def test_padding_never_matters(tiny_backbone: JanusBackbone, pads: int, stream: int, place: int) -> None:
    """Beside a prompt that is up to 64 tokens longer, a draft stays what it is alone."""
    short = Order("x", Ask(text=Sample(), text_ratio=0.2, image_ratio=0.1), stream)
    orders = [short, Order("x" + "~" * pads, Ask(text=Sample()), stream + 1)]
    lengths = [len(tiny_backbone.prompts.reasoning(order.prompt)) for order in orders]
    assert lengths[1] - lengths[0] == pads, "each ~ is one token"
    together = tiny_backbone.draw(orders[::-1] if place else orders)
    assert_same_tokens(tiny_backbone, short, tiny_backbone.draw([short])[0], together[place])


def test_results_do_not_depend_on_the_largest_batch(
    tiny_backbone: JanusBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny_backbone.draw(mixed_orders())
    monkeypatch.setattr(tiny_backbone, "max_batch", 3)
    assert_all_same(tiny_backbone, whole, tiny_backbone.draw(mixed_orders()))


def test_out_of_memory_halves_the_batch(tiny_backbone: JanusBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tiny_backbone.draw(mixed_orders())
    sizes: list[int] = []
    real = tiny_backbone._draw_batch

    def small_memory(orders: list[Order]) -> list[Drawn]:
        sizes.append(len(orders))
        if len(orders) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(orders)

    monkeypatch.setattr(tiny_backbone, "_draw_batch", small_memory)
    monkeypatch.setattr(tiny_backbone, "max_batch", 64)
    found = tiny_backbone.draw(mixed_orders())
    monkeypatch.setattr(tiny_backbone, "_draw_batch", real)
    assert_all_same(tiny_backbone, expected, found)
    assert sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1, 1]  # one order is unguided: drawn by itself
    assert tiny_backbone.max_batch == 1


def assert_all_same(backbone: JanusBackbone, some: list[Drawn], others: list[Drawn]) -> None:
    for order, one, other in zip(mixed_orders(), some, others, strict=True):
        assert_same_tokens(backbone, order, one, other)


# --- Forced tokens and random streams -------------------------------------------------------------------------

CHOICES = st.sampled_from([Greedy(), Sample(), Sample(0.5)])


@settings(deadline=None, max_examples=25)
@given(then=CHOICES, cut=st.integers(0, 24), stream=st.integers(0, 2**64 - 1))
@example(then=Sample(), cut=24, stream=0)  # a text that the limit cuts, forced whole
def test_forced_text_prefix_continues_as_the_unforced_run(
    tiny_backbone: JanusBackbone, then: Greedy | Sample, cut: int, stream: int
) -> None:
    order = Order("a red apple", Ask(text=then, text_ratio=0.3), stream)
    (free,) = tiny_backbone.draw([order])
    prefix = free.text_tokens[:cut]
    forced = draw(tiny_backbone, "a red apple", stream, text=Forced(prefix, then), text_ratio=0.3)
    if not assert_same_tokens(tiny_backbone, order, free, forced):
        return
    sampled = len(free.text_tokens) + free.text_ended - len(prefix)
    assert forced.cost.text_tokens == sampled
    if sampled:  # else only what the latents need is prefilled
        assert forced.cost.prefilled_tokens == free.cost.prefilled_tokens + len(prefix)
    assert forced.latents
    assert free.latents
    assert_close_latents(tiny_backbone, forced.latents.text, free.latents.text)


@settings(deadline=None, max_examples=25)
@given(then=CHOICES, cut=st.integers(0, 16), stream=st.integers(0, 2**64 - 1), guidance=st.sampled_from([1.0, 4.0]))
def test_forced_image_prefix_continues_as_the_unforced_run(
    tiny_backbone: JanusBackbone, then: Greedy | Sample, cut: int, stream: int, guidance: float
) -> None:
    order = Order("a red apple", Ask(image=then, image_ratio=0.3, guidance=guidance), stream)
    (free,) = tiny_backbone.draw([order])
    choice = Forced(free.image_tokens[:cut], then)
    forced = draw(tiny_backbone, "a red apple", stream, image=choice, image_ratio=0.3, guidance=guidance)
    if not assert_same_tokens(tiny_backbone, order, free, forced):
        return
    assert forced.cost.image_tokens == 16 - cut
    assert forced.latents
    assert free.latents
    assert_close_latents(tiny_backbone, forced.latents.image, free.latents.image)


@settings(deadline=None, max_examples=25)
@given(then=CHOICES, free=st.frozensets(st.integers(0, 15)), stream=st.integers(0, 2**32))
def test_free_positions_are_drawn_and_all_others_kept(
    tiny_backbone: JanusBackbone, then: Greedy | Sample, free: frozenset[int], stream: int
) -> None:
    order = Order("a red apple", Ask(image=then), stream)
    (original,) = tiny_backbone.draw([order])
    # With the draft's own stream, the free tokens come back; with another one, only they may change.
    same = draw(tiny_backbone, "a red apple", stream, image=Forced(original.image_tokens, then, free))
    assert_same_tokens(tiny_backbone, order, original, same)
    assert same.cost.image_tokens == len(free)
    foreign = tuple((token + 1) % 61 for token in original.image_tokens)
    redrawn = Order("a red apple", Ask(image=Forced(foreign, Sample(), free), image_ratio=1.0), stream)
    (other,) = tiny_backbone.draw([redrawn])
    kept = [position for position in range(16) if position not in free]
    assert [other.image_tokens[position] for position in kept] == [foreign[position] for position in kept]
    # What was chosen is what the latents of that very picture say.
    assert other.latents
    numbers = torch.from_numpy(uniforms(stream, 1, 16))
    again = choose(tiny_backbone.image_logits(other.latents.image, 2.0), torch.ones(16), numbers)
    tied = ties(tiny_backbone, redrawn)[1]
    for position in free:
        assert other.image_tokens[position] == int(again[position]) or tied[position]


# --- Leaps ----------------------------------------------------------------------------------------------------


@contextmanager
def leaping(backbone: JanusBackbone, slack: float | None) -> Iterator[None]:
    """With so much slack (None: no leaps), and knowing nothing of what was drawn before."""
    engine = backbone._engine
    kept = engine.pace, engine.lore, engine.trusts
    engine.pace = None if slack is None else Pace(slack)
    engine.lore, engine.trusts = Lore(), {kind: Trust(WEIGHT * rate) for kind, rate in decoding.RIGHT.items()}
    try:
        yield
    finally:
        engine.pace, engine.lore, engine.trusts = kept


def drawn_at_once(backbone: JanusBackbone, orders: list[Order], slack: float | None) -> tuple[list[Drawn], int, int]:
    """The drafts, and the most passes that a text and a picture took."""
    most = {"text": 0, "image": 0}
    decode = backbone._engine.decode

    def counted(stage: Any, plans: Any) -> Any:
        found = decode(stage, plans)
        most[stage.name] = max(most[stage.name], *[one.passes for one in found])
        return found

    with leaping(backbone, slack):
        try:
            backbone._engine.decode = counted  # type: ignore[method-assign]
            return backbone.draw(orders), most["text"], most["image"]
        finally:
            del backbone._engine.decode


TEXTS = st.lists(st.integers(0, 60), max_size=24).map(tuple)
PICTURES = st.lists(st.integers(0, 52), min_size=9, max_size=9).map(tuple)  # tokens that all variants have


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.sampled_from([Greedy(), Sample(), Sample(0.3), Forced((70, 71, 72), then=Sample())]),
    then=st.sampled_from([Greedy(), Sample(), Sample(0.3), Sample(4.0)]),
    streams=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4),
    free=st.none() | st.frozensets(st.integers(0, 8), min_size=1),
    told=st.lists(st.tuples(TEXTS, PICTURES, st.booleans()), max_size=3),
    guidance=st.sampled_from([1.0, 4.0]),
    ratio=st.sampled_from([0.0, 0.3, 1.0]),
    slack=st.sampled_from([6.0, 30.0, 1e6]),
)
def test_leaps_change_no_token_and_no_latent(
    pair: Any,
    text: Greedy | Sample | Forced,
    then: Greedy | Sample,
    streams: list[int],
    free: frozenset[int] | None,
    told: list[tuple[tuple[int, ...], tuple[int, ...], bool]],
    guidance: float,
    ratio: float,
    slack: float,
) -> None:
    """Any model, any stream, any guess, any mask, any window, drafts side by side that land at their own places. What
    is told of earlier drafts may be wrong in every token; where it has this draft's text, its picture is the guess."""
    backbone: JanusBackbone = pair.ours
    count = backbone.info.image_tokens
    image = then if free is None else Forced((*range(count),), then, free)
    ask = Ask(text, image, ratio, ratio, guidance)
    orders = [Order(PROMPTS[index % 3], ask, stream) for index, stream in enumerate(streams)]
    expected, _, _ = drawn_at_once(backbone, orders, None)
    telling = [
        replace(
            order,
            earlier=tuple(
                replace(
                    drawn,
                    text_tokens=drawn.text_tokens if is_same else words,
                    reasoning=drawn.reasoning if is_same else "other",
                    image_tokens=(picture * 2)[:count],
                )
                for words, picture, is_same in told
            ),
        )
        for order, drawn in zip(orders, expected, strict=True)
    ]
    found, _, _ = drawn_at_once(backbone, telling, slack)
    for order, one, other in zip(orders, expected, found, strict=True):
        if assert_same_tokens(backbone, order, one, other):
            for name in ("text_tokens", "image_tokens", "prefilled_tokens"):
                assert getattr(one.cost, name) == getattr(other.cost, name)
            if one.latents:
                assert other.latents
                assert_close_latents(backbone, other.latents.text, one.latents.text)
                assert_close_latents(backbone, other.latents.image, one.latents.image)


def test_an_earlier_draft_is_drawn_again_in_few_passes(tiny_backbone: JanusBackbone) -> None:
    """The first token comes with the prompt, the others in leaps where every guess is right: one picture in one of 15,
    a text of 24 tokens in two."""
    order = Order("a red apple", Ask(text=Sample(), image=Sample(2.0)), 5)
    (drawn,), text, image = drawn_at_once(tiny_backbone, [order], None)
    assert (text, image) == (drawn.cost.text_tokens, 16)
    told = replace(order, earlier=(drawn,))
    (again,), text, image = drawn_at_once(tiny_backbone, [told], 1e6)
    assert_same_tokens(tiny_backbone, order, drawn, again)
    if again.image_tokens == drawn.image_tokens and again.text_tokens == drawn.text_tokens:
        assert (text, image) == (3, 2)
        assert (again.cost.text_passes, again.cost.image_passes, again.cost.passes) == (3, 2, 5)
    assert order == told, "what is told of other drafts is no part of what was asked for"


def test_a_text_that_was_rewritten_is_mostly_the_old_one(tiny_backbone: JanusBackbone) -> None:
    """After a forced prefix that inserts a word, the old text is found again at another place."""
    drawn = draw(tiny_backbone, "a red apple", 5, text=Sample())
    words = drawn.text_tokens
    longer = Order("a red apple", Ask(text=Forced((words[0], 99, *words[1:8]), then=Sample())), 5)
    (expected,), plain, _ = drawn_at_once(tiny_backbone, [longer], None)
    old = replace(drawn, text_tokens=(words[0], *expected.text_tokens[2:]), text_ended=expected.text_ended)
    (again,), text, _ = drawn_at_once(tiny_backbone, [replace(longer, earlier=(old,))], 1e6)
    assert_same_tokens(tiny_backbone, longer, expected, again)
    assert plain > 8
    assert text <= 4


def test_leaps_are_given_up_where_guesses_are_useless(tiny_backbone: JanusBackbone) -> None:
    """Noise cannot be guessed: after a few tries one token a pass is quicker."""
    order = Order("a red apple", Ask(text=Forced((70, tiny_backbone.text_end())), image=Sample(9.0)), 5)
    windows: list[int] = []
    real = decoding._Run._window

    def seen(run: Any) -> int:
        windows.append(real(run))
        return windows[-1]

    with leaping(tiny_backbone, 30.0), pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding._Run, "_window", seen)
        for stream in range(6):
            tiny_backbone.draw([replace(order, stream=stream)])
    assert windows[0] > 1
    assert windows[-1] == 1


def test_a_whole_forced_draft_costs_nothing(tiny_backbone: JanusBackbone) -> None:
    end = tiny_backbone.text_end()
    drawn = draw(
        tiny_backbone,
        "a red apple",
        text=Forced((70, 71, end, 9, 9)),
        image=Forced(tuple(range(16)), free=frozenset()),
    )
    assert drawn.text_tokens == (70, 71)
    assert drawn.text_ended
    assert drawn.image_tokens == tuple(range(16))
    assert (drawn.cost.decoded_tokens, drawn.cost.prefilled_tokens) == (0, 0)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("ratios", [(0.3, 0.3), (1.0, 1.0), (0.2, 0.0), (0.0, 0.02)])
def test_a_whole_forced_draft_gives_its_latents_and_samples_nothing(
    tiny_backbone: JanusBackbone, guidance: float, ratios: tuple[float, float]
) -> None:
    """What resuming a run does with drafts on record: text with its end and a full picture, one pass a stage."""
    end = tiny_backbone.text_end()
    asks = [
        Ask(text, Sample(), *ratios, guidance) for text in (Greedy(), Sample(), Forced((7, end)), Forced((7,) * 24))
    ]
    orders = [Order(prompt, ask, stream) for stream, (prompt, ask) in enumerate(zip(PROMPTS, asks, strict=True))]
    drawn = tiny_backbone.draw(orders)
    again = tiny_backbone.draw(
        [
            replace(
                order,
                ask=replace(
                    order.ask,
                    text=Forced(one.text_tokens + (end,) * one.text_ended),
                    image=Forced(one.image_tokens, free=frozenset()),
                ),
            )
            for order, one in zip(orders, drawn, strict=True)
        ]
    )
    for one, other in zip(drawn, again, strict=True):
        assert (other.text_tokens, other.image_tokens) == (one.text_tokens, one.image_tokens)
        assert (other.reasoning, other.text_ended, other.guidance) == (one.reasoning, one.text_ended, one.guidance)
        assert other.cost.decoded_tokens == 0
        assert one.latents
        assert other.latents
        assert_close_latents(tiny_backbone, other.latents.text, one.latents.text)
        assert_close_latents(tiny_backbone, other.latents.image, one.latents.image)


def test_a_text_of_one_forced_word_waits_for_longer_ones_beside_it(tiny_backbone: JanusBackbone) -> None:
    """A row whose only stop is its first word is idle from then on, right at the start of its tokens."""
    closed = Ask(Forced((7, tiny_backbone.text_end())), text_ratio=1.0)
    orders = [Order("a red apple", closed, 1), *(Order(prompt, Ask(text_ratio=1.0), 1) for prompt in PROMPTS[:3])]
    together = tiny_backbone.draw(orders)
    assert together[0].text_tokens == (7,)
    alone = [tiny_backbone.draw([order])[0] for order in orders]
    for order, one, other in zip(orders, alone, together, strict=True):
        assert_same_tokens(tiny_backbone, order, one, other)
    assert together[0].latents
    assert alone[0].latents
    assert_close_latents(tiny_backbone, together[0].latents.text, alone[0].latents.text)


def test_streams_differ_and_repeat(tiny_backbone: JanusBackbone) -> None:
    first, again, other = (draw(tiny_backbone, "a red apple", stream, text=Sample()) for stream in (7, 7, 8))
    assert_same_tokens(tiny_backbone, Order("a red apple", Ask(text=Sample()), 7), first, again)
    assert first.text_tokens != other.text_tokens
    assert first.image_tokens != other.image_tokens


def test_text_stops_at_the_limit(tiny_backbone: JanusBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    long = draw(tiny_backbone, "a red apple", 1, text=Sample())
    monkeypatch.setattr(tiny_backbone, "max_text_tokens", 5)
    short = draw(tiny_backbone, "a red apple", 1, text=Sample(), text_ratio=0.2)
    if short.text_tokens != long.text_tokens[:5]:
        tied = ties(tiny_backbone, Order("a red apple", Ask(text=Sample()), 1))[0]
        assert_tied_where_they_part(short.text_tokens, long.text_tokens[:5], tied)
    assert not short.text_ended
    assert short.cost.text_tokens == 5
    assert short.latents
    assert len(short.latents.text) == 1


# --- The small parts ------------------------------------------------------------------------------------------


def test_guide_golden() -> None:  # u + w (c - u) with c = 2, u = 1, w = 5, worked out by hand
    assert_close(guide(torch.tensor([[2.0]]), torch.tensor([[1.0]]), 5.0), torch.tensor([[6.0]]))


def test_guidance_one_is_the_conditional_row(tiny_backbone: JanusBackbone) -> None:
    latents = torch.randn(5, 2, 64, generator=torch.Generator().manual_seed(0))
    nonsense = latents.clone()
    nonsense[:, 1] = 1e30
    assert_close(tiny_backbone.image_logits(latents, 1.0), tiny_backbone.image_logits(nonsense, 1.0))


@pytest.mark.parametrize(
    ("ratio", "length", "expected"),
    [(0, 9, 0), (0.02, 576, 12), (0.2, 5, 1), (0.07, 100, 7), (0.01, 3, 1), (1.0, 7, 7), (0.2, 0, 0), (2.0, 3, 3)],
)
def test_prefix_length(ratio: float, length: int, expected: int) -> None:
    assert prefix_length(ratio, length) == expected


def test_choose_follows_the_softmax() -> None:
    """Frequencies of 100,000 draws against the softmax: within 4 standard errors, and never an impossible token."""
    logits = torch.tensor([0.5, -1.0, 2.0, float("-inf"), 0.0])
    numbers = torch.from_numpy(uniforms(5, 0, 100_000))
    for temperature in (0.5, 1.0, 3.0):
        chosen = choose(logits.expand(len(numbers), -1), torch.full((len(numbers),), temperature), numbers)
        share = torch.bincount(chosen, minlength=5) / len(numbers)
        expected = (logits / temperature).softmax(-1)
        assert_close(share, expected, atol=4 * 0.5 / len(numbers) ** 0.5, rtol=0)
        assert share[3] == 0


def test_choose_survives_extremes() -> None:
    logits = torch.tensor([[3e38, -3e38, 0.0], [0.0, 0.0, 0.0]])
    for temperature in (1e-30, 1.0, 1e30):
        for number in (0.0, 1 - 2**-53):
            numbers = torch.full((2,), number, dtype=torch.float64)
            first, second = choose(logits, torch.full((2,), temperature), numbers).tolist()
            assert first == 0 or temperature == 1e30
            assert second == (0 if number == 0 else 2)
    zero = torch.zeros(1, dtype=torch.float64)
    assert choose(logits[1:], torch.zeros(1), zero).tolist() == [0]
    assert choose(torch.tensor([[float("-inf"), 0.0]]), torch.ones(1), zero).tolist() == [1], "not the impossible one"


def test_uniform_numbers_are_indexed_by_position() -> None:
    assert (uniforms(3, 1, 5) == uniforms(3, 1, 500)[:5]).all()
    assert len({*uniforms(3, 0, 4), *uniforms(3, 1, 4), *uniforms(4, 0, 4)}) == 12
    assert uniforms(2**64 + 3, 0, 1) == uniforms(3, 0, 1)
    # Philox4x64-10 with key (3, 1), from numpy 2.4.6: drafts must not change with numpy or the machine.
    assert uniforms(3, 1, 2).tolist() == [0.7400963480618715, 0.8483457319721872]


# --- Settings -------------------------------------------------------------------------------------------------


def test_speculation_can_be_switched_off(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(tiny_checkpoint)
    assert load(folder, device="cpu").speculate == "auto"  # type: ignore[attr-defined]
    assert load(folder, device="cpu", speculate="off").speculate == "off"  # type: ignore[attr-defined]
    monkeypatch.setenv("MILR_SPECULATE", "off")
    backbone = load(folder, device="cpu")
    assert isinstance(backbone, JanusBackbone)
    assert backbone.speculate == "off"
    (drawn,) = backbone.draw([Order("a red apple", Ask(image=Sample(0.01)), 5)])
    assert drawn.cost.image_passes == drawn.cost.image_tokens == 16
    assert drawn.cost.text_passes == drawn.cost.text_tokens
    assert load(folder, device="cpu", speculate="auto").speculate == "auto"  # type: ignore[attr-defined]
    monkeypatch.setenv("MILR_SPECULATE", "on")
    with pytest.raises(UserError, match="The variable MILR_SPECULATE is 'auto' or 'off', not 'on'"):
        load(folder, device="cpu")
    with pytest.raises(UserError, match="speculate is 'auto' or 'off', not 'no'"):
        load(folder, device="cpu", speculate="no")


# --- Work -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_work_of_a_draft_is_that_of_one_reading_of_it(pair: Any, guidance: float) -> None:
    """Counted by torch in transformers' own forward of the whole text and picture: neither how many tokens a pass has,
    nor how often a guess is read again, is part of it."""
    from torch.utils.flop_counter import FlopCounterMode

    drawn = draw(pair.ours, PROMPTS[1], 3, text=Sample(), guidance=guidance)
    prompts, core = pair.ours.prompts, pair.theirs.model
    request, drawing = prompts.reasoning(PROMPTS[1]), prompts.drawing(PROMPTS[1], drawn.reasoning)
    rows = [drawing] if guidance == 1 else [drawing, prompts.undrawn(drawing)]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        states = core.language_model(input_ids=torch.tensor([[*request, *drawn.text_tokens]])).last_hidden_state
        pair.theirs.lm_head(states[:, -drawn.cost.text_tokens :])
        ids = torch.tensor([[*row, *row[: len(drawn.image_tokens) - 1]] for row in rows])  # what a token is matters not
        states = core.language_model(input_ids=ids).last_hidden_state
        core.generation_head(states[:, -len(drawn.image_tokens) :])
        pair.theirs.decode_image_tokens(torch.tensor([drawn.image_tokens]))
    # Scores of what lies behind a token are counted there too, and thrown away.
    decoder = pair.ours._decoder
    behind = [
        length * (length - 1) // 2 for length in (len(request) + len(drawn.text_tokens), *[ids.shape[1]] * len(rows))
    ]
    unseen = 4 * len(decoder.layers) * decoder.heads * decoder.head_dim * sum(behind)
    assert drawn.cost.work == pytest.approx(counter.get_total_flops() - unseen, rel=0.03)
