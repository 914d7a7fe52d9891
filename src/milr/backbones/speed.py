"""How fast does a model draw here? Seconds of every stage, the share of the memory bandwidth, and rivals beside it.

Decoding a token reads every weight of the language model and a head, and the keys and values of all rows so far. That
many bytes, over its seconds, as a share of what a copy on the same device moves (bytes read and written), says how near
the limit it is. Rivals in the same run: transformers' own `generate`, and a plain loop in the shape of the MILR
authors' code.

A stage is measured in a draft whose other stages are forced, one token a pass. What several tokens a pass bring
(leaps) depends on what is drawn, so it is measured in whole drafts, with and without in turn. Where not all tokens are
drawn, those in the middle of the picture are: the cost of a token grows evenly with what stands before it, so theirs is
the mean. Nothing here changes what is drawn. What was measured is remembered in the user's cache folder, for
`good_width` and for reckoning how long a run will take.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from milr.backbones.base import Backbone
from milr.disk import write_atomically
from milr.drafts import Ask, Choice, Drawn, Forced, Greedy, Order, Sample, UserError
from milr.version import __version__

PROMPT = "a red fox to the left of two blue birds"
PROMPTS = (PROMPT, "a photo of a purple umbrella", "three green apples on a table", "a dog and a yellow bicycle",
           "a small boat below the moon", "an animal that says moo", "two cups to the right of a cake",
           "a blue guitar beside a brown horse")  # fmt: skip
TEXT_TOKENS = 64  # of a reasoning of at most 50 words, where the model's own does not end sooner
PATIENCE = 10.0  # seconds that one measurement may take; fewer tokens are drawn where all would take longer
WIDTHS = (1, 2, 4, 8, 16)
WIDTH_TOKENS, WIDTH_QUICK = 12, 0.3  # tokens drawn of each image to find the width, and what QUICK is then
WIDTH_WHOLE = 5.0  # seconds of an image that is drawn whole to find the width
QUICK = 1.0  # seconds: what is over sooner is done again, up to four times, and the quickest counts
TIMES = 4
SLOW = 5.0  # seconds: what takes longer is done once
FORMAT = "milr-speed/1"
SHAPES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
          "vocab_size", "num_embeddings", "num_patches", "base_channels", "channel_multiplier")  # fmt: skip

Say = Callable[[str], None]


# --- What was measured ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spent:
    """Seconds on the clock, and of all processors (all threads together)."""

    wall: float
    cpu: float

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: Spent) -> Spent:
        return Spent(max(0.0, self.wall - other.wall), max(0.0, self.cpu - other.cpu))

    def times(self, count: float) -> Spent:
        return Spent(self.wall * count, self.cpu * count)


@dataclass(frozen=True)
class Stages:
    """What `images` images cost when they are drawn at once: `prefill` reads the prompts of both stages, a `*_token` is
    one of every image, `pixels` those of all. Shares are of the copy bandwidth; None where nobody knows what is read.
    """

    images: int
    prefill: Spent
    text_token: Spent
    image_token: Spent
    pixels: Spent
    text_share: float | None = None
    image_share: float | None = None

    def draft(self, text_tokens: int, image_tokens: int) -> Spent:
        """One draft out of the batch: so many text and image tokens, prompts and pixels."""
        tokens = self.text_token.times(text_tokens) + self.image_token.times(image_tokens)
        return (self.prefill + tokens + self.pixels).times(1 / self.images)


@dataclass(frozen=True)
class Rival:
    """The same by other code: an image token of every image, and where the code has them also text and pixels. `note`
    says why there is nothing."""

    images: int
    image_token: Spent | None = None
    text_token: Spent | None = None
    prefill: Spent | None = None
    pixels: Spent | None = None
    note: str = ""

    def draft(self, text_tokens: int, image_tokens: int) -> Spent | None:
        """One draft, where all its parts are known."""
        if self.image_token is None or self.text_token is None or self.prefill is None or self.pixels is None:
            return None
        stages = Stages(self.images, self.prefill, self.text_token, self.image_token, self.pixels)
        return stages.draft(text_tokens, image_tokens)


@dataclass(frozen=True)
class Leaps:
    """What several tokens a pass bring. `drafts` is "first" (nothing was drawn before) or "later" (three drafts of the
    same prompt were); `images` of them were drawn at once. Means of a draft: passes, and seconds with and without."""

    images: int
    drafts: str
    text_tokens: float
    text_passes: float
    image_tokens: int
    image_passes: float
    draft: Spent
    without: Spent


@dataclass(frozen=True)
class Speed:
    """What `measure` found. `tokens` of `image_tokens` were drawn of each image, the others are reckoned. A draft has
    `text_tokens`: as many as the model wrote here (`text_ended`), else as many as a reasoning of 50 words may have."""

    model: str
    device: str
    device_name: str
    dtype: str
    threads: int
    text_tokens: int
    text_ended: bool
    image_tokens: int
    tokens: int
    copy_bytes_per_second: float
    stages: tuple[Stages, ...]  # alone, then in a batch
    transformers: tuple[Rival, ...]
    naive: Rival
    width: int  # see `good_width`
    peak_bytes: int
    load_seconds: float = 0.0
    leaps: tuple[Leaps, ...] = ()

    def draft(self, stages: Stages) -> Spent:
        """One draft of this batch."""
        return stages.draft(self.text_tokens, self.image_tokens)

    @property
    def best(self) -> Stages:
        """The batch in which a draft is cheapest."""
        return min(self.stages, key=lambda one: self.draft(one).wall)


def measure(
    backbone: Backbone,
    images: int | None = None,
    tokens: int | None = None,
    *,
    load_seconds: float = 0.0,
    say: Say = lambda text: None,
) -> Speed:
    """Measure one image alone and `images` at once (None: a batch that suits the device), of each image only `tokens`
    tokens (None: as many as a few seconds allow). `say` hears what is being done. Raises UserError."""
    count = backbone.info.image_tokens
    if backbone.info.choices != "tokens":
        raise UserError(
            f"{backbone.info.name} makes its pictures of noise, and what is measured here are tokens; milr generate "
            "says how long each of its drafts takes."
        )
    if tokens is not None and not 2 <= tokens <= count:
        raise UserError(f"--tokens is a number from 2 to {count}, the tokens of an image of this model, not {tokens}.")
    if images is not None and not 1 <= images <= 4096:
        raise UserError(f"--images is a number from 1 to 4096, not {images}.")
    device = torch.device(backbone.info.device.partition(" ")[0])
    say("copying memory")
    bandwidth = copy_bandwidth(device)
    say("drawing one image")
    probe = _Probe(backbone, tokens)
    with _one_token_a_pass(backbone):
        found = [probe.stages(1)]
        alone = found[0].draft(probe.text_tokens, count).wall
        batch = images or _good_batch(backbone, alone)
        if batch > 1:
            say(f"drawing {batch} images at once")
            found.append(probe.stages(batch))
    leaps = _leaps(backbone, [(one.images, one.draft(probe.text_tokens, count).wall) for one in found], say)
    bandwidth = max(bandwidth, copy_bandwidth(device))
    rivals = [_generate(backbone, one.images, probe.tokens, say) for one in found]
    naive = _naive(backbone, probe, say)
    say("looking how many drafts of a prompt to draw at once")
    width = _measured_width(backbone)
    speed = Speed(
        model=backbone.info.name,
        device=backbone.info.device,
        device_name=device_name(backbone.info.device),
        dtype=backbone.info.dtype,
        threads=torch.get_num_threads(),
        text_tokens=probe.text_tokens,
        text_ended=probe.text_ended,
        image_tokens=count,
        tokens=probe.tokens,
        copy_bytes_per_second=bandwidth,
        stages=tuple(_with_shares(backbone, one, probe, bandwidth) for one in found),
        transformers=tuple(rivals),
        naive=naive,
        width=width,
        peak_bytes=_peak_bytes(device),
        load_seconds=load_seconds,
        leaps=leaps,
    )
    best = speed.best
    _remember(backbone, width=width, draft={"images": best.images, "seconds": speed.draft(best).wall, "alone": alone})
    return speed


def _good_batch(backbone: Backbone, alone: float) -> int:
    """A batch that shows what batching brings, in bearable time."""
    fits = int(getattr(backbone, "max_batch", 32))
    bearable = 64 if backbone.info.device.startswith("cuda") else 32 if alone < 5 else 4
    return max(1, min(fits, bearable))


class _Probe:
    """Draws so that the parts of a draft can be told apart. How many tokens it draws is settled by the first batch."""

    def __init__(self, backbone: Backbone, tokens: int | None = None, quick: float = QUICK) -> None:
        self.backbone, self.quick = backbone, quick
        self.count = backbone.info.image_tokens
        self.tokens = tokens or 0  # 0: not known yet
        self.text_tokens, self.text_ended, self.text_drawn = TEXT_TOKENS, False, 0
        self.no_text = Forced((backbone.text_end(),))
        self.no_image = self._image(range(0))

    def stages(self, images: int) -> Stages:
        pixels = self.pixels(images)
        with _without_pixels(self.backbone):
            rest = self.pixels(images)  # what is not left out
            image_token = self.image_token(images)
            prompts = self._best(self.no_text, self._image(range(1)), images) - rest - image_token
            text_prompts, text_token = self.text(images)
        return Stages(images, prompts + (text_prompts - rest - text_token), text_token, image_token, pixels)

    def pixels(self, images: int) -> Spent:
        """Both stages forced: what is left are the pixels."""
        return self._best(self.no_text, self.no_image, images)

    def image_token(self, images: int) -> Spent:
        """One token of each image: many of them, less the first one with all that it takes to get there."""
        if not self.tokens:
            few = min(4, self.count)
            each = self._window(images, self.count // 2 - few // 2, few).wall
            self.tokens = min(self.count, max(8, int(PATIENCE / max(each, 1e-9))))
        return self._window(images, self.start, self.tokens)

    def _window(self, images: int, start: int, tokens: int) -> Spent:
        first = self._best(self.no_text, self._image(range(start, start + 1)), images)
        window = self._best(self.no_text, self._image(range(start, start + tokens)), images)
        return (window - first).times(1 / (tokens - 1))

    @property
    def start(self) -> int:
        """The first of the tokens that are drawn: as many are left out before them as behind them."""
        return (self.count - self.tokens) // 2

    def text(self, images: int) -> tuple[Spent, Spent]:
        """Prompts, one token and pixels of all images; one text token of each."""
        with _text_limit(self.backbone, 1):
            first = self._best(Greedy(), self.no_image, images)
        if not self.text_drawn:
            with _text_limit(self.backbone, 4):
                few = (self._best(Greedy(), self.no_image, images) - first).wall / 3
            self.text_drawn = min(TEXT_TOKENS, max(8, int(PATIENCE / max(few, 1e-9))))
        with _text_limit(self.backbone, self.text_drawn):
            drawn: list[Drawn] = []
            whole = self._best(Greedy(), self.no_image, images, drawn)
        rounds = max(one.cost.text_tokens for one in drawn)
        if all(one.text_ended for one in drawn):
            self.text_tokens, self.text_ended = rounds, True
        return first, (whole - first).times(1 / max(1, rounds - 1))

    def _image(self, free: range) -> Choice:
        if len(free) == self.count:
            return Sample()  # as it is drawn: tokens that are given are guesses too
        return Forced((0,) * self.count, then=Sample(), free=frozenset(free))

    def _best(self, text: Choice, image: Choice, images: int, drawn: list[Drawn] | None = None) -> Spent:
        orders = [Order(PROMPT, Ask(text=text, image=image), stream) for stream in range(images)]

        def draw() -> None:
            found = self.backbone.draw(orders)
            if drawn is not None:
                drawn[:] = found

        return _quickest(draw, self.quick)


@contextmanager
def _one_token_a_pass(backbone: Any) -> Iterator[None]:
    """Without leaps, where the backbone knows them."""
    before = getattr(backbone, "speculate", None)
    if before is not None:
        backbone.speculate = "off"
    try:
        yield
    finally:
        if before is not None:
            backbone.speculate = before


def _leaps(backbone: Any, batches: Iterable[tuple[int, float]], say: Say) -> tuple[Leaps, ...]:
    """Whole drafts of some prompts, with leaps and without in turn, in batches of so many images, which take so many
    seconds a draft without."""
    if getattr(backbone, "speculate", "off") == "off":
        return ()
    say("drawing several tokens a pass")
    found = []
    for images, seconds in batches:
        times = min(len(PROMPTS), int(PATIENCE / max(2 * images * seconds, 1e-9)))
        if not times:
            continue
        first = [
            [Order(PROMPTS[(time + image) % len(PROMPTS)], Ask(text=Sample()), time * images + image)
             for image in range(images)] for time in range(times)
        ]  # fmt: skip
        found.append(_leap(backbone, images, "first", first))
        if images == 1:
            found.append(_leap(backbone, 1, "later", [[_after_others(backbone, order)] for (order,) in first]))
    return tuple(found)


def _after_others(backbone: Backbone, order: Order) -> Order:
    """The same order once three drafts of its prompt are drawn, as a search has them."""
    others = [replace(order, stream=10_000 + 3 * order.stream + other) for other in range(3)]
    return replace(order, earlier=tuple(backbone.draw(others)))


def _leap(backbone: Any, images: int, drafts: str, batches: list[list[Order]]) -> Leaps:
    spent, without, drawn = Spent(0, 0), Spent(0, 0), []
    for number, orders in enumerate(batches):
        backbone.forget_guesses()
        if not number:
            backbone.draw(orders)  # memory is taken, and graphs are captured
            backbone.forget_guesses()
        spent += _timed(lambda: drawn.extend(backbone.draw(orders)))  # noqa: B023 - called at once
        with _one_token_a_pass(backbone):
            without += _timed(lambda: backbone.draw(orders))  # noqa: B023
    count = len(drawn)
    return Leaps(
        images=images,
        drafts=drafts,
        text_tokens=sum(one.cost.text_tokens for one in drawn) / count,
        text_passes=sum(one.cost.text_passes for one in drawn) / count,
        image_tokens=backbone.info.image_tokens,
        image_passes=sum(one.cost.image_passes for one in drawn) / count,
        draft=spent.times(1 / count),
        without=without.times(1 / count),
    )


def _timed(work: Callable[[], object]) -> Spent:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


def _quickest(work: Callable[[], object], quick: float = QUICK) -> Spent:
    """The least seconds of several times. The first time does not count, but for what is very slow: memory is taken,
    kernels are chosen and graphs captured then."""
    found: list[Spent] = []
    while not found or _again(found, quick):
        found.append(_timed(work))
    counted = found[1:] or found
    return Spent(min(one.wall for one in counted), min(one.cpu for one in counted))


def _again(found: list[Spent], quick: float) -> bool:
    took = sum(one.wall for one in found)
    return took < SLOW if len(found) == 1 else took < quick and len(found) <= TIMES


@contextmanager
def _without_pixels(backbone: Any) -> Iterator[None]:
    """Let the backbone show blank pictures, where its pixels can be taken from it: a stage of milliseconds is not to be
    told from the seconds of pixels behind it."""
    if not hasattr(backbone, "pixels") or "pixels" in vars(backbone):
        yield
        return
    size = backbone.info.image_size
    backbone.pixels = lambda pictures: [Image.new("RGB", (size, size)) for _ in pictures]
    try:
        yield
    finally:
        del backbone.pixels


@contextmanager
def _text_limit(backbone: Backbone, limit: int) -> Iterator[None]:
    """Let the backbone write at most so many text tokens, where it has such a limit."""
    before = getattr(backbone, "max_text_tokens", None)
    if before is not None:
        setattr(backbone, "max_text_tokens", min(limit, before))  # noqa: B010 - not every backbone has one
    try:
        yield
    finally:
        if before is not None:
            setattr(backbone, "max_text_tokens", before)  # noqa: B010


# --- What the memory must bring ------------------------------------------------------------------------------------


def copy_bandwidth(device: torch.device, size_bytes: int = 2**28) -> float:
    """Bytes a second that a copy on the device reads and writes, both counted: the best of five."""
    source = torch.ones(size_bytes // 4, device=device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(5):
        _wait(device)
        started = time.perf_counter()
        target.copy_(source)
        _wait(device)
        best = max(best, 2 * size_bytes / (time.perf_counter() - started))
    return best


def bytes_read(backbone: Any, images: int, text_tokens: int) -> tuple[int, int] | None:
    """What a text token and an image token of so many images must read: weights, and keys and values on average. None
    for a model that is no Janus."""
    model: Any = getattr(backbone, "model", None)
    core: Any = getattr(model, "model", None)
    if core is None or not hasattr(core, "generation_head") or not hasattr(backbone, "prompts"):
        return None
    config = model.config.text_config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    slot = 2 * config.num_hidden_layers * config.num_key_value_heads * width * model.dtype.itemsize
    layers = _bytes(core.language_model.layers.parameters())
    image = layers + _bytes(core.generation_head.parameters()) + _bytes(core.generation_aligner.parameters())
    text = layers + _bytes(model.lm_head.parameters())
    rows = images * (1 if backbone.info.guidance == 1 else 2)
    before_image = len(backbone.prompts.drawing(PROMPT, "")) + backbone.info.image_tokens / 2
    before_text = len(backbone.prompts.reasoning(PROMPT)) + text_tokens / 2
    return int(text + images * before_text * slot), int(image + rows * before_image * slot)


def _with_shares(backbone: Backbone, stages: Stages, probe: _Probe, bandwidth: float) -> Stages:
    read = bytes_read(backbone, stages.images, probe.text_drawn)
    if read is None:
        return stages
    text, image = (
        size / token.wall / bandwidth if token.wall else None
        for size, token in zip(read, (stages.text_token, stages.image_token), strict=True)
    )
    return Stages(**{**vars(stages), "text_share": text, "image_share": image})


def _bytes(parameters: Iterable[torch.Tensor]) -> int:
    return sum(parameter.numel() * parameter.itemsize for parameter in parameters)


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _wait(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- Rivals --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _naive(backbone: Any, probe: _Probe, say: Say) -> Rival:
    """One draft in the shape of the MILR authors' loop, by transformers' modules: one image at a time, the text without
    a cache, the image over a `DynamicCache`."""
    if bytes_read(backbone, 1, 1) is None:
        return Rival(1, note="only a Janus can be drawn by other code")
    from transformers import DynamicCache

    say("drawing by the naive loop")
    model, core, prompts = backbone.model, backbone.model.model, backbone.prompts
    device, guidance = model.device, backbone.info.guidance

    def write(length: int) -> None:
        ids = [*ids_of_text, *[prompts.pad] * ((probe.text_tokens - length) // 2)]
        for _ in range(length):
            seen = core.language_model(input_ids=torch.tensor([ids], device=device), use_cache=False)
            ids.append(int(model.lm_head(seen.last_hidden_state[:, -1]).argmax(-1)))

    def paint(start: int, length: int) -> None:
        cache = DynamicCache(config=core.language_model.config)
        inputs = core.get_input_embeddings()(torch.tensor(both, device=device))
        before = torch.zeros(len(both), start, dtype=torch.long, device=device)
        inputs = torch.cat([inputs, model.prepare_embeddings_for_image_generation(before).to(inputs.dtype)], 1)
        tokens = []
        for _ in range(length):
            seen = core.language_model(inputs_embeds=inputs, past_key_values=cache, use_cache=True)
            logits = core.generation_head(seen.last_hidden_state[:, -1]).float()
            logits = logits[1:] + guidance * (logits[:1] - logits[1:]) if len(both) == 2 else logits
            tokens.append(torch.multinomial(logits.softmax(-1), 1))
            inputs = model.prepare_embeddings_for_image_generation(tokens[-1].repeat(len(both), 1))
        torch.cat(tokens).tolist()

    def show() -> None:
        tokens = torch.zeros(1, probe.count, dtype=torch.long, device=device)
        ((model.decode_image_tokens(tokens).float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()

    ids_of_text, drawing = prompts.reasoning(PROMPT), prompts.drawing(PROMPT, "")
    both = [drawing] if guidance == 1 else [drawing, prompts.undrawn(drawing)]
    try:
        text = _quickest(lambda: write(probe.text_drawn)).times(1 / probe.text_drawn)
        first, window = (_quickest(functools.partial(paint, probe.start, many)) for many in (1, probe.tokens))
        image = (window - first).times(1 / (probe.tokens - 1))
        prompt = first if probe.start == 0 else _quickest(lambda: paint(0, 1))
        return Rival(1, image, text, prompt - image, _quickest(show))
    except Exception as error:  # transformers' classes change with its versions; ours is what is measured
        return Rival(1, note=_in_a_line(error))


@torch.no_grad()
def _generate(backbone: Any, images: int, tokens: int, say: Say) -> Rival:
    """Image tokens by transformers' own `generate` in its image mode, which writes no text and gives no pixels."""
    if bytes_read(backbone, 1, 1) is None:
        return Rival(images, note="only a Janus can be drawn by other code")
    say(f"drawing {images} by transformers' generate")
    model = backbone.model
    drawing = backbone.prompts.drawing(PROMPT, "")
    ids = torch.tensor([drawing] * images, device=model.device)
    vision = model.model.vision_model.config
    before = vision.num_image_tokens

    def generate(count: int) -> None:
        vision.num_image_tokens = count
        scale = max(backbone.info.guidance, 1.0)
        model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_mode="image", do_sample=True, guidance_scale=scale,
            max_length=len(drawing) + backbone.info.image_tokens,
        ).cpu()  # fmt: skip

    try:
        with _quiet():
            first = _quickest(lambda: generate(1))
            whole = _quickest(lambda: generate(tokens))
        return Rival(images, (whole - first).times(1 / (tokens - 1)))
    except Exception as error:  # it is broken in some versions of transformers (5.17: _prepare_static_cache)
        return Rival(images, note=f"fails in transformers {_version('transformers')}: {_in_a_line(error)}")
    finally:
        vision.num_image_tokens = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what transformers has to say of the settings of `generate`."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]


