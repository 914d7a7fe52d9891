"""Janus and Janus-Pro through transformers' own class: loading, prompts, heads, pixels and the understanding path.

Knows checkpoints, wording and ids; the token loops are in decoding.py. It never calls `generate`: transformers' image
mode returns no hidden states, cannot switch guidance off and silently samples from the 50 best tokens.
"""

from __future__ import annotations

import difflib
import importlib.resources
import json
import math
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, JanusConfig, JanusForConditionalGeneration
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from milr.backbones import PRESETS, names
from milr.backbones.base import BackboneInfo
from milr.backbones.decoding import Decoded, Decoder, Plan, Stage, decode, guide, prefix_length, uniforms
from milr.drafts import Choice, Cost, Drawn, Forced, Greedy, Latents, Order, UserError

# Where a checkpoint says nothing: guidance of Janus-Pro's own script, and the longest reasoning of MILR's code.
DEFAULT_GUIDANCE = 5.0
DEFAULT_MAX_TEXT_TOKENS = 512
LARGEST_BATCH = 64

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SMALL_PARAMETERS = 500_000_000  # up to here float32 is cheap enough to be the default

# --- Prompts --------------------------------------------------------------------------------------------------

_ASSISTANT_FOR_IMAGES = "You are an assistant who turns the prompt of an image into a short description of the picture to be drawn."
_REASONING_REQUEST = (
    "Picture the image that this prompt asks for: {prompt}\n"
    "Describe what is to be seen: every object, the attributes that the prompt gives, and how the objects relate to "
    "each other in space. Use at most 50 words and add nothing that the prompt does not ask for."
)
# Janus-Pro's own words for the understanding path.
_ASSISTANT_FOR_VISION = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
_YES = ("yes", "Yes", " yes", " Yes")
_NO = ("no", "No", " no", " No")


