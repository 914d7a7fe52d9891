"""One decode step by Triton's kernels. Optional: without Triton the same step runs in torch's own calls (decoder.py).

Decoding reads every weight once a token, and that is its floor. What keeps a step from it are launches, and kernels too
short to fill the memory bus. So a layer is five kernels where rows are one or two (one draft and its unconditional
twin): what lies between two matrices (norm, rotation, cache write, gate, residual) is done by the kernels that read
the matrices. With more rows the vendor's library multiplies, and five small kernels do the rest. (The five on the
matrix units, for 4 to 32 rows, were tried and took 1.2 to 1.3 times as long: docs/adr/0011.)

Kernels are launched before their predecessor is through (programmatic dependent launch, from compute capability 9.0):
they fetch what never changes, weights, and wait only then.

Every step equals its torch twin in float32 up to rounding; tests run both, on a CPU in Triton's interpreter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from milr.backbones import triton_kernels as device
from milr.backbones.decoder import Cache, Decoder, Layer

if TYPE_CHECKING:
    from milr.backbones.board import Board


Where = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # cosine, sine, offset, at, query
Block = tuple[int, int, int, bool]  # outputs and inputs of a block, warps, whether the loop over inputs is rolled


@dataclass(frozen=True)
class Tuning:
    """Sizes of blocks. They change speed, and of results the rounding."""

    pdl: bool = True
    few_rows: int = 2  # up to so many rows a layer is five kernels
    qkv: Block = (2, 2048, 4, False)
    out: Block = (4, 1024, 4, True)
    gate: Block = (4, 2048, 4, False)
    down: Block = (8, 1024, 4, False)
    attend: tuple[int, int, int] = (32, 1, 1)  # slots of a block, warps, stages where keys are split
    attend_many: tuple[int, int, int] = (16, 1, 2)
    attend_window: tuple[int, int, int, int] = (32, 64, 4, 2)  # queries and slots of a block, warps, stages
    programs: int = 528  # of attention that are wanted at once: below, keys are split
    ahead: int = 4 * 2**20  # bytes of the next weights that are fetched during attention, where rows are few
    heads: int = 8  # turned by one program, where rows are many


class Kernels:
    """Decoding steps of a model by these kernels. Scratch memory belongs to the captured graphs."""

    def __init__(self, decoder: Decoder, tuning: Tuning) -> None:
        self.decoder, self.tuning = decoder, tuning
        self._arrived: dict[int, Tensor] = {}

    def step(self, board: Board) -> None:
        """`Board`'s pass: embed, layers, head, choice."""
        decoder, shape, stage = self.decoder, board.shape, board.stage
        rows, pdl = shape.places * shape.branches, self._pdl
        x = torch.empty(rows, decoder.hidden_size, dtype=decoder.weight.dtype, device=decoder.weight.device)
        block = min(1024, triton.next_power_of_2(decoder.hidden_size))
        device.embed[(rows, triton.cdiv(decoder.hidden_size, block))](
            stage.table, board.tokens, board.at, x, shape.length, shape.places, decoder.hidden_size, block, **pdl
        )
        hidden = self.forward(x, board.cache, board.offset, board.at)
        if shape.keep:
            block = triton.next_power_of_2(decoder.hidden_size)
            device.keep[(rows,)](
                hidden, board.at, board.latents, shape.places, shape.branches, shape.keep, decoder.hidden_size, block,
                num_warps=8, **pdl,
            )  # fmt: skip
        logits = stage.head(hidden)
        vocabulary = logits.shape[1]
        whole = triton.next_power_of_2(vocabulary)
        device.choose[(shape.places,)](
            logits, board.scales, board.temperatures, board.numbers, board.free, board.tokens, board.at, board.health,
            board.ended, shape.length, shape.places, -1 if stage.end is None else stage.end, vocabulary,
            shape.branches == 2, whole if whole <= 16_384 else 4096, num_warps=16, **pdl,
        )  # fmt: skip

    def windowed(self, board: Board, fed: Tensor) -> Tensor:
        """Final hidden states [R, W, D] of the tokens [B, W] that stand from each draft's next position on."""
        window = fed.shape[1]
        inputs = F.embedding(fed, board.stage.table).repeat(board.shape.branches, 1, 1)
        hidden = self.forward(inputs.flatten(0, 1), board.cache, board.offset, board.at, window)
        return hidden.view(-1, window, self.decoder.hidden_size)

    def forward(self, x: Tensor, cache: Cache, offset: Tensor, at: Tensor, window: int = 1) -> Tensor:
        """Final hidden states [R, D] of `window` tokens a row of the cache, one behind the other from slot offset + at
        [B] of its draft on. Overwrites x [R, D]."""
        decoder, rows = self.decoder, len(x)
        query = torch.empty(rows, decoder.heads, decoder.head_dim, dtype=x.dtype, device=x.device)
        mixed, normed = x.new_empty(rows, decoder.heads * decoder.head_dim), torch.empty_like(x)
        gated = x.new_empty(rows, decoder.layers[0].gate_up.shape[0] // 2)
        where = (cache.cosine, cache.sine, offset, at, query)
        delta: Tensor | None = None
        for layer, keys, values in zip(decoder.layers, cache.keys, cache.values, strict=True):
            if rows <= self.tuning.few_rows and window == 1:
                self._layer_of_few(layer, x, where, keys, values, mixed, gated)
            else:
                delta = self._layer_of_many(layer, x, delta, normed, where, keys, values, mixed, gated, window)
        self._norm(x, delta, decoder.norm, normed)
        return normed

    def _layer_of_few(
        self, layer: Layer, x: Tensor, where: Where, keys: Tensor, values: Tensor, mixed: Tensor, gated: Tensor
    ) -> None:
        """A layer for one or two rows: five kernels, each of which multiplies by a matrix but for attention."""
        decoder, tuning, pdl = self.decoder, self.tuning, self._pdl
        size, width, wide, two = x.shape[1], decoder.head_dim, gated.shape[1], len(x) == 2
        *_, offset, at, query = where
        bn, bk, warps, roll = self._block(tuning.qkv, size)
        bn = min(bn, width)
        device.attention_inputs[(decoder.heads + 2 * decoder.kv_heads, width // bn)](
            x, layer.norm_attention, layer.qkv, _or(layer.qkv_bias, x), *where, keys, values, keys.shape[2], len(at),
            decoder.epsilon, size, decoder.heads, decoder.kv_heads, width, two, layer.qkv_bias is not None, bn, bk,
            roll, num_warps=warps, **pdl,
        )  # fmt: skip
        self._attention(layer, query, keys, values, offset, at, mixed)
        bn, bk, warps, roll = self._block(tuning.out, mixed.shape[1])
        device.added[(triton.cdiv(size, bn),)](
            mixed, layer.out, _or(layer.out_bias, x), x, mixed.shape[1], size, two, layer.out_bias is not None, bn, bk,
            roll, num_warps=warps, **pdl,
        )  # fmt: skip
        bn, bk, warps, roll = self._block(tuning.gate, size)
        device.gated[(triton.cdiv(wide, bn // 2),)](
            x, layer.norm_mlp, layer.gate_up, _or(layer.gate_up_bias, x), gated, decoder.epsilon, size, wide, two,
            layer.gate_up_bias is not None, bn, bk, roll, num_warps=warps, **pdl,
        )  # fmt: skip
        bn, bk, warps, roll = self._block(tuning.down, wide)
        device.added[(triton.cdiv(size, bn),)](
            gated, layer.down, _or(layer.down_bias, x), x, wide, size, two, layer.down_bias is not None, bn, bk, roll,
            num_warps=warps, **pdl,
        )  # fmt: skip

    def _layer_of_many(
        self,
        layer: Layer,
        x: Tensor,
        delta: Tensor | None,
        normed: Tensor,
        where: Where,
        keys: Tensor,
        values: Tensor,
        mixed: Tensor,
        gated: Tensor,
        window: int,
    ) -> Tensor:
        """A layer with the library's products. What it adds to x is left to the next norm."""
        decoder, rows, wide = self.decoder, len(x), gated.shape[1]
        *_, offset, at, query = where
        self._norm(x, delta, layer.norm_attention, normed)
        qkv = F.linear(normed, layer.qkv, layer.qkv_bias)
        at_once = self.tuning.heads
        device.turned[(rows, triton.cdiv(decoder.heads + 2 * decoder.kv_heads, at_once))](
            qkv, *where, keys, values, keys.shape[2], len(at), decoder.heads, decoder.kv_heads, decoder.head_dim,
            window, at_once, num_warps=4, **self._pdl,
        )  # fmt: skip
        if window == 1:
            self._attention(layer, query, keys, values, offset, at, mixed)
        else:
            self._attention_of_window(query, keys, values, offset, at, mixed, window)
        self._norm(x, F.linear(mixed, layer.out, layer.out_bias), layer.norm_mlp, normed)
        gate_up = F.linear(normed, layer.gate_up, layer.gate_up_bias)
        device.gate[(rows, triton.cdiv(wide, 1024))](gate_up, gated, wide, 1024, num_warps=4, **self._pdl)
        return F.linear(gated, layer.down, layer.down_bias)

    def _norm(self, x: Tensor, delta: Tensor | None, weight: Tensor, out: Tensor) -> None:
        block = triton.next_power_of_2(x.shape[1])
        device.normed[(len(x),)](
            x, _or(delta, x), weight, out, self.decoder.epsilon, x.shape[1], block, delta is not None, num_warps=8,
            **self._pdl,
        )  # fmt: skip

    def _attention(
        self, layer: Layer, query: Tensor, keys: Tensor, values: Tensor, offset: Tensor, at: Tensor, out: Tensor
    ) -> None:
        rows, heads, width = query.shape
        tuning, pairs = self.tuning, rows * self.decoder.kv_heads
        wanted = max(1, tuning.programs // pairs)
        splits = min(16, 1 << (wanted.bit_length() - 1))
        block, warps, stages = tuning.attend if splits > 1 else tuning.attend_many
        parts = torch.empty(rows * heads, splits, width, dtype=torch.float32, device=query.device)
        tops, masses = parts.new_empty(rows * heads, splits), parts.new_empty(rows * heads, splits)
        few = rows <= tuning.few_rows and query.is_cuda  # the interpreter on a CPU cannot fetch ahead
        fetched = tuning.ahead // query.element_size() if few else 0
        first = min(layer.out.numel(), fetched)
        second = max(0, min(layer.gate_up.numel(), fetched - first))
        device.attend[(pairs, splits)](
            query, keys, values, offset, at, out, parts, tops, masses, self._counters(pairs), keys.shape[2], len(at),
            width**-0.5, layer.out, first, layer.gate_up, second, heads, self.decoder.kv_heads, width, block, splits,
            stages, fetched > 0, num_warps=warps, **self._pdl,
        )  # fmt: skip

    def _attention_of_window(
        self, query: Tensor, keys: Tensor, values: Tensor, offset: Tensor, at: Tensor, out: Tensor, window: int
    ) -> None:
        rows, heads, width = query.shape
        queries, block, warps, stages = self.tuning.attend_window
        served = window * heads // self.decoder.kv_heads
        queries = max(16, min(queries, triton.next_power_of_2(served)))  # the matrix unit wants at least 16
        device.attend_window[(rows // window * self.decoder.kv_heads, triton.cdiv(served, queries))](
            query, keys, values, offset, at, out, keys.shape[2], len(at), width**-0.5, heads, self.decoder.kv_heads,
            width, window, queries, block, stages, num_warps=warps, **self._pdl,
        )  # fmt: skip

    def _counters(self, pairs: int) -> Tensor:
        """How many parts of each key head's attention are through. Zero between layers, and never given back: captured
        graphs hold the address."""
        if pairs not in self._arrived:
            self._arrived[pairs] = torch.zeros(pairs, dtype=torch.int32, device=self.decoder.weight.device)
        return self._arrived[pairs]

    @property
    def _pdl(self) -> dict[str, Any]:
        # The interpreter on a CPU knows no launch options.
        return {"PDL": True, "launch_pdl": True} if self.tuning.pdl else {"PDL": False}

    @staticmethod
    def _block(wanted: Block, length: int) -> Block:
        outputs, at_once, warps, roll = wanted
        return outputs, min(at_once, triton.next_power_of_2(length)), warps, roll


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """A pointer that a kernel may hold, though it will not read it."""
    return other if tensor is None else tensor


def kernels_for(decoder: Decoder) -> Kernels | None:
    """The kernels for a model on a GPU; None where they do not know its kind of layer, or nobody tried them on its kind
    of GPU: their fetches and waits are written for NVIDIA's, and bfloat16 needs compute capability 8."""
    width = decoder.head_dim
    if (
        decoder.layers[0].turned_norm is not None
        or not decoder.gates_with_silu
        or width & (width - 1)
        or decoder.heads % decoder.kv_heads
    ):
        return None
    capability = torch.cuda.get_device_capability(decoder.weight.device)
    if torch.version.hip is not None or capability < (8, 0):
        return None
    return Kernels(decoder, replace(Tuning(), pdl=capability >= (9, 0)))
