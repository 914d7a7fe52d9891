"""Our loop is the pipelines' own; a picture depends on its request alone; what is kept is kept; costs are as told."""

from __future__ import annotations

import inspect
import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from flow_pipelines import KINDS, TEXTS
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from milr.backbones.flow.drawer import Kept, Request, feathered, steps_of
from milr.backbones.flow.families import KLEIN
from milr.drafts import UserError
from rounding import rounding


def requests_of(pair, number, steps=3, guidance=3.5, **more):
    seen = pair.ours.encode(TEXTS[:number])
    noises = pair.noises(number)
    return [Request(text, noise, steps, guidance, **more) for text, noise in zip(seen, noises, strict=True)]


def of_drawing(values, steps, guidance):
    """`rounding` of latents: a step passes four blocks of at most eight products, none wider than 128."""
    return rounding(values, products=128, sums=steps * 8 * 4, guidance=max(guidance, 1.0))


@contextmanager
def rows_of(network):
    """How many rows each pass of a network had."""
    rows = []

    def note(network, args, named):
        rows.append(len(named.get("hidden_states", args[0] if args else None)))

    hook = network.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield rows
    finally:
        hook.remove()


def left_half(pair):
    where = torch.zeros(pair.ours.grid, pair.ours.grid, dtype=torch.bool)
    where[:, : pair.ours.grid // 2] = True
    return where


# --- as the pipeline draws -------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [0.0, 3.5])
def test_our_loop_is_the_pipelines_own_bit_for_bit(any_pair, guidance):
    requests = requests_of(any_pair, 3, 3, guidance)
    any_pair.ours.paint(requests)  # the text of nothing is encoded once
    with rows_of(any_pair.theirs.transformer) as wanted:
        latents, pictures = any_pair.call(list(TEXTS), any_pair.noises(3), steps=3, guidance=guidance)
    with rows_of(any_pair.ours.pipe.transformer) as rows:
        drawn = any_pair.ours.paint(requests)
    assert rows == wanted
    assert torch.equal(torch.stack(drawn), latents.float())
    for ours, theirs in zip(any_pair.ours.decode(drawn), pictures, strict=True):
        assert ours.size == (any_pair.ours.image_size,) * 2
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))
    assert len({np.asarray(picture).tobytes() for picture in pictures}) == 3


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[2], KINDS[4]], ids=str)
def test_it_rounds_as_the_pipeline_does_in_bfloat16(pair_of, kind):
    pair = pair_of(kind, "bfloat16")
    latents, _ = pair.call(list(TEXTS), pair.noises(3), steps=3, guidance=3.5)
    assert torch.equal(torch.stack(pair.ours.paint(requests_of(pair, 3))), latents.float())


def test_guidance_is_the_pipelines(any_pair):
    """Where it does nothing, and that it does something elsewhere."""
    plain, guided = (any_pair.ours.paint(requests_of(any_pair, 1, guidance=scale))[0] for scale in (0.0, 3.5))
    assert torch.equal(plain, guided) == (not any_pair.ours.variant.can_guide)
    at_the_edge = any_pair.ours.paint(requests_of(any_pair, 1, guidance=any_pair.ours.family.no_guidance))[0]
    assert torch.equal(at_the_edge, plain)


def test_defaults_are_the_makers(any_pair):
    """Undistilled: those of the pipeline's own `__call__`. Distilled: few steps, and one pass a step."""
    parameters = inspect.signature(type(any_pair.theirs).__call__).parameters
    name = "true_cfg_scale" if any_pair.kind.family.name == "Qwen-Image" else "guidance_scale"
    if any_pair.kind.is_distilled:
        assert any_pair.ours.steps <= 8
        assert any_pair.ours.evaluations(Request(*only(any_pair))) == any_pair.ours.steps
    else:
        assert any_pair.ours.steps == parameters["num_inference_steps"].default
        assert any_pair.ours.guidance == parameters[name].default
    if any_pair.kind.is_distilled:
        latents, _ = any_pair.call([TEXTS[0]], any_pair.noises(1), any_pair.ours.steps, any_pair.ours.guidance)
        assert torch.equal(any_pair.ours.paint([Request(*only(any_pair))])[0], latents[0].float())


def only(pair):
    return pair.ours.encode(TEXTS[:1])[0], pair.noises(1)[0]


# --- texts -----------------------------------------------------------------------------------------------------


def test_a_text_is_as_long_as_it_says_and_says_when_it_is_cut(pair):
    short, long = pair.ours.encode(["a cat", "a cat " * pair.ours.text_tokens])
    assert not short.is_cut
    assert long.is_cut
    assert long.tokens == pair.ours.length(long.text) > pair.ours.text_tokens
    sees_padding = pair.ours.family is KLEIN
    assert len(short.states) == (pair.ours.text_tokens if sees_padding else short.tokens)
    assert len(long.states) == pair.ours.text_tokens


