"""Drawing with a flow model: texts to states, noise to latents, latents to pictures.

The loop is Euler's method over the pipeline's own noise levels, one request a row, each with levels, guidance and text
of its own; so a picture depends on its request and not on what it is batched with (up to float ties), and is what the
pipeline itself would draw from the same noise (tests/backbones/flow). A request may keep a finished picture and draw
only a part of it anew. Knows no search, no draft and no key; running out of memory is left to the caller, who knows
what else could be halved.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from milr.backbones.checkpoint import Memory, pictures_at_once
from milr.backbones.flow.families import PATCH, Family, Schedule, Variant
from milr.backbones.flow.folder import LENT, TEXTS_AT_ONCE, WITH_WEIGHTS, Found, find
from milr.backbones.sampling import prefix_length
from milr.drafts import UserError
from milr.hub import other_dtype

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Conditioning:
    """What a picture sees of a text."""

    text: str
    states: Tensor  # [L, D], on the model's device
    tokens: int  # of the text with its template, as far as a picture may see them
    is_cut: bool  # whether the text was too long, and its end (and the template's) not read


@dataclass(frozen=True)
class Kept:
    """A finished picture that a request keeps, but for a part.

    Args:
        latents: [C, h, w], as `Drawer.paint` gave them.
        where: [h, w], True for cells that are to be drawn anew.
        strength: how much noise the part starts from, above 0 and at most 1, where nothing is left of the old picture
            in it. Of n steps the last ceil(strength n) are made.
        feather: so many cells around the part are blended, less and less new.
    """

    latents: Tensor
    where: Tensor
    strength: float = 1.0
    feather: int = 1


@dataclass(frozen=True)
class Request:
    """One picture to draw.

    Args:
        conditioning: what `Drawer.encode` made of its text.
        noise: [C, h, w], standard normal. With `kept`, the noise of the kept cells is what they are held at on the way.
        steps, guidance: None: those of the model.
        kept: a finished picture of which only a part is drawn.
    """

    conditioning: Conditioning
    noise: Tensor
    steps: int | None = None
    guidance: float | None = None
    kept: Kept | None = None


def feathered(where: Tensor, reach: int) -> Tensor:
    """How new each cell becomes, [h, w] float32: 1 in the part, falling evenly to 0 over `reach` cells around it."""
    grown = where.to("cpu", torch.float32).clamp(0, 1)
    mask = grown.clone()
    for distance in range(1, reach + 1):
        grown = torch.nn.functional.max_pool2d(grown[None, None], 3, stride=1, padding=1)[0, 0]
        mask = torch.where((mask == 0) & (grown > 0), 1 - distance / (reach + 1), mask)
    return mask


class _Run:
    """A request on its way: the picture as it is, and the step that comes next."""

    def __init__(self, request: Request, schedule: Schedule, guidance: float, dtype: torch.dtype, device: torch.device):
        self.conditioning, self.guidance = request.conditioning, guidance
        self.times, self.sigmas = schedule.times.to(device), schedule.sigmas.to(device)
        self.noise = request.noise.to(device, torch.float32)
        self.old: Tensor | None = None
        self.step = 0
        if (kept := request.kept) is not None:
            self.old = kept.latents.to(device, torch.float32)
            self.mask = feathered(kept.where, kept.feather).to(device)
            self.step = len(self.times) - steps_of(len(self.times), kept)
        self.picture = (self.noise if self.old is None else self._noised()).to(dtype)

    def _noised(self) -> Tensor:
        """The old picture at the noise level of the next step. Its noise is always the request's, so that where old and
        new are blended both lie on lines from the same noise, and the blend is as noisy as either."""
        assert self.old is not None
        sigma = self.sigmas[self.step]
        return (1 - sigma) * self.old + sigma * self.noise

    def advance(self, velocity: Tensor) -> None:
        """Euler's step, rounded as the scheduler rounds it; then what is kept is put back at its noise level."""
        change = self.sigmas[self.step + 1] - self.sigmas[self.step]  # times a bfloat16 it is one, as for the scheduler
        picture = (self.picture.float() + change * velocity).to(velocity.dtype)
        self.step += 1
        if self.old is not None:
            kept = self._noised()
            picture = torch.where(self.mask == 0, kept, self.mask * picture + (1 - self.mask) * kept).to(velocity.dtype)
        self.picture = picture


def steps_of(steps: int, kept: Kept | None) -> int:
    """How many of so many steps a request makes."""
    return steps if kept is None else max(1, prefix_length(kept.strength, steps))


