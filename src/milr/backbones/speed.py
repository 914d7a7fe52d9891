"""How fast does a checkpoint draw here, and how much of the memory bandwidth is that?

Decoding one image reads every weight of the language model once a token, so the time to read them is the floor. From
a shell:

    python -m milr.backbones.speed janus-pro-1b [--device cpu] [--dtype bfloat16] [--images 1] [--tokens 576]

On a machine that does other work at the same time, compare the CPU seconds with the wall seconds.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from milr.backbones.janus import JanusBackbone, load_janus
from milr.drafts import Ask, Choice, Forced, Greedy, Order, Sample, UserError

TEXT_TOKENS = 32  # long enough to measure
PROMPT = "a red fox to the left of two blue birds"


@dataclass(frozen=True)
class Speed:
    """What was measured. `*_share` is the part of the read bandwidth that decoding reaches in wall time; seconds are
    wall time, except `*_cpu_seconds`, the CPU time of all threads.
    """

    model: str
    device: str
    dtype: str
    threads: int
    images: int
    load_seconds: float
    image_seconds: float
    image_token_seconds: float
    image_token_cpu_seconds: float
    image_token_bytes: int
    image_share: float
    text_token_seconds: float
    text_token_cpu_seconds: float
    text_token_bytes: int
    text_share: float
    pixel_seconds: float
    read_bytes_per_second: float
    peak_bytes: int


@dataclass(frozen=True)
class _Spent:
    wall: float
    cpu: float
    rounds: int  # tokens drawn for each image


def measure(backbone: JanusBackbone, images: int = 1, tokens: int | None = None, load_seconds: float = 0.0) -> Speed:
    """Draw `images` at once, stage by stage, and of each image only the first `tokens` tokens (None: all)."""
    count = backbone.info.image_tokens
    no_text = Forced((backbone.text_end(),))
    no_image = Forced((0,) * count, free=frozenset())
    image = Forced((0,) * count, then=Sample(), free=frozenset(range(min(count, tokens or count))))
    limit, backbone.max_text_tokens = backbone.max_text_tokens, TEXT_TOKENS
    try:
        bandwidth = read_bandwidth(backbone.model.device)
        nothing = _draw(backbone, no_text, no_image, images)  # both stages forced: what is left are the pixels
        text_token, text_token_cpu = _per_token(_draw(backbone, Greedy(), no_image, images), nothing)
        image_token, image_token_cpu = _per_token(_draw(backbone, no_text, image, images), nothing)
        bandwidth = max(bandwidth, read_bandwidth(backbone.model.device))
    finally:
        backbone.max_text_tokens = limit
    model: Any = backbone.model
    core = _bytes(model.model.language_model.layers.parameters())
    image_bytes = core + _bytes(model.model.generation_head.parameters())
    image_bytes += _bytes(model.model.generation_aligner.parameters())
    text_bytes = core + _bytes(model.lm_head.parameters())
    if model.device.type == "cuda":
        peak_bytes = torch.cuda.max_memory_allocated()
    else:
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Speed(
        model=backbone.info.name,
        device=backbone.info.device,
        dtype=backbone.info.dtype,
        threads=torch.get_num_threads(),
        images=images,
        load_seconds=load_seconds,
        image_seconds=image_token * count + nothing.wall,
        image_token_seconds=image_token,
        image_token_cpu_seconds=image_token_cpu,
        image_token_bytes=image_bytes,
        image_share=image_bytes / image_token / bandwidth,
        text_token_seconds=text_token,
        text_token_cpu_seconds=text_token_cpu,
        text_token_bytes=text_bytes,
        text_share=text_bytes / text_token / bandwidth,
        pixel_seconds=nothing.wall,
        read_bytes_per_second=bandwidth,
        peak_bytes=peak_bytes,
    )


def read_bandwidth(device: torch.device, size_bytes: int = 2**29) -> float:
    """Bytes per second of summing a large tensor: the best of five."""
    numbers = torch.ones(size_bytes // 4, device=device)
    best = 0.0
    for _ in range(5):
        started = time.perf_counter()
        numbers.sum().item()
        best = max(best, size_bytes / (time.perf_counter() - started))
    return best


def _draw(backbone: JanusBackbone, text: Choice, image: Choice, images: int) -> _Spent:
    orders = [Order(PROMPT, Ask(text=text, image=image), stream) for stream in range(images)]
    wall, cpu = time.perf_counter(), time.process_time()
    drawn = backbone.draw(orders)
    rounds = max(one.cost.decoded_tokens for one in drawn)
    return _Spent(time.perf_counter() - wall, time.process_time() - cpu, rounds)


def _per_token(spent: _Spent, rest: _Spent) -> tuple[float, float]:
    """Wall and CPU seconds of one round (a token of every image), without the rest; prefill is in it."""
    return (spent.wall - rest.wall) / spent.rounds, (spent.cpu - rest.cpu) / spent.rounds


def _bytes(parameters: Iterable[torch.Tensor]) -> int:
    return sum(parameter.numel() * parameter.itemsize for parameter in parameters)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m milr.backbones.speed", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--images", type=int, default=1, help="images drawn at once")
    parser.add_argument("--tokens", type=int, help="draw only so many tokens of each image, all by default")
    options = parser.parse_args(arguments)
    try:
        started = time.perf_counter()
        backbone = load_janus(options.model, options.device, options.dtype)
        speed = measure(backbone, options.images, options.tokens, time.perf_counter() - started)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    for name, value in asdict(speed).items():
        print(f"{name:24} {value:.4g}" if isinstance(value, float) else f"{name:24} {value}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
