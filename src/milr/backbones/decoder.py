"""A lean Llama over a static KV cache, with the weights of transformers' own module.

Layout. A row's token at position p lies in slot p of the cache and a query at p sees the slots up to p, so
shorter rows are padded on the right: what padding writes lies in slots that are written again before anything
sees them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@dataclass
class Cache:
    """Keys and values of every layer, [R, kv_heads, slots, head_dim], with the rotation of every slot."""

    keys: list[Tensor]
    values: list[Tensor]
    cosine: Tensor
    sine: Tensor

    @property
    def rows(self) -> int:
        return self.keys[0].shape[0]

    @property
    def slots(self) -> int:
        return self.keys[0].shape[2]

    def of_rows(self, rows: Tensor) -> Cache:
        """A copy that holds only these rows, in this order."""
        keys = [keys.index_select(0, rows) for keys in self.keys]
        return Cache(keys, [values.index_select(0, rows) for values in self.values], self.cosine, self.sine)


@dataclass(frozen=True)
class Layer:
    """One layer's weights. Biases are None where a model has none."""

    norm_attention: Tensor  # [D]
    qkv: Tensor  # [(heads + 2 kv_heads) head_dim, D]
    qkv_bias: Tensor | None
    turned_norm: Tensor | None  # [heads + kv_heads, head_dim], of queries and keys before they are turned (Qwen3)
    out: Tensor  # [D, heads head_dim]
    out_bias: Tensor | None
    norm_mlp: Tensor  # [D]
    gate_up: Tensor  # [2 I, D]
    gate_up_bias: Tensor | None
    down: Tensor  # [D, I]
    down_bias: Tensor | None