class Prompts:
    """Token ids of the three things a Janus is asked: to reason, to draw, to answer.

    A tokenizer with the named chat templates `reasoning`, `image` and `question` is asked in their words (they write
    the whole string, from the begin token on); any other in Janus-Pro's.
    """

    def __init__(self, tokenizer: Any, config: JanusConfig, generation: GenerationConfig) -> None:
        self._tokenizer = tokenizer
        templates = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {}
        self._has_templates = {"reasoning", "image", "question"} <= set(templates)
        extra = generation.generation_kwargs if isinstance(generation.generation_kwargs, dict) else {}
        self.begin = _required("a begin-of-text token", tokenizer.bos_token_id, generation.bos_token_id)
        self.end = _required("an end-of-text token", tokenizer.eos_token_id, generation.eos_token_id)
        self.pad = _required("a padding token", tokenizer.pad_token_id, generation.pad_token_id)
        self.image = _required("an image token", config.image_token_id)
        self.begin_image = _required(
            "a begin-of-image token", extra.get("boi_token_id"), self._named("boi_token", "<begin_of_image>")
        )
        self.end_image = _required("an end-of-image token", self._named("eoi_token", "<end_of_image>"))
        self._seen_tokens: int = config.vision_config.num_image_tokens
        added = tokenizer.added_tokens_decoder.values()
        control = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
        self._control = sorted(control, key=len, reverse=True)
        self._control_pattern = re.compile("|".join(map(re.escape, self._control)))
        self.yes, self.no = self._first_tokens(_YES), self._first_tokens(_NO)
        self.yes, self.no = self.yes - self.no, self.no - self.yes  # where ' ' is a token of its own

    def reasoning(self, prompt: str) -> list[int]:
        """The request for a reasoning."""
        self.check(prompt)
        if self._has_templates:
            return self._render("reasoning", prompt)
        request = _REASONING_REQUEST.format(prompt=prompt.strip())
        return self._encode(f"{_ASSISTANT_FOR_IMAGES}\n\n<|User|>: {request}\n\n<|Assistant|>:")

    def drawing(self, prompt: str, reasoning: str) -> list[int]:
        """The request for an image, ending in the begin-of-image token."""
        reasoning = self.clean(reasoning)
        if self._has_templates:
            ids = self._render("image", prompt, reasoning)
            return ids if ids[-1] == self.begin_image else [*ids, self.begin_image]
        wish = f"{prompt.strip()}. {reasoning}".strip() if reasoning else prompt.strip()
        return [*self._encode(f"<|User|>: {wish}\n\n<|Assistant|>:"), self.begin_image]

    def undrawn(self, drawing: Sequence[int]) -> list[int]:
        """The unconditional twin of an image request: all but begin tokens become padding, which is attended to."""
        return [token if token in (self.begin, self.begin_image) else self.pad for token in drawing]

    def question(self, question: str) -> list[int]:
        """A yes/no question about an image, with one image token for each feature of the vision tower."""
        self.check(question)
        if self._has_templates:
            ids = self._render("question", question)
        else:
            before = self._encode(f"{_ASSISTANT_FOR_VISION}\n\n<|User|>: ")
            after = self._encode(f"\n{question.strip()} Answer yes or no.\n\n<|Assistant|>:", begin=False)
            ids = [*before, self.image, *after]
        if ids.count(self.image) == 1 != self._seen_tokens:
            at = ids.index(self.image)
            bare = at == 0 or ids[at - 1] != self.begin_image
            seen = [self.image] * self._seen_tokens
            seen = [self.begin_image, *seen, self.end_image] if bare else seen
            ids = [*ids[:at], *seen, *ids[at + 1 :]]
        if ids.count(self.image) != self._seen_tokens:
            raise UserError(
                f"The checkpoint's template 'question' holds {ids.count(self.image)} image tokens, not 1 or "
                f"{self._seen_tokens}; use another checkpoint or mend the template."
            )
        return ids

    def text(self, tokens: Sequence[int]) -> str:
        """The string that text tokens spell, without control tokens."""
        return cast(str, self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def clean(self, reasoning: str) -> str:
        """A reasoning as it goes into a prompt: nothing in it may be read as a control token."""
        while self._control_pattern.search(reasoning):
            reasoning = self._control_pattern.sub("", reasoning)
        return reasoning.strip()

    def check(self, text: str) -> None:
        """Refuse what a prompt must not hold."""
        if not text.strip():
            raise UserError("The prompt is empty; say what to draw.")
        found = self._control_pattern.search(text)
        if found:
            raise UserError(
                f"The prompt holds {found[0]!r}, a control token of this model; write it in other words."
            )

    def _render(self, template: str, user: str, assistant: str | None = None) -> list[int]:
        messages = [{"role": "user", "content": user}]
        if assistant is not None:
            messages.append({"role": "assistant", "content": assistant})
        text = self._tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
        return self._encode(text, begin=False)

    def _encode(self, text: str, begin: bool = True) -> list[int]:
        # A lone surrogate (an undecodable byte of a command line) has no UTF-8 form.
        text = text.encode("utf-8", "replace").decode("utf-8")
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        return [self.begin, *ids] if begin else list(ids)

    def _named(self, attribute: str, content: str) -> int | None:
        """Id of an extra special token, by the tokenizer's attribute or, in older conversions, by its content."""
        content = getattr(self._tokenizer, attribute, None) or content
        return cast("int | None", self._tokenizer.get_vocab().get(content))

    def _first_tokens(self, words: Iterable[str]) -> set[int]:
        return {self._encode(word, begin=False)[0] for word in words}


def _required(what: str, *candidates: Any) -> int:
    for candidate in candidates:
        if isinstance(candidate, list) and candidate:
            candidate = candidate[0]
        if candidate is not None:
            return int(candidate)
    raise UserError(
        f"This checkpoint's tokenizer has no {what.split(' ', 1)[1]}; use a complete Janus checkpoint."
    )


# --- The backbone ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Reasoning:
    """What the text stage hands to the image stage."""

    string: str
    tokens: tuple[int, ...]
    ended: bool
    latents: Tensor | None
    sampled: int
    prefilled: int


class JanusBackbone:
    """A frozen Janus: draws, gives its heads, answers questions. See `milr.backbones.base.Backbone`."""

    def __init__(
        self,
        model: JanusForConditionalGeneration,
        tokenizer: Any,
        name: str,
        max_text_tokens: int | None = None,
        max_batch: int = LARGEST_BATCH,
    ) -> None:
        model.requires_grad_(False).eval()
        config = model.config
        generation = model.generation_config
        self.model = model
        self.prompts = Prompts(tokenizer, config, generation)
        self.max_text_tokens: int = max_text_tokens or generation.max_new_tokens or DEFAULT_MAX_TEXT_TOKENS
        self.max_batch = max_batch
        grid = int(config.vq_config.num_patches)
        guidance = generation.guidance_scale
        self.info = BackboneInfo(
            name=name,
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(model.device),
            image_tokens=grid * grid,
            image_size=grid * 2 ** (len(config.vq_config.channel_multiplier) - 1),
            hidden_size=config.text_config.hidden_size,
            guidance=DEFAULT_GUIDANCE if guidance is None else float(guidance),
            grid=grid,
        )
        self._decoder = Decoder(model.model.language_model)
        self._longest: int = config.text_config.max_position_embeddings
        self._text_ids = lru_cache(maxsize=256)(self.prompts.reasoning)

    # The verbs

    def draw(self, orders: Sequence[Order]) -> list[Drawn]:
        """Draw each order, in order; what is batched with what never changes a draft (up to float ties)."""
        for order in orders:
            self._check(order)
        # Unguided drafts need half of the rows, so they are drawn by themselves.
        waiting = sorted(range(len(orders)), key=lambda index: self._guidance(orders[index]) == 1.0)
        drawn: dict[int, Drawn] = {}
        while waiting:
            guided = self._guidance(orders[waiting[0]]) != 1.0
            batch = [i for i in waiting[: self.max_batch] if (self._guidance(orders[i]) != 1.0) == guided]
            try:
                drawn |= zip(batch, self._draw_batch([orders[index] for index in batch]), strict=True)
            except torch.OutOfMemoryError as error:
                if len(batch) == 1:
                    raise UserError(
                        f"One image of {self.info.name} does not fit into the memory of {self.info.device}; "
                        "choose a smaller model or another --device."
                    ) from error
                self.max_batch = len(batch) // 2
                continue
            waiting = waiting[len(batch) :]
        return [drawn[index] for index in range(len(orders))]

    def text_logits(self, latents: Tensor) -> Tensor:
        """Text head: [T, D] -> [T, V_text] float32 on the device of `latents`; differentiable.

        Computed in the model's dtype, exactly as the engine does before it chooses a token.
        """
        head = self.model.lm_head
        return cast(Tensor, head(latents.to(head.weight)).to(latents.device, torch.float32))

    def image_logits(self, latents: Tensor, guidance: float) -> Tensor:
        """Image head and guidance u + w (c - u): [T, 2, D] -> [T, V_image] float32; differentiable."""
        return self._image_logits(latents, guidance).to(latents.device)

    @torch.no_grad()
    def answer(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[float]:
        """P(yes) against P(no) for one question about each image: the mass on the first tokens of either word."""
        answers: list[float] = []
        for start in range(0, len(images), self.max_batch):
            chosen = slice(start, start + self.max_batch)
            answers += self._answer_batch(images[chosen], questions[chosen])
        return answers

    def text_end(self) -> int:
        return self.prompts.end

    def decode_text(self, tokens: Sequence[int]) -> str:
        return self.prompts.text(tokens)

    # Drawing

    @torch.no_grad()
    def _draw_batch(self, orders: Sequence[Order]) -> list[Drawn]:
        started = time.perf_counter()
        reasonings = self._write(orders)
        pictures = self._paint(orders, reasonings)
        images = self.pixels([picture.tokens for picture in pictures])
        seconds = (time.perf_counter() - started) / len(orders)
        drawn = []
        for order, text, picture, image in zip(orders, reasonings, pictures, images, strict=True):
            latents = None
            if text.latents is not None or len(picture.latents):
                width = self.info.hidden_size
                of_text = torch.zeros(0, width) if text.latents is None else text.latents
                of_image = (
                    picture.latents.expand(-1, 2, -1) if len(picture.latents) else torch.zeros(0, 2, width)
                )
                latents = Latents(of_text.clone(), of_image.clone())
            cost = Cost(0, text.sampled, picture.sampled, text.prefilled + picture.prefilled, seconds)
            guidance = self._guidance(order)
            drawn.append(
                Drawn(text.string, text.tokens, text.ended, picture.tokens, image, latents, guidance, cost)
            )
        return drawn

    def _write(self, orders: Sequence[Order]) -> list[_Reasoning]:
        """The text stage. A text that is forced to its end is only run where its latents are asked for."""
        limit, end = self.max_text_tokens, self.prompts.end
        plans: dict[int, Plan] = {}
        whole: dict[int, tuple[tuple[int, ...], bool]] = {}
        for index, order in enumerate(orders):
            choice = order.ask.text
            forced = choice.tokens if isinstance(choice, Forced) else ()
            ended = end in forced
            tokens = forced[: forced.index(end)] if ended else forced[:limit]
            free = range(0) if ended else range(len(tokens), limit)
            keep = prefix_length(order.ask.text_ratio, limit if free else len(tokens))
            if not free:
                whole[index] = tokens, ended
            if free or keep:
                numbers = uniforms(order.stream, 0, limit)
                prompt = (self._text_ids(order.prompt),)
                plans[index] = Plan(prompt, tokens, free, keep, _temperature(choice), numbers)
        stage = Stage(
            limit, self._decoder.embed_tokens, lambda state, rows: self.text_logits(state[:, 0]), end
        )
        decoded = self._decode(stage, plans)
        reasonings = []
        for index, order in enumerate(orders):
            done = decoded.get(index)
            tokens, ended = whole.get(index) or (done.tokens, done.ended)  # type: ignore[union-attr]
            latents = None
            if done and order.ask.text_ratio > 0:
                latents = done.latents[: prefix_length(order.ask.text_ratio, len(tokens)), 0]
            string = self.prompts.text(tokens).strip()
            spent = (done.sampled, done.prefilled) if done else (0, 0)
            reasonings.append(_Reasoning(string, tuple(tokens), ended, latents, *spent))
        return reasonings

    def _paint(self, orders: Sequence[Order], reasonings: Sequence[_Reasoning]) -> list[Decoded]:
        """The image stage: a conditional row for each draft and, if guided, an unconditional one."""
        count = self.info.image_tokens
        plans: dict[int, Plan] = {}
        whole: dict[int, Decoded] = {}
        for index, (order, text) in enumerate(zip(orders, reasonings, strict=True)):
            choice = order.ask.image
            tokens, free = self._image_choice(choice)
            keep = prefix_length(order.ask.image_ratio, count)
            if not free and not keep:
                whole[index] = Decoded(tokens, False, torch.zeros(0), 0, 0)
                continue
            drawing = self.prompts.drawing(order.prompt, text.string)
            branches = (
                (drawing,) if self._guidance(order) == 1.0 else (drawing, self.prompts.undrawn(drawing))
            )
            plans[index] = Plan(
                branches, tokens, free, keep, _temperature(choice), uniforms(order.stream, 1, count)
            )
        scales = torch.tensor([[self._guidance(orders[index])] for index in plans], device=self.model.device)
        stage = Stage(
            count,
            self.model.prepare_embeddings_for_image_generation,
            lambda state, rows: self._image_logits(state, 1.0 if state.shape[1] == 1 else scales[rows]),
        )
        decoded = whole | self._decode(stage, plans)
        return [decoded[index] for index in range(len(orders))]

    def _decode(self, stage: Stage, plans: Mapping[int, Plan]) -> dict[int, Decoded]:
        if not plans:
            return {}
        return dict(zip(plans, decode(self._decoder, stage, list(plans.values())), strict=True))

    def _image_choice(self, choice: Choice) -> tuple[tuple[int, ...], Sequence[int]]:
        """The forced image tokens and the free positions."""
        count = self.info.image_tokens
        if not isinstance(choice, Forced):
            return (), range(count)
        if choice.free is None:
            return choice.tokens[:count], range(len(choice.tokens), count)
        return choice.tokens, sorted(choice.free)

    def _image_logits(self, latents: Tensor, guidance: float | Tensor) -> Tensor:
        head = self.model.model.generation_head
        latents = latents.to(self.model.device, self.model.dtype)
        if isinstance(guidance, float | int) and guidance == 1:
            return cast(Tensor, head(latents[:, 0]).float())
        logits = head(latents).float()  # before guidance, which multiplies the rounding of bfloat16
        return guide(logits[:, 0], logits[:, 1], guidance)

    @torch.no_grad()
    def pixels(self, pictures: Sequence[Sequence[int]]) -> list[Image.Image]:
        """Decode whole images. transformers leaves values outside [-1, 1]; they are clipped, as in Janus's script."""
        at_once = max(1, 2**20 // self.info.image_size**2)  # a 384-pixel image takes about 0.5 GB on its way
        images: list[Image.Image] = []
        for start in range(0, len(pictures), at_once):
            tokens = torch.tensor(pictures[start : start + at_once], device=self.model.device)
            values = (self.model.decode_image_tokens(tokens).float() + 1) * 127.5
            array = values.round().clamp(0, 255).to(torch.uint8).cpu().numpy()
            images += [Image.fromarray(picture) for picture in array]
        return images

    # Understanding

    def _answer_batch(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[float]:
        sequences = [self.prompts.question(question) for question in questions]
        device, lengths = self.model.device, [len(sequence) for sequence in sequences]
        ids = torch.full((len(sequences), max(lengths)), self.prompts.pad)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.tensor(sequence)
        ids = ids.to(device)
        core = self.model.model
        size = int(core.config.vision_config.image_size)
        seen = torch.stack([_vision_input(image, size) for image in images]).to(device, self.model.dtype)
        features = core.aligner(core.vision_model(seen).last_hidden_state)
        inputs = self._decoder.embed_tokens(ids)
        inputs[ids == self.prompts.image] = features.flatten(0, 1).to(inputs.dtype)
        cache = self._decoder.new_cache(len(sequences), max(lengths))
        positions = torch.arange(max(lengths), device=device).expand(len(sequences), -1)
        hidden = self._decoder.forward(inputs, positions, cache, max(lengths), uniform=False)
        last = hidden[torch.arange(len(sequences), device=device), torch.tensor(lengths, device=device) - 1]
        chances = self.text_logits(last).softmax(-1)
        yes = chances[:, sorted(self.prompts.yes)].sum(-1)
        no = chances[:, sorted(self.prompts.no)].sum(-1)
        return cast("list[float]", (yes / (yes + no).clamp(min=1e-30)).tolist())

    # Checks

    def _guidance(self, order: Order) -> float:
        return self.info.guidance if order.ask.guidance is None else order.ask.guidance

    def _check(self, order: Order) -> None:
        guidance = self._guidance(order)
        if not (math.isfinite(guidance) and guidance >= 0):
            raise UserError(f"The guidance scale is {guidance}; it must be a number >= 0 (1 is no guidance).")
        for choice in (order.ask.text, order.ask.image):
            temperature = getattr(choice.then if isinstance(choice, Forced) else choice, "temperature", 1.0)
            if not (math.isfinite(temperature) and temperature > 0):
                raise UserError(
                    f"The temperature is {temperature}; it must be > 0 (use greedy choice for 0)."
                )
        image = order.ask.image
        if isinstance(image, Forced) and image.free is not None:
            count = self.info.image_tokens
            if len(image.tokens) != count or not image.free <= set(range(count)):
                raise ValueError(
                    f"with `free`, a forced image is all {count} tokens and free positions below {count}"
                )
        prompt = self._text_ids(order.prompt)
        longest = self._longest - self.max_text_tokens - self.info.image_tokens
        if len(prompt) > longest:
            raise UserError(
                f"The prompt is {len(prompt)} tokens long; {self.info.name} reads at most {max(longest, 0)}. Shorten it."
            )


def _temperature(choice: Choice) -> float:
    then = choice.then if isinstance(choice, Forced) else choice
    return 0.0 if isinstance(then, Greedy) else then.temperature


def _vision_input(image: Image.Image, size: int) -> Tensor:
    """[3, size, size] in [-1, 1]: the longer side resized to `size`, the rest filled with Janus's grey."""
    image = image.convert("RGB")
    scale = size / max(image.size)
    resized = image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BICUBIC
    )
    canvas = Image.new("RGB", (size, size), (127, 127, 127))
    canvas.paste(resized, ((size - resized.width) // 2, (size - resized.height) // 2))
    pixels = torch.from_numpy(np.array(canvas)).permute(2, 0, 1).float()
    return pixels / 127.5 - 1


# --- Loading --------------------------------------------------------------------------------------------------


def load_janus(name_or_dir: str = "lab", device: str = "auto", dtype: str = "auto") -> JanusBackbone:
    """Load a preset, a hub id or a local directory. Safetensors only, never remote code.

    Raises UserError, before any weight is read, for a wrong name, device or dtype, a checkpoint that is no Janus or
    is incomplete, or too little memory.
    """
    target = _device(device)
    directory, name = _locate(name_or_dir)
    config = _read_config(directory, name)
    weights = _weight_names(directory, name)
    kind = _dtype(dtype, config, target)
    needed = memory_needed(config, kind)
    free = free_bytes(target)
    if free is not None and needed.total > free:
        raise UserError(
            f"{name} in {_dtype_name(kind)} needs {needed.total / 1e9:.1f} GB ({needed.weights / 1e9:.1f} GB of "
            f"weights), but {target} has {free / 1e9:.1f} GB free; choose a smaller model, another --device"
            + (" or --dtype bfloat16." if kind == torch.float32 else ".")
        )
    # JanusConfig ties the heads by default, which is wrong for every checkpoint that holds an lm_head of its own.
    config.tie_word_embeddings = "lm_head.weight" not in weights
    showed_progress = is_progress_bar_enabled()
    if needed.weights < 10**9:
        disable_progress_bar()  # over before it can be read
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
        model, report = JanusForConditionalGeneration.from_pretrained(
            directory,
            config=config,
            dtype=kind,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            attn_implementation="sdpa",
            output_loading_info=True,
        )
    except Exception as error:  # whatever a broken file makes the readers raise, the answer is the same
        reason = str(error).strip().splitlines()
        raise UserError(
            f"The checkpoint {name} cannot be read ({reason[0] if reason else error!r})."
        ) from error
    finally:
        if showed_progress:
            enable_progress_bar()
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"The checkpoint {name} is incomplete: {len(missing)} weights are missing, the first is {missing[0]}."
        )
    model.to(target)
    if not config.tie_word_embeddings:
        assert model.lm_head.weight.data_ptr() != model.get_input_embeddings().weight.data_ptr()
    room = LARGEST_BATCH if free is None else int((free - needed.weights) * 0.8 // needed.image)
    return JanusBackbone(model, tokenizer, name, max_batch=max(1, min(LARGEST_BATCH, room)))


def _locate(name_or_dir: str) -> tuple[str, str]:
    """The local directory of a checkpoint and the name that results carry (never a path)."""
    preset = PRESETS.get(name_or_dir)
    if preset and not preset.source:
        directory = str(importlib.resources.files("milr.lab") / "weights")
        if not os.path.isfile(os.path.join(directory, "config.json")):
            raise UserError(
                "This installation has no weights of the embedded model 'lab'; install milr again, or train them "
                "with 'milr lab train'."
            )
        return directory, preset.name
    if preset:
        return _download(preset.source), preset.source
    if os.path.isdir(name_or_dir):
        return name_or_dir, Path(name_or_dir).resolve().name
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name_or_dir) and not name_or_dir.startswith("."):
        return _download(name_or_dir), name_or_dir
    close = difflib.get_close_matches(name_or_dir.lower(), names(), n=1, cutoff=0.5)
    hint = f"Did you mean '{close[0]}'? " if close else ""
    raise UserError(
        f"Unknown model '{name_or_dir}'. {hint}Give one of {', '.join(names())}, a hub id (owner/name) or the "
        "directory of a Janus checkpoint."
    )


def _download(repository: str) -> str:
    """The local copy of a hub repository, fetched if need be: its small files first, so mistakes cost little."""
    from huggingface_hub import errors, snapshot_download

    try:
        directory = snapshot_download(repository, allow_patterns=["config.json"])
        if os.path.isfile(os.path.join(directory, "config.json")):
            _read_config(directory, repository)
        return snapshot_download(repository, allow_patterns=["*.json", "*.jinja", "*.safetensors"])
    except errors.GatedRepoError as error:
        raise UserError(
            f"{repository} asks for its licence to be accepted: log in with 'hf auth login'."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"There is no model '{repository}' on the Hugging Face hub; check its spelling."
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"{repository} is not on this machine and could not be fetched from the Hugging Face hub; check the "
            "network, or give the directory of a copy."
        ) from error


def _read_config(directory: str, name: str) -> JanusConfig:
    path = os.path.join(directory, "config.json")
    try:
        with open(path, encoding="utf-8") as file:
            fields = json.load(file)
    except FileNotFoundError as error:
        raise UserError(
            f"{name} is no checkpoint: it has no config.json; give a Janus checkpoint."
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"The config.json of {name} cannot be read ({error}).") from error
    kind = fields.get("model_type") if isinstance(fields, dict) else None
    if kind != "janus":
        fix = " (convert it to the transformers format first)" if kind == "multi_modality" else ""
        raise UserError(f"{name} is a '{kind}' checkpoint, not 'janus'{fix}; try 'janus-pro-1b' or 'lab'.")
    try:
        return JanusConfig.from_dict(fields)
    except Exception as error:  # strict configurations raise their own kinds
        raise UserError(f"The config.json of {name} is not a Janus configuration ({error}).") from error


def _weight_names(directory: str, name: str) -> set[str]:
    """Names of the stored tensors, from the index or the file's header; also checks that every file is there."""
    from safetensors import SafetensorError, safe_open

    index, single = (
        os.path.join(directory, file) for file in ("model.safetensors.index.json", "model.safetensors")
    )
    try:
        if os.path.isfile(index):
            with open(index, encoding="utf-8") as file:
                places: dict[str, str] = json.load(file)["weight_map"]
            for shard in sorted(set(places.values())):
                if not os.path.isfile(os.path.join(directory, shard)):
                    raise UserError(
                        f"The checkpoint {name} is incomplete: {shard} is missing; fetch it again."
                    )
            return set(places)
        if os.path.isfile(single):
            with safe_open(single, framework="pt") as tensors:
                return set(tensors.keys())
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"The weights of {name} cannot be read ({error}); fetch them again.") from error
    raise UserError(
        f"{name} has no weights in safetensors format (model.safetensors), the only one that is read."
    )


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", device)
    if not match:
        raise UserError(f"Unknown device '{device}'; use auto, cpu, cuda or cuda:N.")
    if device != "cpu":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(match[1] or 0) >= count:
            raise UserError(
                f"There is no device '{device}': {count} CUDA devices are usable; use --device cpu."
            )
    return torch.device(device)


def _dtype(dtype: str, config: JanusConfig, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        return torch.float32 if _parameters(config) <= _SMALL_PARAMETERS else torch.bfloat16
    if dtype not in DTYPES:
        raise UserError(f"Unknown dtype '{dtype}'; use auto, {', '.join(DTYPES)}.")
    if dtype == "float16" and device.type == "cpu":
        raise UserError("float16 is for GPUs; on the CPU use --dtype bfloat16 or float32.")
    return DTYPES[dtype]


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --- Memory ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """Bytes that a model needs: its weights, and what each image drawn at once adds (cache of two rows, pixels)."""

    weights: int
    image: int

    @property
    def total(self) -> int:
        """The least that is of use: the weights and one image."""
        return self.weights + self.image


def memory_needed(config: JanusConfig, dtype: torch.dtype) -> Memory:
    """Computed from the configuration alone."""
    size, text = dtype.itemsize, config.text_config
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * head * size
    tokens = int(config.vq_config.num_patches) ** 2 + 200  # room for a prompt and a reasoning
    pixels = (int(config.vq_config.num_patches) * 2 ** (len(config.vq_config.channel_multiplier) - 1)) ** 2
    decoding = 8 * pixels * config.vq_config.base_channels * size  # feature maps at full size, measured
    return Memory(_parameters(config) * size, 2 * tokens * per_token + decoding)


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be taken on a device; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            match = re.search(r"^MemAvailable:\s+(\d+) kB", file.read(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None


def describe_memory(name_or_dir: str, device: str = "auto", dtype: str = "auto") -> str:
    """One line: what a model needs and what the device has, e.g. for `milr doctor`. Reads no weights.

    The presets are described without a network, from their known configurations.
    """
    from milr.backbones.random_checkpoint import CONFIGS

    target = _device(device)
    if name_or_dir in CONFIGS:
        config, name = CONFIGS[name_or_dir](), name_or_dir
    else:
        directory, name = _locate(name_or_dir)
        config = _read_config(directory, name)
    kind = _dtype(dtype, config, target)
    needed, free = memory_needed(config, kind), free_bytes(target)
    has = "unknown memory" if free is None else f"{free / 1e9:.1f} GB free"
    fits = "" if free is None or needed.total <= free else ": too little"
    return (
        f"{name} in {_dtype_name(kind)}: {needed.weights / 1e9:.2f} GB of weights and {needed.image / 1e9:.2f} GB for "
        f"each image drawn at once; {target} has {has}{fits}"
    )


@lru_cache(maxsize=8)
def _parameters_of(fields: str) -> int:
    config = JanusConfig.from_dict(json.loads(fields))
    with torch.device("meta"):
        model = JanusForConditionalGeneration(config)
    return sum(parameter.numel() for parameter in model.parameters())


def _parameters(config: JanusConfig) -> int:
    return _parameters_of(json.dumps(config.to_dict(), sort_keys=True, default=str))
