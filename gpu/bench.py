"""What the engine does on this GPU: `python gpu/bench.py [--small] [1b] [7b]`, some five minutes.

Models of exactly the sizes of Janus-Pro with random weights, bfloat16, 576 image tokens, guidance 5 (two rows an
image). Shares are of the measured copy bandwidth (bytes read + written), counting weights (layers and image head) and
the cache that is read on average. Every line is written to results.json as it comes ($OUT or gpu/).
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import tune

from milr.backbones.kernels import Tuning
from milr.backbones.random_checkpoint import janus_pro_1b, janus_pro_7b, random_backbone, tiny
from milr.drafts import Ask, Drawn, Forced, Order, Sample, Task

SMALL, DEVICE = tune.SMALL, tune.DEVICE
PROMPT = "a red fox to the left of two blue birds"
FOLDER = Path(os.environ.get("OUT") or Path(__file__).parent)
FOUND: list[dict[str, Any]] = []


def record(**facts: Any) -> None:
    FOUND.append({name: round(value, 5) if isinstance(value, float) else value for name, value in facts.items()})
    tune.log(json.dumps(FOUND[-1]))
    (FOLDER / "results.json").write_text(json.dumps(FOUND, indent=1))


def orders(model: Any, images: int, image: Any = None, ratio: float = 0.0, first: int = 0) -> list[Order]:
    """Drafts whose text is over at once, so that what is timed is the picture."""
    closed = Forced((model.text_end(),))
    ask = Ask(closed, image or Sample(), image_ratio=ratio)
    return [Order(PROMPT, ask, first + stream) for stream in range(images)]


def seconds(model: Any, wanted: list[Order]) -> tuple[float, list[Drawn]]:
    tune.synchronize()
    begun = time.perf_counter()
    drawn = model.draw(wanted)
    tune.synchronize()
    return time.perf_counter() - begun, drawn


def pictures(model: Any, size: str, images: int, bandwidth: float) -> None:
    """Whole pictures through the public door: prefill, tokens, pixels."""
    seconds(model, orders(model, images))  # captures, compiles
    whole, _ = seconds(model, orders(model, images, first=100))
    count = model.info.image_tokens
    given = Forced((0,) * count, free=frozenset())
    pixels, _ = seconds(model, orders(model, images, given))
    prompt = len(model.prompts.drawing(PROMPT, ""))
    weights, _ = tune.bytes_of_a_pass(model, images)
    decoder = model._decoder
    slot = 2 * len(decoder.layers) * decoder.kv_heads * decoder.head_dim * decoder.weight.itemsize
    cache = 2 * images * (prompt + count / 2) * slot
    token = (whole - pixels) / count
    share = (weights + cache) / token / bandwidth
    record(
        size=size, what="whole pictures", images=images, image_token_ms=1e3 * token, share=share,
        seconds=whole, image_seconds=whole / images, pixel_seconds=pixels / images,
    )  # fmt: skip


def text(model: Any, size: str, images: int) -> None:
    """Tokens of a reasoning; random weights never end one."""
    given = Forced((0,) * model.info.image_tokens, free=frozenset())
    wanted = [Order(PROMPT, Ask(Sample(), given, text_ratio=0.2), stream) for stream in range(images)]
    seconds(model, wanted)
    whole, drawn = seconds(model, wanted)
    pixels, _ = seconds(model, orders(model, images, given))
    record(size=size, what="text", images=images, text_token_ms=1e3 * (whole - pixels) / len(drawn[0].text_tokens))


def latents(model: Any, size: str, images: int) -> None:
    """What it costs that the latents of every image token come back."""
    seconds(model, orders(model, images, ratio=1.0))
    whole, drawn = seconds(model, orders(model, images, ratio=1.0))
    assert drawn[0].latents is not None
    record(size=size, what="with all latents", images=images, seconds=whole, where=str(drawn[0].latents.image.device))


def plain(model: Any, size: str, images: int) -> None:
    """The same without graphs: torch's own calls, one after the other."""
    engine = model._engine
    engine.forget()
    engine.fixed_shapes = False
    free = frozenset(range(64 if not SMALL else 4))
    part = Forced((0,) * model.info.image_tokens, Sample(), free)
    seconds(model, orders(model, images, part))
    begun, _ = seconds(model, orders(model, images, part))
    rest, _ = seconds(model, orders(model, images, Forced((0,) * model.info.image_tokens, free=frozenset())))
    record(size=size, what="without graphs", images=images, image_token_ms=1e3 * (begun - rest) / len(free))
    engine.fixed_shapes = True