def test_many_texts_are_encoded_in_their_order(pair):
    texts = [f"{number} red foxes" for number in range(11)]
    alone = pair.ours.encode(texts[9:10])[0]
    (again,) = [seen for seen in pair.ours.encode(texts) if seen.text == texts[9]]
    assert torch.allclose(alone.states, again.states, rtol=0, atol=rounding(alone.states, products=128, sums=32))


def test_the_encoder_of_a_small_pipeline_can_write(pair):
    """Z-Image's folder names a body without head; its head is the embeddings, so it gets one, and its states stay."""
    assert pair.ours.writes


# --- batches ---------------------------------------------------------------------------------------------------


def test_a_picture_is_the_same_alone_and_in_any_batch(pair):
    one, two, three = requests_of(pair, 3)
    old = pair.ours.paint([two])[0]
    mixed = [
        one,
        Request(two.conditioning, two.noise, 5, 0.0),
        Request(three.conditioning, three.noise, 4, 2.0, Kept(old, left_half(pair), 0.5)),
        Request(one.conditioning, two.noise, 1 + (pair.kind.family.name == "Qwen-Image"), 1.5),
    ]
    together = pair.ours.paint(mixed)
    for request, drawn in zip(mixed, together, strict=True):
        (alone,) = pair.ours.paint([request])
        assert torch.allclose(alone, drawn, rtol=0, atol=of_drawing(alone, request.steps, request.guidance))
    assert all(picture.is_contiguous() for picture in together)
    assert [tuple(picture.shape) for picture in together] == [(pair.ours.channels,) + (pair.ours.grid,) * 2] * 4
    assert pair.ours.paint([]) == pair.ours.decode([]) == pair.ours.encode([]) == []


def test_progress_counts_what_is_done(pair):
    told = []
    requests = [*requests_of(pair, 2, 3), *requests_of(pair, 1, 2, 0.0)]
    pair.ours.paint(requests, lambda done, total: told.append((done, total)))
    total = sum(pair.ours.evaluations(request) for request in requests)
    assert told[-1] == (total, total)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert len(told) == 3


# --- keeping ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.3, 1.0])
@pytest.mark.parametrize("feather", [0, 1])
def test_what_is_kept_is_kept_exactly(pair, strength, feather):
    request = requests_of(pair, 1, 4)[0]
    (old,) = pair.ours.paint([request])
    where, noise = left_half(pair), pair.noises(2)[1]
    kept = Kept(old, where, strength, feather)
    (new,) = pair.ours.paint([Request(request.conditioning, noise, 4, 3.5, kept)])
    mask = feathered(where, feather)
    assert torch.equal(new[:, mask == 0], old[:, mask == 0])
    assert not torch.isclose(new[:, where], old[:, where]).any(0).all()
    assert bool(((new - old).abs().amax(0) > 0)[mask > 0].all())


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[2], KINDS[4]], ids=str)
def test_what_is_kept_is_kept_exactly_in_bfloat16(pair_of, kind):
    pair = pair_of(kind, "bfloat16")
    request = requests_of(pair, 1, 4)[0]
    (old,) = pair.ours.paint([request])
    assert old.dtype == torch.float32
    where = left_half(pair)
    (new,) = pair.ours.paint([Request(request.conditioning, pair.noises(2)[1], 4, 3.5, Kept(old, where, 0.5))])
    outside = feathered(where, 1) == 0
    assert torch.equal(new[:, outside], old[:, outside])
    assert pair.ours.decode([old])[0].size == (pair.ours.image_size,) * 2


def test_drawing_everything_anew_is_drawing(pair):
    """At full strength, and where nothing is kept."""
    request = requests_of(pair, 1, 4)[0]
    everywhere = torch.ones(pair.ours.grid, pair.ours.grid, dtype=torch.bool)
    kept = Kept(torch.zeros_like(request.noise), everywhere)
    again = Request(request.conditioning, request.noise, 4, 3.5, kept)
    assert torch.equal(pair.ours.paint([again])[0], pair.ours.paint([request])[0])
    assert pair.ours.evaluations(again) == pair.ours.evaluations(request)


def test_a_lower_strength_stays_nearer(pair):
    request = requests_of(pair, 1, 8)[0]
    (old,) = pair.ours.paint([request])
    noise, where = pair.noises(2)[1], left_half(pair)
    far = [
        float(
            (pair.ours.paint([Request(request.conditioning, noise, 8, 3.5, Kept(old, where, s))])[0] - old)
            .square()
            .mean()
        )
        for s in (0.1, 0.5, 1.0)
    ]
    assert far == sorted(far)


def test_the_same_noise_brings_the_old_picture_back(pair):
    """Of a straight flow exactly; a network of random weights bends, but one step from the end hardly."""
    request = requests_of(pair, 1, 40, 0.0)[0]
    (old,) = pair.ours.paint([request])
    kept = Kept(old, left_half(pair), 0.025)
    (new,) = pair.ours.paint([Request(request.conditioning, request.noise, 40, 0.0, kept)])
    assert (new - old).square().mean() < 0.05 * old.square().mean()