# --- The width -----------------------------------------------------------------------------------------------------


def good_width(backbone: Backbone) -> int:
    """How many drafts of one prompt to draw at once: the most of 1, 2, 4, 8, 16 that take less than twice the time of
    one. Measured once on this machine, in seconds, and remembered; MILR_WIDTH decides it where it is set, and a
    backbone may know its own (`good_width`, a number). Raises UserError where MILR_WIDTH is no such number."""
    fixed = os.environ.get("MILR_WIDTH", "").strip()
    if fixed:
        if not fixed.isdecimal() or not 1 <= int(fixed) <= 64:
            raise UserError(f"MILR_WIDTH is how many drafts are drawn at once, from 1 to 64, not '{fixed[:60]}'.")
        return int(fixed)
    if (own := getattr(backbone, "good_width", None)) is not None:
        return int(own)
    known = _recall(backbone).get("width")
    if known in WIDTHS:
        return int(known)
    width = _measured_width(backbone)
    _remember(backbone, width=width)
    return width


def _measured_width(backbone: Backbone) -> int:
    """Seconds of a draft are reckoned from the pixels and its image tokens: all of them where that is quick, as drafts
    alone may leap farther than many side by side, else a few, one a pass. On a processor those of the processor count:
    it does other things beside, and what is quick on a busy one is chance."""
    on_cpu = backbone.info.device.startswith("cpu")

    def seconds_of(spent: Spent) -> float:
        return spent.cpu if on_cpu else spent.wall

    count = backbone.info.image_tokens
    tokens = count + TEXT_TOKENS // 2  # a text token costs much the same
    probe = _Probe(backbone, min(count, WIDTH_TOKENS), WIDTH_QUICK)
    leaps = getattr(backbone, "speculate", "off") == "auto"
    if leaps:
        with _without_pixels(backbone), _one_token_a_pass(backbone):
            leaps = probe.image_token(1).wall * count < WIDTH_WHOLE
    if leaps:
        probe = _Probe(backbone, count, WIDTH_QUICK)
    pixels = seconds_of(probe.pixels(1))
    good, alone = 1, 0.0
    with _without_pixels(backbone), nullcontext() if leaps else _one_token_a_pass(backbone):
        for width in WIDTHS:
            if width > int(getattr(backbone, "max_batch", width)):
                break
            seconds = seconds_of(probe.image_token(width)) * tokens + pixels * width
            if width == 1:
                alone = seconds
            elif seconds >= 2 * alone:
                break
            good = width
    return good


