"""Find the block sizes of the kernels on a GPU: `python gpu/tune.py [--small] [1b] [7b]`.

For each size and batch one setting after the other is changed, the fastest kept, and the time of one captured pass at
half the picture's length printed, with its share of the measured copy bandwidth. What was found goes into
`milr.backbones.kernels.Tuning`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace

import torch

from milr.backbones.board import Shape
from milr.backbones.decoding import SURPLUS
from milr.backbones.janus import JanusBackbone
from milr.backbones.kernels import Kernels, Tuning
from milr.backbones.random_checkpoint import janus_pro_1b, janus_pro_7b, random_backbone, tiny

SMALL = "--small" in sys.argv
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PROMPT = 100
BEGUN = time.time()
FOUND: list[dict[str, object]] = []


def log(*words: object) -> None:
    print(f"[{time.time() - BEGUN:6.1f}]", *words, flush=True)


def record(**facts: object) -> None:
    FOUND.append(facts)
    log(json.dumps(facts))
    if os.environ.get("OUT"):
        with open(os.path.join(os.environ["OUT"], "tune.json"), "w") as file:
            json.dump(FOUND, file, indent=1)


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def copy_bandwidth() -> float:
    source = torch.empty(2**31 if DEVICE == "cuda" else 2**22, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(6):
        synchronize()
        begun = time.perf_counter()
        target.copy_(source)
        synchronize()
        best = max(best, 2 * source.numel() / (time.perf_counter() - begun))
    return best


def board_of(model: JanusBackbone, places: int, tuning: Tuning | None):
    engine = model._engine
    engine.fixed_shapes = True
    engine.kernels = Kernels(model._decoder, tuning) if tuning else None
    engine._boards.clear()
    count = model.info.image_tokens
    slots = -(-(PROMPT + count + SURPLUS) // 128) * 128
    board = engine.board(model.image_stage, Shape(places, 2, count + SURPLUS, slots, 0))
    board.offset.fill_(PROMPT)
    board.free.fill_(True)
    board.temperatures.fill_(1)
    board.scales.fill_(5.0)
    board.numbers.copy_(torch.rand(board.numbers.shape, dtype=torch.float64))
    return board


def pass_ms(model: JanusBackbone, places: int, tuning: Tuning | None, passes: int = 40, window: int = 1) -> float:
    """Milliseconds of a pass, in the middle of a picture; with a window of so many guessed tokens of each draft."""
    with torch.inference_mode():
        board = board_of(model, places, tuning)
        middle = model.info.image_tokens // 2
        passes = max(1, min(passes, middle - 2))
        board.stop.fill_(model.info.image_tokens)

        def run(count: int) -> None:
            if window == 1:
                board.advance(count, [PROMPT + middle] * places, False)
            for _ in range(count if window > 1 else 0):
                board.leap(window, board.shape.slots, False)

        best = float("inf")
        for _ in range(1 if SMALL else 5):
            board.at.fill_(middle - passes // 2)
            run(2)
            board.at.fill_(middle - passes // 2)
            synchronize()
            begun = time.perf_counter()
            run(passes)
            synchronize()
            best = min(best, (time.perf_counter() - begun) / passes)
        assert SMALL or bool(board.health.isfinite().all())
    return 1e3 * best


def bytes_of_a_pass(model: JanusBackbone, places: int) -> tuple[int, int]:
    """Weights (layers and image head), and what is read of the cache on average."""
    layers = sum(p.numel() * p.itemsize for p in model.model.model.language_model.layers.parameters())
    head = sum(p.numel() * p.itemsize for p in model.model.model.generation_head.parameters())
    decoder = model._decoder
    row = 2 * len(decoder.layers) * decoder.kv_heads * decoder.head_dim * decoder.weight.itemsize
    return layers + head, 2 * places * (PROMPT + model.info.image_tokens // 2) * row


MATRICES = [
    (8, 1024, 4, False), (8, 512, 4, True), (4, 1024, 4, True), (4, 2048, 4, False), (4, 1024, 4, False),
    (2, 2048, 4, False), (4, 2048, 8, False),
]  # fmt: skip
MEGABYTE = 2**20
CHOICES = {
    "one": {
        "ahead": [4 * MEGABYTE, 8 * MEGABYTE, 16 * MEGABYTE, 24 * MEGABYTE],
        "attend": [(64, 4, 1), (16, 1, 1), (32, 1, 1), (32, 4, 1), (16, 2, 1)],
        "programs": [264, 1056],
        "pdl": [True, False], "gate": MATRICES, "down": MATRICES, "qkv": MATRICES, "out": MATRICES,
    },
    "many": {
        "pdl": [True, False], "heads": [4, 16, 32],
        "attend_many": [(16, 1, 1), (64, 1, 1), (32, 1, 2), (16, 1, 2), (64, 2, 1), (16, 1, 3)],
    },
}  # fmt: skip


def tune(model: JanusBackbone, name: str, places: int, bandwidth: float, fields: dict[str, list]) -> Tuning:
    weights, cache = bytes_of_a_pass(model, places)
    best, fastest = Tuning(pdl=DEVICE == "cuda"), float("inf")
    fastest = pass_ms(model, places, best)

    def share(ms: float) -> float:
        return round((weights + cache) / (ms / 1e3) / bandwidth, 3)

    record(model=name, images=places, what="as it is", ms=fastest, share=share(fastest))
    for field, values in fields.items():
        tried = {}
        for value in values:
            if value == getattr(best, field) or (field == "pdl" and DEVICE == "cpu"):
                continue
            try:
                ms = pass_ms(model, places, replace(best, **{field: value}))
            except Exception as error:
                log("failed", field, value, repr(error)[:200])
                continue
            tried[str(value)] = round(ms, 4)
            if ms < fastest * 0.998:
                best, fastest = replace(best, **{field: value}), ms
        log(name, places, field, tried)
    record(model=name, images=places, what="best", ms=fastest, share=share(fastest), tuning=str(best))
    return best


def profile(model: JanusBackbone, places: int, tuning: Tuning | None, name: str) -> None:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    with torch.inference_mode():
        board = board_of(model, places, tuning)
        board.at.fill_(280)
        board.advance(4, [400] * places, False)
        with profiled(activities=[ProfilerActivity.CUDA]) as found:
            board.advance(8, [400] * places, False)
            torch.cuda.synchronize()
    rows = sorted(found.key_averages(), key=lambda row: -row.self_device_time_total)[:14]
    for row in rows:
        spent = f"{row.self_device_time_total / row.count:8.2f} us"
        log(f"   {name} {places}: {row.key[:70]:70} {row.count // 8:4} a pass, {spent}")


def products(model: JanusBackbone, name: str, bandwidth: float) -> None:
    """The vendor's library on each matrix of every layer, alone: share of the bandwidth by rows."""
    for rows in (2, 4, 8, 16, 32, 64, 128):
        for what in ("qkv", "out", "gate_up", "down"):
            weights = [getattr(layer, what) for layer in model._decoder.layers]
            x = torch.randn(rows, weights[0].shape[1], dtype=weights[0].dtype, device=DEVICE)
            graph = torch.cuda.CUDAGraph()
            with torch.inference_mode():
                for weight in weights[:2]:
                    torch.nn.functional.linear(x, weight)
                torch.cuda.synchronize()
                with torch.cuda.graph(graph):
                    for weight in weights:
                        torch.nn.functional.linear(x, weight)
                graph.replay()
                torch.cuda.synchronize()
                begun = time.perf_counter()
                for _ in range(5):
                    graph.replay()
                torch.cuda.synchronize()
            seconds = (time.perf_counter() - begun) / 5 / len(weights)
            size = weights[0].numel() * weights[0].itemsize
            share = size / seconds / bandwidth
            log(f"   {name} library {what:8} rows {rows:4}: {seconds * 1e6:7.1f} us, {share:.2f} of copy")


def main() -> None:
    sizes = {"tiny": tiny} if SMALL else {"1b": janus_pro_1b, "7b": janus_pro_7b}
    named = [word for word in sys.argv[1:] if not word.startswith("-")]
    bandwidth = copy_bandwidth()
    record(
        what="copy", gb_per_second=bandwidth / 1e9, device=torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    )
    for name, config in sizes.items():
        if named and name not in named:
            continue
        model = random_backbone(config(), DEVICE, torch.float32 if SMALL else torch.bfloat16)
        log(name, "built")
        for places in (1,) if SMALL else (1, 16, 64):
            fields = CHOICES["one" if places == 1 else "many"]
            if SMALL:
                fields = {field: values[-1:] for field, values in fields.items()}
            best = tune(model, name, places, bandwidth, fields)
            if DEVICE == "cuda":
                profile(model, places, best, name)
        if DEVICE == "cuda" and "--library" in sys.argv:
            record(model=name, images=1, what="graph of torch's calls", ms=pass_ms(model, 1, None))
            products(model, name, bandwidth)
        del model
        if DEVICE == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