class Drawer:
    """A flow model that draws. Everything public is what a caller needs to make requests and to count their cost."""

    def __init__(self, pipe: Any, found: Found) -> None:
        self.pipe = pipe  # diffusers' own; its text_encoder and tokenizer are the reasoner's
        self.name: str = found.name
        self.family: Family = found.family
        self.variant: Variant = found.variant
        self.device: torch.device = found.device
        self.dtype: torch.dtype = found.dtype
        self.grid: int = found.grid  # cells a side
        self.channels: int = found.channels  # numbers of a cell
        self.image_size: int = found.image_size  # pixels a side
        self.steps: int = found.steps
        self.guidance: float = found.guidance
        self.text_tokens: int = found.text_tokens
        self.reasoning, self.drawing = found.reasoning, found.drawing  # what the encoder is asked for, and read
        self.reasoning_tokens: int = found.reasoning_tokens
        self.parameters: int = found.parameters
        self.memory: Memory = found.memory
        self.images_at_once: int = found.images_at_once()
        self._layers = found.text_layers
        self._schedules: dict[int, Schedule] = {}  # by steps
        self._passes: dict[int, int] = {}  # work of a pass, by words

    @classmethod
    def load(cls, name_or_dir: str, device: str = "auto", dtype: str = "auto", image_size: int | None = None) -> Drawer:
        """Load the pipeline of a preset, a hub id or a folder. Safetensors only, never remote code.

        Raises UserError, mostly before any weight is read, for a wrong name, device or dtype, a folder that is no
        pipeline of a known family or not complete, too little memory, and where diffusers is missing.
        """
        found = find(name_or_dir, device, dtype, image_size)
        return cls(_load(found), found)

    # --- Texts ---

    def encode(self, texts: Sequence[str]) -> list[Conditioning]:
        """What pictures see of these texts, by the pipeline's own encoding."""
        encoded: list[Conditioning] = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            some = list(texts[start : start + TEXTS_AT_ONCE])
            with torch.no_grad():
                states = self.family.encode(self.pipe, some, self.text_tokens, self._layers)
            for text, seen in zip(some, states, strict=True):
                tokens = self.length(text)
                own = seen.clone()  # whoever keeps it shall not keep the whole batch
                encoded.append(Conditioning(text, own, tokens, tokens > self.text_tokens))
        return encoded

    def length(self, text: str) -> int:
        """How many tokens a picture would see of a text, template included; beyond `text_tokens` it is cut."""
        read = self.pipe.tokenizer(self.family.template(self.pipe, text))["input_ids"]
        return len(read) - self.family.unseen(self.pipe)

    @cached_property
    def _nothing(self) -> Conditioning:
        """What the unconditional pass sees."""
        return self.encode([self.family.nothing])[0]

    @property
    def writes(self) -> bool:
        """Whether the text encoder has a head, so that it can write a reasoning itself."""
        return self.pipe.text_encoder.get_output_embeddings() is not None

    # --- Pictures ---

    @torch.no_grad()
    def paint(self, requests: Sequence[Request], on_progress: Callable[[int, int], None] | None = None) -> list[Tensor]:
        """Draw each request: its final latents [C, h, w], float32 on the model's device.

        Args:
            requests: drawn as one batch; a caller that runs out of memory gives fewer.
            on_progress: told, after every step, how many evaluations of how many are done.
        Where a request keeps a picture, its latents come back exactly as they were wherever `feathered` is 0.
        """
        for request in requests:
            self._check(request)
        total, done = sum(self.evaluations(request) for request in requests), 0
        dtype = torch.float32 if self.family.float32_latents else self.dtype
        runs = [
            _Run(request, self._schedule(self._steps(request)), self._guidance(request), dtype, self.device)
            for request in requests
        ]
        while active := [run for run in runs if run.step < len(run.times)]:
            for run, velocity in zip(active, self._velocities(active), strict=True):
                run.advance(velocity)
                done += 1 + self._is_guided(run.guidance)
            if on_progress is not None:
                on_progress(done, total)
        drawn = [run.picture.float().contiguous() for run in runs]
        if drawn and not bool(torch.stack([picture.isfinite().all() for picture in drawn]).all()):
            kind = str(self.dtype).removeprefix("torch.")
            raise UserError(f"{self.name} draws numbers that are not finite{other_dtype(kind, '--dtype ')}.")
        return drawn

    def _velocities(self, runs: Sequence[_Run]) -> list[Tensor]:
        """The velocity of each picture, guided where it is; one pass over all, and one over those that are guided."""
        cells, times = torch.stack([run.picture for run in runs]), torch.stack([run.times[run.step] for run in runs])
        states = [run.conditioning.states for run in runs]
        guided = [at for at, run in enumerate(runs) if self._is_guided(run.guidance)]
        if not guided:
            return list(self.family.velocity(self.pipe, cells, times, states))
        nothing = [self._nothing.states] * len(guided)
        if self.family.guides_in_one_pass:
            both = torch.cat([cells, cells[guided]]), torch.cat([times, times[guided]]), states + nothing
            velocities = self.family.velocity(self.pipe, *both)
            conditional, unconditional = velocities[: len(runs)], velocities[len(runs) :]
        else:
            conditional = self.family.velocity(self.pipe, cells, times, states)
            unconditional = self.family.velocity(self.pipe, cells[guided], times[guided], nothing)
        found = list(conditional)
        for at, without in zip(guided, unconditional, strict=True):
            found[at] = self.family.guide(found[at], without, runs[at].guidance)
        return found

    @torch.no_grad()
    def decode(self, latents: Sequence[Tensor]) -> list[Image]:
        """The pictures of final latents [C, h, w], as many at a time as the device is good for."""
        at_once = pictures_at_once(self.image_size**2, self.device.type)
        images: list[Image] = []
        for start in range(0, len(latents), at_once):
            cells = torch.stack([picture.to(self.device, self.dtype) for picture in latents[start : start + at_once]])
            pixels = self.family.pixels(self.pipe, cells)
            if not bool(pixels.isfinite().all()):
                kind = str(self.dtype).removeprefix("torch.")
                raise UserError(f"{self.name} decodes to numbers that are not finite{other_dtype(kind, '--dtype ')}.")
            images += self.pipe.image_processor.postprocess(pixels, output_type="pil")
        return images

    # --- Costs ---

    def evaluations(self, request: Request) -> int:
        """Forward passes of the network for one picture; both passes of a guided step count."""
        made = steps_of(self._steps(request), request.kept)
        return made * (1 + self._is_guided(self._guidance(request)))

    def flops(self, request: Request) -> int:
        """Floating-point operations to draw one picture and decode it: every matrix product, attention and convolution,
        a product and a sum counted as two. The encoding of its text is `encoding_flops`."""
        made = steps_of(self._steps(request), request.kept)
        step = self._pass_flops(len(request.conditioning.states))
        if self._is_guided(self._guidance(request)):
            step += self._pass_flops(len(self._nothing.states))
        return made * step + self._decoding_flops

    def encoding_flops(self, conditioning: Conditioning) -> int:
        """Floating-point operations of the encoder over one text: two for each weight of its layers and token read."""
        read = self.text_tokens if self.family.pads_text else conditioning.tokens
        body = sum(
            weights.numel()
            for name, weights in self.pipe.text_encoder.named_parameters()
            if weights.dim() == 2 and "embed_tokens" not in name and "visual" not in name and "lm_head" not in name
        )
        return int(2 * body * (read + self.family.unseen(self.pipe)))

    def _pass_flops(self, words: int) -> int:
        """Of one pass of the network over one picture and a text of so many states.

        Counting takes a large network seconds, so it is done for three lengths at most; products grow with the length,
        attention with its square, so that three say what any other takes.
        """
        at = -(-words // self.family.words_together) * self.family.words_together
        if at not in self._passes and len(self._passes) < 3:
            states = torch.empty(at, int(self.pipe.transformer.config[self.family.text_width]), device="meta")
            cells, times = self._no_cells, torch.empty(1, device="meta")
            self._passes[at] = _counted(lambda: self.family.velocity(self._empty, cells, times, [states]))
        if at in self._passes:
            return self._passes[at]
        (x, f), (y, g), (z, h) = self._passes.items()  # a parabola through three points, in whole numbers
        slope, other = Fraction(g - f, y - x), Fraction(h - g, z - y)
        return int(f + slope * (at - x) + (other - slope) / (z - x) * (at - x) * (at - y))

    @cached_property
    def _decoding_flops(self) -> int:
        return _counted(lambda: self.family.pixels(self._empty, self._no_cells))

    @cached_property
    def _empty(self) -> Any:
        """The networks without numbers, on which work can be counted at no cost."""
        with torch.device("meta"):
            whole = {"transformer": self.pipe.transformer, "vae": self.pipe.vae}
            return SimpleNamespace(**{part: type(model).from_config(model.config) for part, model in whole.items()})

    @property
    def _no_cells(self) -> Tensor:
        return torch.empty(1, self.channels, self.grid, self.grid, device="meta")

    # --- What a request leaves to the model ---

    def _steps(self, request: Request) -> int:
        return self.steps if request.steps is None else request.steps

    def _guidance(self, request: Request) -> float:
        return self.guidance if request.guidance is None else request.guidance

    def _is_guided(self, guidance: float) -> bool:
        return self.variant.can_guide and guidance > self.family.no_guidance

    def _schedule(self, steps: int) -> Schedule:
        if steps not in self._schedules:
            schedule = self.family.schedule(self.pipe, steps, self.grid**2)
            if not bool(schedule.sigmas.isfinite().all()):
                raise UserError(f"The scheduler of {self.name} cannot draw in {steps} steps; ask for more.")
            self._schedules[steps] = schedule
        return self._schedules[steps]

    def _check(self, request: Request) -> None:
        shape = (self.channels, self.grid, self.grid)
        if tuple(request.noise.shape) != shape:
            raise ValueError(f"a noise of shape {tuple(request.noise.shape)} where {shape} is wanted")
        if self._steps(request) < 1 or not 0 <= self._guidance(request) < math.inf:
            raise ValueError(f"{self._steps(request)} steps at guidance {self._guidance(request)}")
        if (kept := request.kept) is not None:
            if tuple(kept.latents.shape) != shape or tuple(kept.where.shape) != shape[1:]:
                raise ValueError(f"a picture of shape {tuple(kept.latents.shape)} to keep where {shape} is wanted")
            if not 0 < kept.strength <= 1 or kept.feather < 0:
                raise ValueError(f"a part drawn anew at strength {kept.strength}, feathered over {kept.feather} cells")


def _counted(work: Callable[[], object]) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return int(counter.get_total_flops())


# --- Loading -----------------------------------------------------------------------------------------------


def _load(found: Found) -> Any:
    """The pipeline of a folder that was found good: its parts by their own classes, put together here."""
    with _quietly(found.memory.weights < 10**9):
        try:
            return _assembled(found)
        except UserError:
            raise
        except Exception as error:  # whatever a broken file makes the readers raise, the answer is the same
            reason = str(error).strip().splitlines()
            raise UserError(f"{found.name} cannot be read ({reason[0] if reason else error!r}).") from error


def _assembled(found: Found) -> Any:
    import diffusers
    import transformers

    parts: dict[str, Any] = {
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(
            found.directory, subfolder="scheduler", local_files_only=True
        ),
        "tokenizer": transformers.AutoTokenizer.from_pretrained(
            f"{found.directory}/tokenizer", trust_remote_code=False, local_files_only=True
        ),
    }
    if found.lender:
        parts["text_encoder"] = _language_model(found.lender).to(found.device, found.dtype)
    for part in WITH_WEIGHTS:
        if part in parts:
            continue
        library: Any = transformers if part == "text_encoder" else diffusers
        kind = getattr(library, found.classes[part], None)
        if kind is None or not hasattr(kind, "from_pretrained"):
            raise UserError(
                f"The {library.__name__} {library.__version__} that is installed knows no {found.classes[part]}, the "
                f"{part} of {found.name}; pip install --upgrade 'milr[flow]' brings a newer one."
            )
        model, report = kind.from_pretrained(
            f"{found.directory}/{part}",
            dtype=found.dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **({"trust_remote_code": False} if library is transformers else {}),
        )
        missing = sorted(report["missing_keys"])
        if missing:
            raise UserError(
                f"{found.name} is incomplete: {len(missing)} weights of its {part} are missing, the first is "
                f"{missing[0]}."
            )
        parts[part] = model.eval().requires_grad_(False).to(found.device)
    kind = getattr(diffusers, found.family.pipeline)
    pipe = kind(**parts, **{key: found.options[key] for key in signature(kind).parameters if key in found.options})
    assert PATCH * found.family.scale(pipe.vae.config) * found.grid == found.image_size
    return pipe


def _language_model(lender: str) -> Any:
    """The language model of a Janus checkpoint, as a model of its own. Its head is its embeddings."""
    import transformers

    config = json.loads(Path(lender, "config.json").read_text(encoding="utf-8"))["text_config"]
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**config, "tie_word_embeddings": True}))
    with safe_open(Path(lender) / "model.safetensors", framework="pt") as tensors:
        weights = {
            f"model.{name.removeprefix(LENT)}": tensors.get_tensor(name)
            for name in tensors.keys()  # noqa: SIM118
            if name.startswith(LENT)
        }
    missing, unknown = model.load_state_dict(weights, strict=False)
    if set(missing) - {"lm_head.weight"} or unknown:
        raise UserError(f"The language model of {Path(lender).name} is not complete; install milr again.")
    model.tie_weights()
    return model.eval().requires_grad_(False)


@contextmanager
def _quietly(is_quick: bool) -> Iterator[None]:
    """Without progress bars for what is over before they could be read, and without the libraries' asides: what is
    wrong with a folder is said here."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    both: tuple[Any, Any] = (of_diffusers, of_transformers)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in both]
    for library in both:
        library.set_verbosity_error()
        if is_quick:
            library.disable_progress_bar()
    try:
        yield
    finally:
        for library, (level, shown) in zip(both, before, strict=True):
            library.set_verbosity(level)
            if shown:
                library.enable_progress_bar()