# --- What is remembered --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reckoning:
    """What `measure` once found on this machine: seconds of a draft alone, and in a batch of `images`."""

    images: int
    seconds: float
    alone: float


def reckoning_for(model: str, device: str, dtype: str) -> Reckoning | None:
    """What was measured for a model that is not loaded, by the words that a command names it with; None for nothing."""
    from milr.backbones import PRESETS, is_flow
    from milr.backbones.checkpoint import find

    source = PRESETS[model].source if model in PRESETS else model
    if source and not Path(source).is_dir() and "/" not in source:
        return None  # of another package: nothing is known of it before it is loaded
    if is_flow(model):
        return None
    found = find(model, device, dtype)
    name, kind = found.name, str(found.dtype).removeprefix("torch.")
    identity = _identity(name, str(found.device), kind, found.config)
    memory = _read_memory()
    alike = [  # but for the threads: how many there will be may be settled as the model is loaded
        one for one in memory.values() if all(one.get(key) == identity[key] for key in identity if key != "threads")
    ]
    for one in (memory.get(_key(identity), {}), *alike):
        draft: Any = one.get("draft")
        try:
            return Reckoning(int(draft["images"]), float(draft["seconds"]), float(draft["alone"]))
        except (TypeError, KeyError, ValueError):
            continue
    return None