def transformers_generate(model: Any, size: str, images: int) -> None:
    import transformers

    ids = torch.tensor([model.prompts.drawing(PROMPT, "")] * images, device=DEVICE)
    try:
        tune.synchronize()
        begun = time.perf_counter()
        model.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_mode="image", do_sample=True, top_k=0,
            guidance_scale=5, use_cache=True,
        )  # fmt: skip
        tune.synchronize()
        token = (time.perf_counter() - begun) / model.info.image_tokens
        record(
            size=size,
            what=f"transformers {transformers.__version__} generate",
            images=images,
            image_token_ms=1e3 * token,
        )
    except Exception as error:  # of one version its image mode is broken
        record(
            size=size, what=f"transformers {transformers.__version__} generate", images=images, failed=repr(error)[:200]
        )


def replay(model: Any, size: str, many: int, few: int) -> None:
    """Are drafts of a full batch the same drawn again, beside others, and alone?"""
    wanted = orders(model, many, first=1000)
    _, first = seconds(model, wanted)
    _, again = seconds(model, wanted)
    _, turned = seconds(model, wanted[::-1])
    alone = [seconds(model, [order])[1][0] for order in wanted[:few]]
    sixteen = model.draw(wanted[:16])

    def same(some: list[Drawn], others: list[Drawn]) -> str:
        pairs = list(zip(some, others, strict=True))
        tokens = sum(sum(a == b for a, b in zip(x.image_tokens, y.image_tokens, strict=True)) for x, y in pairs)
        equal = sum(x.image_tokens == y.image_tokens for x, y in pairs)
        return f"{equal} of {len(pairs)} pictures, {tokens / len(pairs) / len(some[0].image_tokens):.3f} of the tokens"

    record(
        size=size, what="replay", images=many, dtype=model.info.dtype, again=same(first, again),
        in_other_places=same(first, turned[::-1]), alone=same(first[:few], alone), of_sixteen=same(first[:16], sixteen),
    )  # fmt: skip


def passes(model: Any, size: str, bandwidth: float) -> None:
    """One captured pass in the middle of a picture, by itself."""
    for places in (1, 2, 4, 8, 16, 32, 64) if not SMALL else (2,):
        weights, cache = tune.bytes_of_a_pass(model, places)
        ms = tune.pass_ms(model, places, Tuning(pdl=DEVICE == "cuda"), 24)
        share = (weights + cache) / ms * 1e3 / bandwidth
        record(size=size, what="a pass", images=places, image_token_ms=ms, share=share)
    model._engine.forget()


def windows(model: Any, size: str, bandwidth: float) -> None:
    """One captured pass over several guessed tokens of each draft, in the middle of a picture, against a pass of one:
    what a picture would take at so many tokens a pass is this over the other."""
    for places, window in ((1, 4), (1, 16), (1, 32), (1, 64), (4, 16), (16, 4)) if not SMALL else ((2, 4),):
        weights, cache = tune.bytes_of_a_pass(model, places)
        one = tune.pass_ms(model, places, Tuning(pdl=DEVICE == "cuda"), 24)
        ms = tune.pass_ms(model, places, Tuning(pdl=DEVICE == "cuda"), 24, window)
        share = (weights + cache) / ms * 1e3 / bandwidth
        record(size=size, what="a pass of a window", images=places, window=window, ms=ms, of_one=ms / one, share=share)
    model._engine.forget()


