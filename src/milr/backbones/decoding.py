"""The token loop: a lean Llama forward over a static KV cache, and one loop that writes texts and images.

Knows attention, caches, guidance rows and random streams. Knows no tokenizer, no prompt wording and no pixel:
what a token means comes in with the `Stage`.

Layout. A row's token at position p lies in slot p of the cache and a query at p sees the slots up to p, so
shorter rows are padded on the right: what padding writes lies in slots that are written again before anything
sees them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def prefix_length(ratio: float, length: int) -> int:
    """How many of `length` tokens a prefix ratio covers: ceil(ratio * length)."""
    return min(length, math.ceil(ratio * length - 1e-9))  # 0.07 * 100 is 7.000000000000001


def uniforms(stream: int, stage: int, count: int) -> Floats:
    """The first `count` uniform numbers of a draft's stream; number t chooses the token at position t."""
    key = np.array([stream % 2**64, stage], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(count)


def guide(conditional: Tensor, unconditional: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance u + w (c - u) on logits [B, V]; 1 is no guidance, 0 ignores the prompt."""
    return unconditional + scale * (conditional - unconditional)


def choose(logits: Tensor, temperatures: Tensor, numbers: Tensor) -> Tensor:
    """One token a row: the most probable where the temperature is 0, else by inverse CDF of the full softmax.

    Args:
        logits: [B, V] float32.
        temperatures: [B].
        numbers: [B] float64, uniform in [0, 1).
    """
    best = logits.argmax(-1)
    sampled = temperatures > 0
    if not sampled.any():
        return best
    # The maximum is taken off before dividing: a tiny temperature must not overflow.
    shifted = (logits - logits.gather(1, best[:, None])) / torch.where(sampled, temperatures, 1.0)[:, None]
    cumulative = shifted.softmax(-1).cumsum(-1, dtype=torch.float64)
    token = torch.searchsorted(cumulative, (numbers * cumulative[:, -1])[:, None], right=True)[:, 0]
    return torch.where(sampled, token.clamp(max=logits.shape[-1] - 1), best)


# --- The forward pass --------------------------------------------------------------------------------------


@dataclass
class Cache:
    """Keys and values of every layer, [R, heads, slots, head_dim], with the rotation of every slot."""

    keys: list[Tensor]
    values: list[Tensor]
    cosine: Tensor
    sine: Tensor

    def keep_rows(self, rows: Tensor) -> None:
        for layer in range(len(self.keys)):
            self.keys[layer] = self.keys[layer].index_select(0, rows)
            self.values[layer] = self.values[layer].index_select(0, rows)


@dataclass(frozen=True)
class _Layer:
    norm_attention: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    out: nn.Linear
    norm_mlp: Tensor
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: nn.Linear


class Decoder:
    """A `LlamaModel` run over our own cache, with the module's own weights.

    Query, key and value (and gate and up) are fused into one matrix each; the module's weights become views
    of it, so that even a 7B model is held once and transformers' own forward still works.
    """

    def __init__(self, language_model: Any) -> None:
        config = language_model.config
        self.hidden_size: int = config.hidden_size
        self.heads: int = config.num_attention_heads
        self.kv_heads: int = config.num_key_value_heads
        self.head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.epsilon: float = config.rms_norm_eps
        self.activation = language_model.layers[0].mlp.act_fn
        self.embed_tokens: nn.Embedding = language_model.embed_tokens
        self.rotary: nn.Module = language_model.rotary_emb
        self.norm: Tensor = language_model.norm.weight
        self.layers = []
        for layer in language_model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            qkv, qkv_bias = _fuse(attention.q_proj, attention.k_proj, attention.v_proj)
            gate_up, gate_up_bias = _fuse(mlp.gate_proj, mlp.up_proj)
            norms = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
            self.layers.append(
                _Layer(norms[0], qkv, qkv_bias, attention.o_proj, norms[1], gate_up, gate_up_bias, mlp.down_proj)
            )

    def new_cache(self, rows: int, slots: int) -> Cache:
        weight = self.embed_tokens.weight
        shape = (rows, self.kv_heads, slots, self.head_dim)
        # Zeros, not empty: a masked slot has weight 0, and 0 * NaN would be NaN.
        keys = [torch.zeros(shape, dtype=weight.dtype, device=weight.device) for _ in self.layers]
        values = [torch.zeros_like(key) for key in keys]
        positions = torch.arange(slots, device=weight.device)[None]
        cosine, sine = self.rotary(weight.new_empty(()), positions)
        half = self.head_dim // 2  # rotate_half(x) * sin == roll(x, half) * (-sin, sin)
        return Cache(keys, values, cosine[0], torch.cat([-sine[0, :, :half], sine[0, :, half:]], -1))

    def forward(self, inputs: Tensor, positions: Tensor, cache: Cache, seen: int, uniform: bool) -> Tensor:
        """Final hidden states (after the last norm) of `inputs`, whose keys and values join the cache.

        Args:
            inputs: [R, T, D] embeddings.
            positions: [R, T] their positions, which are their slots too.
            seen: slots that any query may look at (the largest position of interest + 1).
            uniform: every row of interest has the single position seen - 1, so no mask is needed.
        """
        rows, length, _ = inputs.shape
        row_index = torch.arange(rows, device=inputs.device)[:, None]
        cosine, sine = cache.cosine[positions][:, :, None], cache.sine[positions][:, :, None]
        groups = self.heads // self.kv_heads
        mask = None
        if not uniform:
            mask = (torch.arange(seen, device=inputs.device) <= positions[:, :, None])[:, None]
            mask = mask.repeat(1, 1, groups, 1) if groups > 1 else mask
        turned, width = self.heads + self.kv_heads, self.head_dim
        x = inputs
        for index, layer in enumerate(self.layers):
            normed = F.rms_norm(x, (self.hidden_size,), layer.norm_attention, self.epsilon)
            heads = F.linear(normed, layer.qkv, layer.qkv_bias).view(rows, length, -1, width)
            query_key, value = heads[:, :, :turned], heads[:, :, turned:]
            query_key = query_key * cosine + query_key.roll(width // 2, -1) * sine
            keys, values = cache.keys[index], cache.values[index]
            keys[row_index, :, positions] = query_key[:, :, self.heads :]
            values[row_index, :, positions] = value
            # Query heads that share a key head are just more queries of it: [R, kv_heads, groups * T, width].
            query = query_key[:, :, : self.heads].transpose(1, 2).reshape(rows, self.kv_heads, -1, width)
            mixed = F.scaled_dot_product_attention(query, keys[:, :, :seen], values[:, :, :seen], attn_mask=mask)
            mixed = mixed.reshape(rows, self.heads, length, width).transpose(1, 2).reshape(rows, length, -1)
            x = x + layer.out(mixed)
            normed = F.rms_norm(x, (self.hidden_size,), layer.norm_mlp, self.epsilon)
            gate, up = F.linear(normed, layer.gate_up, layer.gate_up_bias).chunk(2, -1)
            x = x + layer.down(self.activation(gate) * up)
        return F.rms_norm(x, (self.hidden_size,), self.norm, self.epsilon)


def _fuse(*linears: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Stack the weights of linear layers and let each layer's own weight be a view of the stack."""
    weight = torch.cat([linear.weight.data for linear in linears])
    start = 0
    for linear in linears:
        linear.weight.data = weight[start : start + linear.out_features]
        start += linear.out_features
    biases = [linear.bias.data for linear in linears if linear.bias is not None]
    return weight, torch.cat(biases) if biases else None


# --- The loop ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """What the tokens of a stage (text or image) mean.

    `length` is the most tokens a row can have; `embed` gives a token's input; `logits` maps final hidden
    states [B, branches, D] and guidance scales [B, 1] to float32 logits [B, V]; `end` is the token that ends
    a row early.
    """

    length: int
    embed: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor, Tensor], Tensor]
    end: int | None = None


@dataclass(frozen=True)
class Plan:
    """What one draft wants of a stage.

    `prompts`: text token ids, a sequence for each branch (conditional, then unconditional), equally long.
    `tokens`: the forced tokens; where a position is in `free` (ascending) the token is chosen instead.
    `keep`: how many leading latents to return. `temperature`: 0 is greedy. `numbers`: one for each position.
    `guidance`: the scale, if there are two branches.
    """

    prompts: tuple[Sequence[int], ...]
    tokens: Sequence[int]
    free: Sequence[int]
    keep: int
    temperature: float
    numbers: Floats
    guidance: float = 1.0


@dataclass(frozen=True)
class Decoded:
    """Tokens without the end token, whether it came, latents [keep, branches, D] float32 on the CPU, cost."""

    tokens: tuple[int, ...]
    ended: bool
    latents: Tensor
    sampled: int
    prefilled: int


class NotFinite(ArithmeticError):
    """The model computed NaN or an overflow: what is drawn from that on is noise, whatever a critic says of it."""


@torch.no_grad()
def decode(decoder: Decoder, stage: Stage, plans: Sequence[Plan]) -> list[Decoded]:
    """Run one stage for a batch of plans, all with the same number of branches. Raises NotFinite.

    A plan without a free position and without latents to return costs nothing.
    """
    empty = torch.zeros(0, len(plans[0].prompts), decoder.hidden_size)
    results = {index: Decoded(tuple(plan.tokens), False, empty, 0, 0) for index, plan in enumerate(plans)}
    running = [index for index, plan in enumerate(plans) if len(plan.free) or plan.keep]
    if running:
        results |= zip(running, _run(decoder, stage, [plans[index] for index in running]), strict=True)
    return [results[index] for index in range(len(plans))]


def _run(decoder: Decoder, stage: Stage, plans: Sequence[Plan]) -> list[Decoded]:
    """The loop, from stop to stop.

    In each round a row feeds the tokens before its next free position in one pass (just the last chosen
    token, or a whole run of forced ones) and chooses the token there. Query q of a row is the step whose
    hidden state predicts its token q: it feeds token q - 1, and query 0 the last token of the prompt.
    """
    device = decoder.embed_tokens.weight.device
    branches = len(plans[0].prompts)
    stops, draws = _schedule(plans)  # [B, rounds]
    prompt_lengths = np.array([len(plan.prompts[0]) for plan in plans])
    keeps = np.array([plan.keep for plan in plans])
    sampled = np.zeros(len(plans), dtype=np.int64)
    ended = np.zeros(len(plans), dtype=bool)

    tokens = torch.zeros(len(plans), stage.length, dtype=torch.long)
    for index, plan in enumerate(plans):
        tokens[index, : len(plan.tokens)] = torch.tensor(plan.tokens, dtype=torch.long)
    tokens = tokens.to(device)
    latents = torch.zeros(len(plans), int(keeps.max()), branches, decoder.hidden_size, device=device)
    temperatures = torch.tensor([plan.temperature for plan in plans], device=device)
    numbers = torch.from_numpy(np.stack([plan.numbers for plan in plans])).to(device)
    highest = torch.zeros((), device=device)  # logits of all steps added up: NaN once one was, and looked at once
    scales = torch.tensor([[plan.guidance] for plan in plans], device=device)

    slots = int(prompt_lengths.max()) + stage.length  # the last one is never read: surplus padding goes there
    cache = decoder.new_cache(branches * len(plans), slots)
    live = np.arange(len(plans))  # the plans whose rows are in the cache

    for turn in range(stops.shape[1]):
        stop = stops[live, turn]
        moves = stop > stops[live, turn - 1] if turn else np.ones(len(live), dtype=bool)
        busy = moves & ~ended[live]
        if not busy.any():
            break
        if 2 * busy.sum() <= len(live):  # half of the rows have nothing more to do
            kept_rows = np.concatenate([np.flatnonzero(busy) + branch * len(live) for branch in range(branches)])
            cache.keep_rows(torch.from_numpy(kept_rows).to(device))
            live, stop, busy = live[busy], stop[busy], busy[busy]

        # Feed every row up to its stop.
        first = np.where(busy, stops[live, turn - 1] + 1, stop) if turn else 1 - prompt_lengths
        length = int((stop - first)[busy].max()) + 1
        rows = torch.from_numpy(live).to(device)
        queries = torch.from_numpy(first).to(device)[:, None] + torch.arange(length, device=device)
        if turn:
            fed = tokens[rows].gather(1, (queries - 1).clamp(0, stage.length - 1))
            inputs = stage.embed(fed).repeat(branches, 1, 1)
        else:
            inputs = _prefill_inputs(decoder, stage, plans, stop, tokens, length)
        positions = queries + torch.from_numpy(prompt_lengths[live] - 1).to(device)[:, None]
        positions = positions.clamp(max=slots - 1).repeat(branches, 1)
        ends = (prompt_lengths[live] + stop)[busy]
        seen = int(ends.max())
        uniform = length == 1 and int(ends.min()) == seen
        hidden = decoder.forward(inputs, positions, cache, seen, uniform)
        hidden = hidden.view(branches, len(live), length, -1).transpose(0, 1)

        # Keep the latents that were asked for.
        span = first[:, None] + np.arange(length)
        wanted = (span >= 0) & (span <= stop[:, None]) & (span < keeps[live][:, None]) & busy[:, None]
        if wanted.any():
            row, step = (torch.from_numpy(index).to(device) for index in np.nonzero(wanted))
            latents[rows[row], queries[row, step]] = hidden[row, :, step].float()

        # Choose the token at the stop, where it is a free position.
        drawing = busy & draws[live, turn]
        if not drawing.any():
            continue
        last = torch.from_numpy(np.where(busy, stop - first, 0)).to(device)
        state = hidden[torch.arange(len(live), device=device), :, last]
        at = torch.from_numpy(stop).to(device)
        logits = stage.logits(state, scales[rows])
        highest = highest + logits.amax()
        chosen = choose(logits, temperatures[rows], numbers[rows, at])
        tokens[rows, at] = torch.where(torch.from_numpy(drawing).to(device), chosen, tokens[rows, at])
        sampled[live] += drawing
        if stage.end is not None:
            ended[live] |= drawing & (chosen == stage.end).cpu().numpy()

    if not bool(highest.isfinite() & latents.isfinite().all()):
        raise NotFinite("logits or latents")
    return [
        _result(plan, row, bool(has_ended), latent[: plan.keep], int(count), int(fed))
        for plan, row, has_ended, latent, count, fed in zip(
            plans, tokens.tolist(), ended, latents.cpu(), sampled, stops[:, -1], strict=True
        )
    ]


def _result(plan: Plan, row: list[int], ended: bool, latents: Tensor, sampled: int, fed: int) -> Decoded:
    """What became of a plan whose last query was `fed`."""
    length = max(len(plan.tokens), plan.free[-1] + 1 if plan.free else 0)
    prefilled = fed - sum(position < fed for position in plan.free)
    if ended:  # only a text ends, and its free positions are all that follow its forced tokens
        length = plan.free[0] + sampled - 1
        prefilled = plan.free[0]
    return Decoded(tuple(row[:length]), ended, latents, sampled, len(plan.prompts[0]) + prefilled)


def _schedule(plans: Sequence[Plan]) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Where each row stops in each round, [B, rounds], and whether it chooses a token there.

    A row without free positions left repeats its last stop, choosing nothing. Latents beyond the last free
    position need one more stop, without a choice.
    """
    rows = []
    for plan in plans:
        free = np.asarray(plan.free, dtype=np.int64)
        choices = np.ones(len(free), dtype=bool)
        if plan.keep - 1 > (free[-1] if len(free) else -1):
            free, choices = np.append(free, plan.keep - 1), np.append(choices, False)
        rows.append((free, choices))
    rounds = max(len(free) for free, _ in rows)
    stops = np.stack([np.pad(free, (0, rounds - len(free)), mode="edge") for free, _ in rows])
    draws = np.stack([np.pad(choices, (0, rounds - len(choices))) for _, choices in rows])
    return stops, draws


def _prefill_inputs(
    decoder: Decoder, stage: Stage, plans: Sequence[Plan], stop: Ints, tokens: Tensor, length: int
) -> Tensor:
    """Embeddings of each prompt and of its forced tokens before the first stop, [branches * B, length, D]."""
    device = tokens.device
    branches = []
    for branch in range(len(plans[0].prompts)):
        ids = torch.zeros(len(plans), length, dtype=torch.long)
        for index, plan in enumerate(plans):
            ids[index, : len(plan.prompts[branch])] = torch.tensor(plan.prompts[branch])
        branches.append(decoder.embed_tokens(ids.to(device)))
    for index, plan in enumerate(plans):
        start, count = len(plan.prompts[0]), int(stop[index])
        if count:
            forced = stage.embed(tokens[index, :count])
            for inputs in branches:
                inputs[index, start : start + count] = forced
    return torch.cat(branches)