def memory_file() -> Path:
    """Where measurements are kept: $MILR_CACHE, $XDG_CACHE_HOME/milr or ~/.cache/milr."""
    own, shared = os.environ.get("MILR_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own) / "speed.json"
    # The XDG specification: a path that is not absolute is to be ignored.
    base = Path(shared) if shared and os.path.isabs(shared) else Path(os.path.expanduser("~")) / ".cache"
    return base / "milr" / "speed.json"


def device_name(device: str) -> str:
    """The name of a GPU or of the processor, as far as the system tells."""
    kind, _, index = device.partition(":")
    if kind == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_name(int(index or 0))
    return _processor()


@functools.cache
def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        named = ""
    return named or platform.processor() or platform.machine()


def _identity(name: str, device: str, dtype: str, config: Any) -> dict[str, Any]:
    """What a speed depends on. Weights count by their shapes: other values take the same time."""
    parts = [getattr(config, part, None) for part in ("text_config", "vq_config")]
    shapes = [[getattr(part, field, None) for field in SHAPES] for part in parts]
    return {
        "model": name,
        "shapes": hashlib.sha256(json.dumps(shapes, default=str).encode()).hexdigest()[:16],
        "device": device.partition(":")[0],
        "device_name": device_name(device),
        "dtype": dtype,
        "threads": torch.get_num_threads() if device.startswith("cpu") else 0,
        "milr": __version__,
        "engine": _engine(),
        "torch": str(torch.__version__),
    }


@functools.cache
def _engine() -> str:
    """A hash of the code that draws: another engine has another speed."""
    folder = Path(__file__).parent
    content = b"".join(file.read_bytes() for file in sorted(folder.rglob("*.py")) if file.name != "speed.py")
    return hashlib.sha256(content).hexdigest()[:16]


def _key(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _of(backbone: Any) -> dict[str, Any]:
    info = backbone.info
    return _identity(info.name, info.device, info.dtype, getattr(getattr(backbone, "model", None), "config", None))


def _recall(backbone: Backbone) -> dict[str, Any]:
    return _read_memory().get(_key(_of(backbone)), {})


def _remember(backbone: Backbone, **facts: Any) -> None:
    """Keep what was measured, where that can be written; nothing is lost but time where it cannot."""
    identity = _of(backbone)
    memory = _read_memory()
    memory[_key(identity)] = {**memory.get(_key(identity), {}), **identity, **facts}
    try:
        text = json.dumps({"format": FORMAT, "measured": memory}, indent=2) + "\n"
        write_atomically(memory_file(), text.encode())
    except (UserError, OSError):
        pass


def _read_memory() -> dict[str, dict[str, Any]]:
    """What is on record; nothing where the file is missing, damaged or of another format."""
    try:
        found = json.loads(memory_file().read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    measured = found.get("measured") if isinstance(found, dict) and found.get("format") == FORMAT else None
    if not isinstance(measured, dict):
        return {}
    return {key: one for key, one in measured.items() if isinstance(one, dict)}


def _version(package: str) -> str:
    from importlib import metadata

    return metadata.version(package)


# --- In words ------------------------------------------------------------------------------------------------------


def to_json(speed: Speed) -> dict[str, Any]:
    """All that was measured, with seconds a draft and how many times faster than the rivals."""
    found = asdict(speed)
    for said, stages in zip(found["stages"], speed.stages, strict=True):
        said["draft"] = asdict(speed.draft(stages))
    found["against"] = [asdict(one) for one in against(speed)]
    return found


@dataclass(frozen=True)
class Against:
    """How many times faster than a rival: whole drafts, or only image tokens where the rival draws nothing else."""

    rival: str
    images: int
    what: str
    wall: float | None
    cpu: float | None
    note: str = ""


def against(speed: Speed) -> list[Against]:
    """Ours beside the rivals, in each batch; the naive loop draws one image at a time."""
    found = []
    for stages, rival in zip(speed.stages, speed.transformers, strict=True):
        ours, theirs = stages.image_token, rival.image_token
        found.append(_ratio("transformers generate", stages.images, "image tokens", ours, theirs, rival.note))
    theirs = speed.naive.draft(speed.text_tokens, speed.image_tokens)
    for stages in speed.stages:
        found.append(_ratio("naive loop", stages.images, "drafts", speed.draft(stages), theirs, speed.naive.note))
    return found


def _ratio(rival: str, images: int, what: str, ours: Spent, theirs: Spent | None, note: str) -> Against:
    if theirs is None:
        return Against(rival, images, what, None, None, note)
    wall = theirs.wall / ours.wall if ours.wall else None
    return Against(rival, images, what, wall, theirs.cpu / ours.cpu if ours.cpu else None)
