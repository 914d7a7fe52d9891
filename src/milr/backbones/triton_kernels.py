"""The kernels of one decode step, in Triton. What launches them, and when which, is in kernels.py.

A float32 dot is exact ("ieee"), so that every one equals its torch twin up to rounding. Where `PDL` is set, a kernel is
launched before its predecessor is through: it fetches what never changes, weights, and waits only then.
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def embed(table, tokens, at, x, length, places, D: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """x [R, D]: the input of the token before each draft's next."""
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    place = row % places
    token = tl.load(tokens + place * length + tl.load(at + place) - 1)
    tl.store(x + row * D + column, tl.load(table + token * D + column, mask=column < D), mask=column < D)


@triton.jit
def normed(x, delta, weight, out, epsilon, D: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr, PDL: tl.constexpr):
    """x += delta (both [R, D]) where there is one, and out = the RMS norm of it."""
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < D
    scale = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    value = tl.load(x + row * D + column, mask=inside, other=0.0)
    if ADD:
        value += tl.load(delta + row * D + column, mask=inside, other=0.0)
        tl.store(x + row * D + column, value, mask=inside)
    value = value.to(tl.float32)
    value = value * tl.rsqrt(tl.sum(value * value, 0) / D + epsilon) * scale
    tl.store(out + row * D + column, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def keep(hidden, at, latents, places, branches, keep, D: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """The final hidden states [R, D] of positions that are to be kept."""
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    place = row % places
    position = tl.load(at + place)
    if position < keep:
        value = tl.load(hidden + row * D + column, mask=column < D)
        to = latents + ((place * (keep + 1) + position) * branches + row // places) * D
        tl.store(to + column, value.to(tl.float32), mask=column < D)


@triton.jit
def _times_block(weight, x, norm, column, first, second, first_square, second_square, K: tl.constexpr,
                 TWO: tl.constexpr, NORM: tl.constexpr):  # fmt: skip
    """What the columns of one block add to the products and to the squares of the rows."""
    inside = column < K
    known = weight.to(tl.float32)
    a = tl.load(x + column, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        scale = tl.load(norm + column, mask=inside, other=0.0).to(tl.float32)
        first_square += a * a
        a *= scale
    first += known * a[None, :]
    if TWO:
        b = tl.load(x + K + column, mask=inside, other=0.0).to(tl.float32)
        if NORM:
            second_square += b * b
            b *= scale
        second += known * b[None, :]
    return first, second, first_square, second_square


@triton.jit
def _times(x, rows, norm, epsilon, K: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, ROLL: tl.constexpr,
           TWO: tl.constexpr, NORM: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """The products of one or two rows x [K], RMS-normed if asked for, with the BN matrix rows at pointers `rows`."""
    column = tl.arange(0, BK)
    inside = column < K
    weight = tl.load(rows[:, None] + column[None, :], mask=inside[None, :], other=0.0)
    if PDL:
        gdc_wait()  # the weights are under way by now
    first = tl.zeros([BN, BK], tl.float32)
    second = tl.zeros([BN, BK], tl.float32)
    first_square = tl.zeros([BK], tl.float32)
    second_square = tl.zeros([BK], tl.float32)
    if ROLL:
        for start in range(0, K, BK):
            more = start + BK + column
            coming = tl.load(rows[:, None] + more[None, :], mask=(more < K)[None, :], other=0.0)
            first, second, first_square, second_square = _times_block(
                weight, x, norm, start + column, first, second, first_square, second_square, K, TWO, NORM
            )
            weight = coming
    else:
        for start in tl.static_range(0, K, BK):
            if start > 0:
                inside = start + column < K
                weight = tl.load(rows[:, None] + (start + column)[None, :], mask=inside[None, :], other=0.0)
            first, second, first_square, second_square = _times_block(
                weight, x, norm, start + column, first, second, first_square, second_square, K, TWO, NORM
            )
    one = tl.sum(first, 1)
    two = tl.sum(second, 1)
    if NORM:
        one *= tl.rsqrt(tl.sum(first_square, 0) / K + epsilon)
        two *= tl.rsqrt(tl.sum(second_square, 0) / K + epsilon)
    return one, two


@triton.jit
def _turned_store(values, row, head, first, cosine, sine, offset, at, places, q, keys, value_cache, slots,
                  H: tl.constexpr, KV: tl.constexpr, W: tl.constexpr, PAIRS: tl.constexpr):  # fmt: skip
    """Store PAIRS pairs (d, d + W/2) of one head of one row: queries and keys turned, keys and values in the cache."""
    low, high = tl.split(tl.reshape(values, (PAIRS, 2)))
    d = first + tl.arange(0, PAIRS)
    place = row % places
    position = tl.load(offset + place) + tl.load(at + place)
    if head < H + KV:
        c0 = tl.load(cosine + position * W + d).to(tl.float32)
        c1 = tl.load(cosine + position * W + W // 2 + d).to(tl.float32)
        s0 = tl.load(sine + position * W + d).to(tl.float32)
        s1 = tl.load(sine + position * W + W // 2 + d).to(tl.float32)
        turned = low * c0 + high * s0
        high = high * c1 + low * s1
        low = turned
    kind = q.dtype.element_ty
    if head < H:
        to = q + (row * H + head) * W
    elif head < H + KV:
        to = keys + ((row * KV + head - H).to(tl.int64) * slots + position) * W
    else:
        to = value_cache + ((row * KV + head - H - KV).to(tl.int64) * slots + position) * W
    tl.store(to + d, low.to(kind))
    tl.store(to + W // 2 + d, high.to(kind))


@triton.jit
def attention_inputs(x, norm, weight, bias, cosine, sine, offset, at, q, keys, values, slots, places, epsilon,
                      D: tl.constexpr, H: tl.constexpr, KV: tl.constexpr, W: tl.constexpr, TWO: tl.constexpr,
                      BIAS: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, ROLL: tl.constexpr,
                      PDL: tl.constexpr):  # fmt: skip
    """Norm, projection to queries, keys and values, rotation, cache: BN/2 pairs of one head, one or two rows."""
    if PDL:
        gdc_launch_dependents()
    head = tl.program_id(0)
    first = tl.program_id(1) * (BN // 2)
    n = tl.arange(0, BN)
    output = head * W + first + n // 2 + (n % 2) * (W // 2)  # the two of a pair side by side
    one, two = _times(x, weight + output.to(tl.int64) * D, norm, epsilon, D, BN, BK, ROLL, TWO, True, PDL)
    if BIAS:
        extra = tl.load(bias + output).to(tl.float32)
        one += extra
        two += extra
    _turned_store(one, 0, head, first, cosine, sine, offset, at, places, q, keys, values, slots, H, KV, W, BN // 2)
    if TWO:
        _turned_store(two, 1, head, first, cosine, sine, offset, at, places, q, keys, values, slots, H, KV, W, BN // 2)


@triton.jit
def turned(qkv, cosine, sine, offset, at, q, keys, values, slots, places, H: tl.constexpr, KV: tl.constexpr,
            W: tl.constexpr, WINDOW: tl.constexpr, AT_ONCE: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """The same for many rows, after the projection: some heads of one row. WINDOW rows stand one behind the other."""
    row = tl.program_id(0)
    seat = row // WINDOW  # its row of the cache
    head = (tl.program_id(1) * AT_ONCE + tl.arange(0, AT_ONCE))[:, None]
    d = tl.arange(0, W // 2)[None, :]
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    place = seat % places
    position = tl.load(offset + place) + tl.load(at + place) + row % WINDOW
    position = tl.minimum(position, slots - 1)  # a window may run over
    there = head < H + 2 * KV
    source = qkv + (row * (H + 2 * KV) + head) * W + d
    low = tl.load(source, mask=there, other=0.0).to(tl.float32)
    high = tl.load(source + W // 2, mask=there, other=0.0).to(tl.float32)
    c0 = tl.load(cosine + position * W + d).to(tl.float32)
    c1 = tl.load(cosine + position * W + W // 2 + d).to(tl.float32)
    s0 = tl.load(sine + position * W + d).to(tl.float32)
    s1 = tl.load(sine + position * W + W // 2 + d).to(tl.float32)
    turns = head < H + KV
    new_low = tl.where(turns, low * c0 + high * s0, low).to(q.dtype.element_ty)
    new_high = tl.where(turns, high * c1 + low * s1, high).to(q.dtype.element_ty)
    to = q + (row * H + head) * W + d
    tl.store(to, new_low, mask=head < H)
    tl.store(to + W // 2, new_high, mask=head < H)
    key = (head >= H) & turns
    to = keys + ((seat * KV + head - H).to(tl.int64) * slots + position) * W + d
    tl.store(to, new_low, mask=key)
    tl.store(to + W // 2, new_high, mask=key)
    value = (head >= H + KV) & there
    to = values + ((seat * KV + head - H - KV).to(tl.int64) * slots + position) * W + d
    tl.store(to, new_low, mask=value)
    tl.store(to + W // 2, new_high, mask=value)


@triton.jit
def _fetch(weight, size, program, programs, PART: tl.constexpr):
    """Ask for this program's part of the first `size` numbers of a matrix to be brought into the L2 cache."""
    line: tl.constexpr = 1024 // weight.dtype.element_ty.primitive_bitwidth  # numbers in 128 bytes
    share = tl.cdiv(tl.cdiv(size, line), programs)
    for start in range(0, share, PART):
        mine = start + tl.arange(0, PART)
        number = tl.minimum((program * share + tl.minimum(mine, share - 1)) * line, size - line)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [(weight + number).to(tl.int64)], dtype=tl.int32,
            is_pure=False, pack=1,
        )  # fmt: skip


@triton.jit
def attend(q, keys, values, offset, at, out, parts, tops, masses, arrived, slots, places, scale, first_weight,
            first_size, second_weight, second_size, H: tl.constexpr, KV: tl.constexpr, W: tl.constexpr,
            BLOCK: tl.constexpr, SPLITS: tl.constexpr, STAGES: tl.constexpr, FETCH: tl.constexpr,
            PDL: tl.constexpr):  # fmt: skip
    """Attention of one token's queries over the slots that their row has, in SPLITS parts: one key head, one part.

    Whichever part of a key head is through last puts all of them together. Where the keys leave the memory bus idle,
    the weights that come next are fetched meanwhile.
    """
    pair = tl.program_id(0)  # row * KV + key head
    split = tl.program_id(1)
    if PDL:
        gdc_launch_dependents()
    if FETCH:
        program = pair * SPLITS + split
        _fetch(first_weight, first_size, program, tl.num_programs(0) * SPLITS, 128)
        _fetch(second_weight, second_size, program, tl.num_programs(0) * SPLITS, 128)
    if PDL:
        gdc_wait()
    row = pair // KV
    place = row % places
    length = (tl.load(offset + place) + tl.load(at + place) + 1).to(tl.int32)
    share = tl.cdiv(tl.cdiv(length, SPLITS), BLOCK) * BLOCK
    start = split * share
    end = tl.minimum(length, start + share)
    d = tl.arange(0, W)
    group: tl.constexpr = H // KV
    to_keys = keys + pair.to(tl.int64) * slots * W
    to_values = values + pair.to(tl.int64) * slots * W
    if group == 1:
        query = tl.load(q + pair * W + d).to(tl.float32) * scale
        top = -float("inf")
        mass = 0.0
        sums = tl.zeros([W], tl.float32)
        for slot in tl.range(start, end, BLOCK, num_stages=STAGES):
            t = slot + tl.arange(0, BLOCK)
            inside = t < end
            key = tl.load(to_keys + t[:, None] * W + d[None, :], mask=inside[:, None], other=0.0)
            value = tl.load(to_values + t[:, None] * W + d[None, :], mask=inside[:, None], other=0.0)
            score = tl.where(inside, tl.sum(key.to(tl.float32) * query[None, :], 1), -float("inf"))
            higher = tl.maximum(top, tl.max(score, 0))
            chance = tl.exp(score - higher)
            fade = tl.exp(top - higher)
            sums = sums * fade + tl.sum(chance[:, None] * value.to(tl.float32), 0)
            mass = mass * fade + tl.sum(chance, 0)
            top = higher
        if SPLITS == 1:
            tl.store(out + pair * W + d, (sums / mass).to(out.dtype.element_ty))
        else:
            tl.store(parts + (pair * SPLITS + split) * W + d, sums)
            tl.store(tops + pair * SPLITS + split, top)
            tl.store(masses + pair * SPLITS + split, mass)
    else:  # queries that share a key head, as rows of a small matrix; the matrix unit wants at least 16
        rows: tl.constexpr = 16 if group <= 16 else triton.next_power_of_2(group)
        g = tl.arange(0, rows)
        head = row * H + (pair % KV) * group + g
        query = tl.load(q + head[:, None] * W + d[None, :], mask=(g < group)[:, None], other=0.0)
        tops_here = tl.full([rows], -float("inf"), tl.float32)
        masses_here = tl.zeros([rows], tl.float32)
        sums_here = tl.zeros([rows, W], tl.float32)
        for slot in tl.range(start, end, BLOCK, num_stages=STAGES):
            t = slot + tl.arange(0, BLOCK)
            inside = t < end
            key = tl.load(to_keys + t[:, None] * W + d[None, :], mask=inside[:, None], other=0.0)
            value = tl.load(to_values + t[:, None] * W + d[None, :], mask=inside[:, None], other=0.0)
            scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
            scores = tl.where(inside[None, :], scores, -float("inf"))
            highers = tl.maximum(tops_here, tl.max(scores, 1))
            chances = tl.exp(scores - highers[:, None])
            fades = tl.exp(tops_here - highers)
            sums_here = sums_here * fades[:, None] + tl.dot(chances.to(value.dtype), value, input_precision="ieee")
            masses_here = masses_here * fades + tl.sum(chances, 1)
            tops_here = highers
        shown = (g < group)[:, None]
        if SPLITS == 1:
            mixed = (sums_here / masses_here[:, None]).to(out.dtype.element_ty)
            tl.store(out + head[:, None] * W + d[None, :], mixed, mask=shown)
        else:
            part = head * SPLITS + split
            tl.store(parts + part[:, None] * W + d[None, :], sums_here, mask=shown)
            tl.store(tops + part, tops_here, mask=g < group)
            tl.store(masses + part, masses_here, mask=g < group)
    if SPLITS > 1:
        tl.debug_barrier()
        if tl.atomic_add(arrived + pair, 1) == SPLITS - 1:
            tl.store(arrived + pair, 0)  # for the next layer
            s = tl.arange(0, SPLITS)
            for member in tl.static_range(group):
                mine = row * H + (pair % KV) * group + member
                peaks = tl.load(tops + mine * SPLITS + s, cache_modifier=".cg")
                shares = tl.exp(peaks - tl.max(peaks, 0))  # a part without slots has the peak -inf, and mass 0
                portion = tl.load(parts + (mine * SPLITS + s[:, None]) * W + d[None, :], cache_modifier=".cg")
                total = tl.sum(tl.load(masses + mine * SPLITS + s, cache_modifier=".cg") * shares, 0)
                joined = tl.sum(portion * shares[:, None], 0) / total
                tl.store(out + mine * W + d, joined.to(out.dtype.element_ty))


@triton.jit
def attend_window(q, keys, values, offset, at, out, slots, places, scale, H: tl.constexpr, KV: tl.constexpr,
                   W: tl.constexpr, WINDOW: tl.constexpr, QUERIES: tl.constexpr, BLOCK: tl.constexpr,
                   STAGES: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Attention of a window's queries, each over the slots up to its own: one key head, QUERIES of those it serves."""
    pair = tl.program_id(0)  # row of the cache * KV + key head
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    seat = pair // KV
    place = seat % places
    group: tl.constexpr = H // KV
    member = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    step = member // group
    there = step < WINDOW
    row = seat * WINDOW + step
    head = row * H + (pair % KV) * group + member % group
    first = (tl.load(offset + place) + tl.load(at + place)).to(tl.int32)
    position = tl.minimum(first + step, slots - 1)
    last = tl.minimum(first + tl.minimum((tl.program_id(1) + 1) * QUERIES, WINDOW * group) // group, slots - 1)
    d = tl.arange(0, W)
    to_keys = keys + pair.to(tl.int64) * slots * W
    to_values = values + pair.to(tl.int64) * slots * W
    query = tl.load(q + head[:, None] * W + d[None, :], mask=there[:, None], other=0.0)
    tops = tl.full([QUERIES], -float("inf"), tl.float32)
    masses = tl.zeros([QUERIES], tl.float32)
    sums = tl.zeros([QUERIES, W], tl.float32)
    for slot in tl.range(0, last + 1, BLOCK, num_stages=STAGES):
        t = slot + tl.arange(0, BLOCK)
        inside = t < slots
        key = tl.load(to_keys + t[:, None] * W + d[None, :], mask=inside[:, None], other=0.0)
        value = tl.load(to_values + t[:, None] * W + d[None, :], mask=inside[:, None], other=0.0)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        scores = tl.where(t[None, :] <= position[:, None], scores, -float("inf"))
        highers = tl.maximum(tops, tl.max(scores, 1))
        chances = tl.exp(scores - highers[:, None])
        fades = tl.exp(tops - highers)
        sums = sums * fades[:, None] + tl.dot(chances.to(value.dtype), value, input_precision="ieee")
        masses = masses * fades + tl.sum(chances, 1)
        tops = highers
    mixed = (sums / masses[:, None]).to(out.dtype.element_ty)
    tl.store(out + head[:, None] * W + d[None, :], mixed, mask=there[:, None])


@triton.jit
def added(inputs, weight, bias, x, K: tl.constexpr, D: tl.constexpr, TWO: tl.constexpr, BIAS: tl.constexpr,
           BN: tl.constexpr, BK: tl.constexpr, ROLL: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """x += the projection of one or two rows [K]: BN of the D columns."""
    if PDL:
        gdc_launch_dependents()
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    inside = n < D
    rows = weight + tl.where(inside, n, 0).to(tl.int64) * K
    one, two = _times(inputs, rows, inputs, 0.0, K, BN, BK, ROLL, TWO, False, PDL)
    if BIAS:
        extra = tl.load(bias + n, mask=inside, other=0.0).to(tl.float32)
        one += extra
        two += extra
    kind = x.dtype.element_ty
    tl.store(x + n, tl.load(x + n, mask=inside) + one.to(kind), mask=inside)
    if TWO:
        tl.store(x + D + n, tl.load(x + D + n, mask=inside) + two.to(kind), mask=inside)


@triton.jit
def gated(x, norm, weight, bias, out, epsilon, D: tl.constexpr, WIDE: tl.constexpr, TWO: tl.constexpr,
           BIAS: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, ROLL: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Norm, the two projections of the gated unit, silu(gate) * up: BN/2 columns of one or two rows."""
    if PDL:
        gdc_launch_dependents()
    first = tl.program_id(0) * (BN // 2)
    n = tl.arange(0, BN)
    column = first + n // 2
    output = tl.where(column < WIDE, column, 0) + (n % 2) * WIDE
    one, two = _times(x, weight + output.to(tl.int64) * D, norm, epsilon, D, BN, BK, ROLL, TWO, True, PDL)
    if BIAS:
        extra = tl.load(bias + output).to(tl.float32)
        one += extra
        two += extra
    to = first + tl.arange(0, BN // 2)
    kind = out.dtype.element_ty
    gate, up = tl.split(tl.reshape(one, (BN // 2, 2)))
    tl.store(out + to, (gate * tl.sigmoid(gate) * up).to(kind), mask=to < WIDE)
    if TWO:
        gate, up = tl.split(tl.reshape(two, (BN // 2, 2)))
        tl.store(out + WIDE + to, (gate * tl.sigmoid(gate) * up).to(kind), mask=to < WIDE)


@triton.jit
def gate(gate_up, out, WIDE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """silu(gate) * up for many rows, after the projection."""
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDE
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    gate = tl.load(gate_up + row * 2 * WIDE + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * WIDE + WIDE + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * WIDE + column, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _guided(logits, scale, place, places, column, V: tl.constexpr, TWO: tl.constexpr):
    """Logits of one draft at these columns, guidance applied: [branches, B, V] -> float32."""
    inside = column < V
    value = tl.load(logits + place.to(tl.int64) * V + column, mask=inside, other=-float("inf")).to(tl.float32)
    if TWO:
        other = tl.load(logits + (places + place).to(tl.int64) * V + column, mask=inside, other=0.0).to(tl.float32)
        value = tl.where(inside, other + scale * (value - other), -float("inf"))
    return value


@triton.jit
def choose(logits, scales, temperatures, numbers, free, tokens, at, health, ended, length, places, end,
            V: tl.constexpr, TWO: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Guidance and `sampling.choose` for one draft, whose token, health and position it then notes."""
    place = tl.program_id(0)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    position = tl.load(at + place)
    temperature = tl.load(temperatures + place)
    number = tl.load(numbers + place * length + position)
    scale = tl.load(scales + place)
    heat = tl.where(temperature > 0, temperature, 1.0)
    column = tl.arange(0, BLOCK)
    if BLOCK >= V:
        value = _guided(logits, scale, place, places, column, V, TWO)
        top = tl.max(value, 0)
        token = tl.min(tl.where(value == top, column, V - 1), 0)
        chance = tl.exp((value - top) / heat)
        mass = tl.sum(chance, 0)
        chances = (chance / mass).to(tl.float64)
        target = number * tl.sum(chances, 0)
        below = tl.sum(((tl.cumsum(chances, 0) <= target) & (column < V)).to(tl.int32), 0)
    else:
        tops = tl.full([BLOCK], -float("inf"), tl.float32)
        names = tl.zeros([BLOCK], tl.int32)
        for start in range(0, V, BLOCK):
            value = _guided(logits, scale, place, places, start + column, V, TWO)
            names = tl.where(value > tops, start + column, names)
            tops = tl.where(value > tops, value, tops)
        top = tl.max(tops, 0)
        token = tl.min(tl.where(tops == top, names, V - 1), 0)
        masses = tl.zeros([BLOCK], tl.float32)
        for start in range(0, V, BLOCK):
            value = _guided(logits, scale, place, places, start + column, V, TWO)
            masses += tl.exp((value - top) / heat)
        mass = tl.sum(masses, 0)
        totals = tl.zeros([BLOCK], tl.float64)
        for start in range(0, V, BLOCK):
            value = _guided(logits, scale, place, places, start + column, V, TWO)
            totals += (tl.exp((value - top) / heat) / mass).to(tl.float64)
        target = number * tl.sum(totals, 0)
        before = tl.zeros([], tl.float64)
        below = tl.zeros([], tl.int32)
        for start in range(0, V, BLOCK):
            value = _guided(logits, scale, place, places, start + column, V, TWO)
            chances = (tl.exp((value - top) / heat) / mass).to(tl.float64)
            below += tl.sum(((before + tl.cumsum(chances, 0) <= target) & (start + column < V)).to(tl.int32), 0)
            before += tl.sum(chances, 0)
    token = tl.where(temperature > 0, tl.minimum(below, V - 1), token).to(tl.int64)
    token = tl.where(tl.load(free + place * length + position), token, tl.load(tokens + place * length + position))
    tl.store(tokens + place * length + position, token)
    tl.store(health + place, tl.load(health + place) + mass)
    tl.store(ended + place, tl.load(ended + place) | (token == end))
    tl.store(at + place, position + 1)
