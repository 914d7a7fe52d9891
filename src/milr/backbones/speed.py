"""How fast does a checkpoint draw here, and how much of the memory bandwidth is that?

Decoding one image reads every weight of the language model once a token, so the time to read them is the floor. From
a shell:

    python -m milr.backbones.speed janus-pro-1b [--device cpu] [--dtype bfloat16] [--images 1]
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
    """What was measured. `*_share` is the part of the read bandwidth that decoding reaches; seconds are wall time."""

    model: str
    device: str
    dtype: str
    threads: int
    images: int
    load_seconds: float
    image_seconds: float
    image_token_seconds: float
    image_token_bytes: int
    image_share: float
    text_token_seconds: float
    text_token_bytes: int
    text_share: float
    pixel_seconds: float
    read_bytes_per_second: float
    peak_bytes: int


def measure(backbone: JanusBackbone, images: int, load_seconds: float = 0.0) -> Speed:
    """Draw `images` at once, stage by stage. A stage is left out by forcing its tokens."""
    no_text = Forced((backbone.text_end(),))
    no_image = Forced(tuple(range(backbone.info.image_tokens)), free=frozenset())
    limit, backbone.max_text_tokens = backbone.max_text_tokens, TEXT_TOKENS
    try:
        bandwidth = read_bandwidth(backbone.model.device)
        seconds = []
        for text, image in ((no_text, no_image), (Greedy(), no_image), (no_text, Sample())):
            seconds.append(_draw(backbone, text, image, images))
        bandwidth = max(bandwidth, read_bandwidth(backbone.model.device))
    finally:
        backbone.max_text_tokens = limit
    pixels, text_seconds, image_seconds = seconds[0][0], seconds[1][0] - seconds[0][0], seconds[2][0] - seconds[0][0]
    model: Any = backbone.model
    core = _bytes(model.model.language_model.layers.parameters())
    image_bytes = core + _bytes(model.model.generation_head.parameters())
    image_bytes += _bytes(model.model.generation_aligner.parameters())
    text_bytes = core + _bytes(model.lm_head.parameters())
    text_token, image_token = text_seconds / seconds[1][1] * images, image_seconds / seconds[2][1] * images
    on_gpu = backbone.model.device.type == "cuda"
    return Speed(
        model=backbone.info.name,
        device=backbone.info.device,
        dtype=backbone.info.dtype,
        threads=torch.get_num_threads(),
        images=images,
        load_seconds=load_seconds,
        image_seconds=image_seconds + pixels,
        image_token_seconds=image_token,
        image_token_bytes=image_bytes,
        image_share=image_bytes / image_token / bandwidth,
        text_token_seconds=text_token,
        text_token_bytes=text_bytes,
        text_share=text_bytes / text_token / bandwidth,
        pixel_seconds=pixels,
        read_bytes_per_second=bandwidth,
        peak_bytes=torch.cuda.max_memory_allocated()
        if on_gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
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


def _draw(backbone: JanusBackbone, text: Choice, image: Choice, images: int) -> tuple[float, int]:
    """Wall seconds of one batch and the tokens sampled in it."""
    orders = [Order(PROMPT, Ask(text=text, image=image), stream) for stream in range(images)]
    started = time.perf_counter()
    drawn = backbone.draw(orders)
    return time.perf_counter() - started, sum(one.cost.decoded_tokens for one in drawn)


def _bytes(parameters: Iterable[torch.Tensor]) -> int:
    return sum(parameter.numel() * parameter.itemsize for parameter in parameters)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m milr.backbones.speed", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--images", type=int, default=1, help="images drawn at once")
    options = parser.parse_args(arguments)
    try:
        started = time.perf_counter()
        backbone = load_janus(options.model, options.device, options.dtype)
        speed = measure(backbone, options.images, time.perf_counter() - started)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    for name, value in asdict(speed).items():
        print(f"{name:24} {value:.4g}" if isinstance(value, float) else f"{name:24} {value}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