class Decoder:
    """A `LlamaModel`, or one of its kind (Qwen), run over our own cache, with the module's own weights.

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
        self.gates_with_silu = isinstance(self.activation, nn.SiLU) or config.hidden_act in ("silu", "swish")
        self.embed_tokens: nn.Embedding = language_model.embed_tokens
        self.rotary: nn.Module = language_model.rotary_emb
        # Of models that see, whose positions are of time, height and width (Qwen2.5-VL, Qwen3-VL).
        self.has_three_axes = "mrope_section" in (getattr(config, "rope_parameters", None) or {})
        self.norm: Tensor = language_model.norm.weight
        self.layers = [_layer(layer) for layer in language_model.layers]

    @property
    def weight(self) -> Tensor:
        """A weight, for its device and dtype."""
        return self.embed_tokens.weight

    @property
    def layer_bytes(self) -> int:
        """What every pass reads of the layers' matrices."""
        matrices = [matrix for layer in self.layers for matrix in (layer.qkv, layer.out, layer.gate_up, layer.down)]
        return sum(matrix.numel() * matrix.element_size() for matrix in matrices)

    def work(self, tokens: int) -> int:
        """Floating point operations to read so many tokens, each behind those before it: two for every weight, and four
        for every number of every query and earlier key."""
        weights = self.layer_bytes // self.weight.element_size()
        scores = len(self.layers) * self.heads * self.head_dim * tokens * (tokens + 1) // 2
        return 2 * weights * tokens + 4 * scores

    def new_cache(self, rows: int, slots: int, memory: Tensor | None = None) -> Cache:
        """An empty cache, in `memory` (flat, of `cache_size` numbers) where that is given."""
        weight = self.weight
        shape = (2, len(self.layers), rows, self.kv_heads, slots, self.head_dim)
        if memory is None:
            # Zeros, not empty: a masked slot has weight 0, and 0 * NaN would be NaN.
            memory = torch.zeros(self.cache_size(rows, slots), dtype=weight.dtype, device=weight.device)
        keys, values = memory[: self.cache_size(rows, slots)].view(shape)
        return Cache(list(keys), list(values), *self.rotation(slots))

    def cache_size(self, rows: int, slots: int) -> int:
        """How many numbers a cache holds."""
        return 2 * len(self.layers) * rows * self.kv_heads * slots * self.head_dim

    def rotation(self, slots: int) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine of every position, [slots, head_dim]: rotate_half(x) * sin is roll(x, half) * sine."""
        positions = torch.arange(slots, device=self.weight.device)[None]
        if self.has_three_axes:  # of a text all three are the same
            positions = positions[None].expand(3, -1, -1)
        cosine, sine = self.rotary(self.weight.new_empty(()), positions)
        if cosine.dim() == 4:  # of some versions of transformers, one for each axis
            cosine, sine = cosine[0], sine[0]
        half = self.head_dim // 2
        return cosine[0].contiguous(), torch.cat([-sine[0, :, :half], sine[0, :, half:]], -1)

    def forward(
        self, inputs: Tensor, positions: Tensor, cache: Cache, seen: int, uniform: bool, rows: Tensor | None = None
    ) -> Tensor:
        """Final hidden states (after the last norm) of `inputs`, whose keys and values join the cache.

        Args:
            inputs: [R, T, D] embeddings.
            positions: [R, T] their positions, which are their slots too.
            seen: slots that any query may look at (the largest position of interest + 1).
            uniform: every row of interest has the single position seen - 1, so no mask is needed.
            rows: [R] the rows of the cache; all of them by default.
        """
        count, length, _ = inputs.shape
        where = (torch.arange(count, device=inputs.device) if rows is None else rows)[:, None]
        cosine, sine = cache.cosine[positions][:, :, None], cache.sine[positions][:, :, None]
        mask = None
        if not uniform:
            groups = self.heads // self.kv_heads
            mask = (torch.arange(seen, device=inputs.device) <= positions[:, :, None])[:, None]
            mask = mask.repeat(1, 1, groups, 1) if groups > 1 else mask
        turned, width = self.heads + self.kv_heads, self.head_dim
        x = inputs
        for layer, keys, values in zip(self.layers, cache.keys, cache.values, strict=True):
            normed = F.rms_norm(x, (self.hidden_size,), layer.norm_attention, self.epsilon)
            heads = F.linear(normed, layer.qkv, layer.qkv_bias).view(count, length, -1, width)
            query_key, value = heads[:, :, :turned], heads[:, :, turned:]
            if layer.turned_norm is not None:
                query_key = F.rms_norm(query_key, (width,), None, self.epsilon) * layer.turned_norm
            query_key = query_key * cosine + query_key.roll(width // 2, -1) * sine
            keys[where, :, positions] = query_key[:, :, self.heads :]
            values[where, :, positions] = value
            known = (keys[:, :, :seen], values[:, :, :seen])
            if rows is not None:
                known = (keys[rows, :, :seen], values[rows, :, :seen])
            # Query heads that share a key head are just more queries of it: [R, kv_heads, groups * T, width].
            query = query_key[:, :, : self.heads].transpose(1, 2).reshape(count, self.kv_heads, -1, width)
            mixed = F.scaled_dot_product_attention(query, *known, attn_mask=mask)
            mixed = mixed.reshape(count, self.heads, length, width).transpose(1, 2).reshape(count, length, -1)
            x = x + F.linear(mixed, layer.out, layer.out_bias)
            normed = F.rms_norm(x, (self.hidden_size,), layer.norm_mlp, self.epsilon)
            gate, up = F.linear(normed, layer.gate_up, layer.gate_up_bias).chunk(2, -1)
            x = x + F.linear(self.activation(gate) * up, layer.down, layer.down_bias)
        return F.rms_norm(x, (self.hidden_size,), self.norm, self.epsilon)

    def step(
        self, x: Tensor, positions: Tensor, turn: tuple[Tensor, Tensor], cache: Cache, seen: int, mask: Tensor | None
    ) -> Tensor:
        """`forward` of one token a row with all that can be prepared beforehand: [R, D] -> [R, D].

        Args:
            positions: [R].
            turn: cosine and sine of these positions, [R, 1, head_dim].
            mask: [R, 1, 1, seen], True where a row may look; None: all rows may look at all `seen` slots.
        """
        count, width, turned = x.shape[0], self.head_dim, self.heads + self.kv_heads
        size, epsilon, linear = (self.hidden_size,), self.epsilon, F.linear
        rows = torch.arange(count, device=x.device)
        cosine, sine = turn
        for layer, keys, values in zip(self.layers, cache.keys, cache.values, strict=True):
            normed = F.rms_norm(x, size, layer.norm_attention, epsilon)
            heads = linear(normed, layer.qkv, layer.qkv_bias).view(count, -1, width)
            query_key = heads[:, :turned]
            if layer.turned_norm is not None:
                query_key = F.rms_norm(query_key, (width,), None, epsilon) * layer.turned_norm
            query_key = query_key * cosine + query_key.roll(width // 2, -1) * sine
            keys[rows, :, positions] = query_key[:, self.heads :]
            values[rows, :, positions] = heads[:, turned:]
            query = query_key[:, : self.heads].view(count, self.kv_heads, -1, width)
            mixed = F.scaled_dot_product_attention(query, keys[:, :, :seen], values[:, :, :seen], attn_mask=mask)
            x = x + linear(mixed.reshape(count, -1), layer.out, layer.out_bias)
            gate_up = linear(F.rms_norm(x, size, layer.norm_mlp, epsilon), layer.gate_up, layer.gate_up_bias)
            gate, up = gate_up.chunk(2, -1)
            x = x + linear(self.activation(gate).mul_(up), layer.down, layer.down_bias)
        return F.rms_norm(x, size, self.norm, epsilon)


@contextmanager
def planless_attention(device: torch.device) -> Iterator[None]:
    """Attention without cuDNN, which makes a plan (some 40 ms) for every length that it has not met: each new token
    brings one."""
    if device.type == "cuda":
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
            yield
    else:
        yield


def _layer(layer: Any) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return Layer(
        layer.input_layernorm.weight,
        *_fuse(attention.q_proj, attention.k_proj, attention.v_proj),
        _turned_norm(attention),
        attention.o_proj.weight,
        attention.o_proj.bias,
        layer.post_attention_layernorm.weight,
        *_fuse(mlp.gate_proj, mlp.up_proj),
        mlp.down_proj.weight,
        mlp.down_proj.bias,
    )


def _turned_norm(attention: Any) -> Tensor | None:
    if (queries := getattr(attention, "q_norm", None)) is None:
        return None
    heads = attention.q_proj.out_features // attention.head_dim
    kv_heads = attention.k_proj.out_features // attention.head_dim
    return torch.cat([queries.weight.expand(heads, -1), attention.k_norm.weight.expand(kv_heads, -1)])


def _fuse(*linears: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Stack the weights of linear layers and let each layer's own weight be a view of the stack."""
    weight = torch.cat([linear.weight.data for linear in linears])
    start = 0
    for linear in linears:
        linear.weight.data = weight[start : start + linear.out_features]
        start += linear.out_features
    biases = [linear.bias.data for linear in linears if linear.bias is not None]
    return weight, torch.cat(biases) if biases else None