def leaps(model: Any, size: str, images: int) -> None:
    """Whole pictures of which an earlier draft is the guess: the same again (every guess is right: the most that leaps
    can bring), and another draft of a model without knowledge (no guess is right: what giving up costs)."""
    plain, drawn = seconds(model, orders(model, images))
    others = model.draw(orders(model, images, first=500))
    model.speculate = "auto"
    try:
        for kind, told in (("the same draft", drawn), ("another draft", others)):
            wanted = [replace(order, earlier=(one,)) for order, one in zip(orders(model, images), told, strict=True)]
            model.forget_guesses()
            seconds(model, wanted)  # captures, compiles
            model.forget_guesses()
            leapt, again = seconds(model, wanted)
            same = sum(a.image_tokens == b.image_tokens for a, b in zip(drawn, again, strict=True))
            passes = sum(one.cost.image_passes for one in again) / images
            record(
                size=size, what="leaps", images=images, told=kind, passes=passes, seconds=leapt, without=plain,
                same=f"{same} of {images} pictures",
            )  # fmt: skip
    finally:
        model.speculate = "off"


def search(model: Any, size: str) -> None:
    """One prompt, a search in rounds of one draft and of eight, the model its own critic."""
    from milr.critics.self_critic import SelfCritic
    from milr.searches.driver import drive
    from milr.searches.repair import Repair, repair

    critic = SelfCritic(model)
    for width, budget in ((8, 20), (1, 3)) if not SMALL else ((2, 3),):
        settings = Repair(width=width)
        drive(model, critic, [Task(PROMPT)], repair, settings, budget=width + 1, threshold=2.0)  # captures, compiles
        tune.synchronize()
        begun = time.perf_counter()
        (found,) = drive(model, critic, [Task(PROMPT)], repair, settings, budget=budget, threshold=2.0)
        tune.synchronize()
        taken = time.perf_counter() - begun
        record(size=size, what="repair, one prompt", width=width, drafts=len(found.drafts), seconds=taken)
    tasks = [
        Task(f"{n} red {a} above a blue car", f"{n}{a}") for n in ("two", "one") for a in ("fox", "dog", "cat", "cup")
    ]
    begun = time.perf_counter()
    found_all = drive(model, critic, tasks, repair, Repair(), budget=2, threshold=2.0)
    tune.synchronize()
    drafts = sum(len(one.drafts) for one in found_all)
    taken = time.perf_counter() - begun
    record(size=size, what="repair, eight prompts", drafts=drafts, seconds=taken, seconds_a_draft=taken / drafts)


def attempt(what: Callable[..., None], model: Any, *rest: Any) -> None:
    """What cannot be measured is told, and the rest goes on."""
    try:
        what(model, *rest)
    except Exception as error:
        record(what=what.__name__, failed=repr(error)[:300])
        traceback.print_exc()


def measure(model: Any, size: str, bandwidth: float) -> None:
    for images in (1, 2) if SMALL else (1, 16, 64):
        attempt(pictures, model, size, images, bandwidth)
    if DEVICE == "cuda":
        record(size=size, what="memory", images=images, peak_gb=torch.cuda.max_memory_allocated() / 1e9)
    attempt(text, model, size, 1)
    attempt(passes, model, size, bandwidth)
    attempt(windows, model, size, bandwidth)
    for images in (1, 2) if SMALL else (1, 16):
        attempt(leaps, model, size, images)
    attempt(text, model, size, 2 if SMALL else 16)
    attempt(latents, model, size, 2 if SMALL else 16)


def main() -> None:
    sizes = {"tiny": tiny} if SMALL else {"1b": janus_pro_1b, "7b": janus_pro_7b}
    named = [word for word in sys.argv[1:] if not word.startswith("-")]
    bandwidth = tune.copy_bandwidth()
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    record(what="machine", device=device, torch=torch.__version__, copy_gb_per_second=bandwidth / 1e9)

    def made(size: str) -> Any:
        tune.log("building", size)
        model = random_backbone(sizes[size](), DEVICE, torch.float32 if SMALL else torch.bfloat16)
        model._engine.fixed_shapes = True
        model.speculate = "off"  # random weights cannot be guessed: what a token costs is what is measured
        return model

    for size in sizes:
        if not named or size in named:
            model = made(size)
            measure(model, size, bandwidth)
            if size != "1b":
                attempt(search, model, size)
            del model
            if DEVICE == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
    size = next(iter(sizes))
    if not named or size in named:
        model = made(size)
        attempt(replay, model, size, 2 if SMALL else 64, 1 if SMALL else 8)
        for images in (1,) if SMALL else (1, 16):
            attempt(transformers_generate, model, size, images)
        attempt(plain, model, size, 1)


if __name__ == "__main__":
    main()