def test_a_part_fades_out_around_it():
    where = torch.zeros(5, 7)
    where[2, 3] = 1
    assert feathered(where, 0).tolist() == where.tolist()
    assert feathered(where, 2)[2].tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1, 2 / 3, 1 / 3, 0])
    assert feathered(where, 2)[:, 2].tolist() == pytest.approx([1 / 3, 2 / 3, 2 / 3, 2 / 3, 1 / 3])


def test_a_strength_is_a_share_of_the_steps():
    shares = {strength: steps_of(10, Kept(None, None, strength)) for strength in (0.01, 0.1, 0.11, 0.7, 1.0)}
    assert shares == {0.01: 1, 0.1: 1, 0.11: 2, 0.7: 7, 1.0: 10}  # .7 * 10 is 7.000000000000001
    assert steps_of(10, None) == 10


# --- costs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [0.0, 3.5])
def test_evaluations_are_the_rows_that_the_network_sees(any_pair, guidance):
    plain = requests_of(any_pair, 2, 3, guidance)
    repaint = Request(
        plain[0].conditioning, plain[0].noise, 4, guidance, Kept(plain[0].noise, left_half(any_pair), 0.4)
    )
    told = [any_pair.ours.evaluations(request) for request in [*plain, repaint]]
    passes = 2 if guidance and any_pair.ours.variant.can_guide else 1
    assert told == [3 * passes, 3 * passes, 2 * passes]
    with rows_of(any_pair.ours.pipe.transformer) as rows:
        any_pair.ours.paint([*plain, repaint])
    assert sum(rows) == sum(told)


@pytest.mark.parametrize("guidance", [0.0, 3.5])
def test_the_work_that_is_told_is_the_work_that_is_done(pair, guidance):
    (request,) = requests_of(pair, 1, 3, guidance)
    told = pair.ours.flops(request)
    # torch counts no attention of a processor's own kernel, but that which is spelt out.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        pair.ours.decode(pair.ours.paint([request]))
    assert told == counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        pair.ours.encode([TEXTS[0]])
    assert 0.5 < pair.ours.encoding_flops(request.conditioning) / counter.get_total_flops() < 1.1


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[2], KINDS[4]], ids=str)
def test_work_of_any_length_follows_from_three(pair_of, kind, monkeypatch):
    ours = pair_of(kind).ours
    monkeypatch.setattr(ours, "_passes", {})
    told = [ours._pass_flops(words) for words in (5, 40, 70, 140)]
    assert len(ours._passes) == 3
    # What the network itself makes of a text of just this length, which is no multiple of anything.
    states = torch.empty(140, ours.pipe.transformer.config[ours.family.text_width], device="meta")
    with FlopCounterMode(display=False) as counter:
        ours.family.velocity(ours._empty, ours._no_cells, torch.empty(1, device="meta"), [states])
    assert counter.get_total_flops() == told[-1]


def test_what_it_says_of_itself_fits_its_networks(pair):
    ours, network = pair.ours, pair.ours.pipe.transformer
    everything = sum(
        weights.numel()
        for part in (network, ours.pipe.vae, ours.pipe.text_encoder)
        for weights in [*part.parameters(), *part.buffers()]
    )
    assert 0.9 * everything < ours.parameters <= everything
    assert ours.memory.weights == ours.parameters * 4
    assert ours.memory.total > ours.memory.weights
    assert ours.pipe.vae_scale_factor * 2 * ours.grid == ours.image_size
    assert ours.images_at_once >= 1


# --- what cannot be drawn --------------------------------------------------------------------------------------


def test_requests_that_make_no_sense_are_refused(pair):
    (good,) = requests_of(pair, 1)
    for bad in (
        Request(good.conditioning, good.noise[:, :-1]),
        Request(good.conditioning, good.noise, 0),
        Request(good.conditioning, good.noise, 3, -1.0),
        Request(good.conditioning, good.noise, 3, math.nan),
        Request(good.conditioning, good.noise, 3, 1.0, Kept(good.noise, left_half(pair), 0.0)),
        Request(good.conditioning, good.noise, 3, 1.0, Kept(good.noise, left_half(pair), 1.1)),
        Request(good.conditioning, good.noise, 3, 1.0, Kept(good.noise, left_half(pair)[1:])),
    ):
        with pytest.raises(ValueError, match=r"shape|steps|strength"):
            pair.ours.paint([bad])


def test_numbers_that_are_not_finite_are_told(pair):
    (good,) = requests_of(pair, 1)
    broken = good.noise.clone()
    broken[0, 0, 0] = math.inf
    with pytest.raises(UserError, match="not finite even in float32"):
        pair.ours.paint([Request(good.conditioning, broken, 3)])
    with pytest.raises(UserError, match="not finite even in float32"):
        pair.ours.decode([broken * math.nan])


def test_a_schedule_that_is_none_is_told(pair_of):
    """Qwen-Image's scheduler stretches its levels so that the last is .02, which one level alone cannot be."""
    pair = pair_of(KINDS[4])
    with pytest.raises(UserError, match="cannot draw in 1 steps"):
        pair.ours.paint(requests_of(pair, 1, 1))
