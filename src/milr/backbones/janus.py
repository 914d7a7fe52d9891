"""Janus and Janus-Pro through transformers' own class: loading, prompts, heads, pixels, understanding.

Knows checkpoints, wording and ids; the token loop is in decoding.py. It never calls `generate`: transformers'
image mode returns no hidden states, cannot switch guidance off and silently samples from the 50 best tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, lru_cache
from typing import Any, TypeVar, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, JanusForConditionalGeneration
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from milr.backbones import check_speculate
from milr.backbones.base import BackboneInfo
from milr.backbones.batches import Batched
from milr.backbones.board import Stage
from milr.backbones.checkpoint import LARGEST_BATCH, Memory, find, pictures_at_once
from milr.backbones.decoder import Cache, Decoder, planless_attention
from milr.backbones.decoding import Decoded, Engine, Plan, pace_of
from milr.backbones.sampling import guide, prefix_length, uniforms
from milr.backbones.writing import REASONING, Controls, Writer, readable, temperature_of
from milr.drafts import Cost, Drawn, Forced, Latents, Noise, Order, Repaint, UserError

Found = TypeVar("Found")

# Where a checkpoint says nothing: the guidance of Janus-Pro's own script, the text limit of MILR's code.
DEFAULT_GUIDANCE = 5.0
DEFAULT_MAX_TEXT_TOKENS = 512

# --- Prompts -----------------------------------------------------------------------------------------------

_ASSISTANT_FOR_IMAGES = (
    "You are an assistant who turns the prompt of an image into a short description of the picture to draw."
)
# Janus-Pro's own words for the understanding path.
_ASSISTANT_FOR_VISION = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the "
    "user provides, and assist the user with a variety of tasks using natural language."
)
_YES_OR_NO = " Answer yes or no."
_YES = ("yes", "Yes", " yes", " Yes")
_NO = ("no", "No", " no", " No")


class Prompts:
    """Token ids of the three things a Janus is asked: to reason, to draw, to answer.

    A tokenizer with the named chat templates `reasoning`, `image` and `question` is asked in their words
    (they write the whole string, begin token included); any other in Janus-Pro's.
    """

    def __init__(self, tokenizer: Any, config: Any, generation: Any) -> None:
        self._tokenizer = tokenizer
        templates = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {}
        self._has_templates = {"reasoning", "image", "question"} <= set(templates)
        extra = getattr(generation, "generation_kwargs", None) or {}
        self.begin = _required("a begin-of-text token", tokenizer.bos_token_id, generation.bos_token_id)
        self.end = _required("an end-of-text token", tokenizer.eos_token_id, generation.eos_token_id)
        self.pad = _required("a padding token", tokenizer.pad_token_id, generation.pad_token_id)
        self.image = _required("an image token", config.image_token_id)
        self.begin_image = _required(
            "a begin-of-image token", extra.get("boi_token_id"), self._named("boi_token", "<begin_of_image>")
        )
        self.end_image = _required("an end-of-image token", self._named("eoi_token", "<end_of_image>"))
        self._seen_tokens: int = config.vision_config.num_image_tokens
        self._controls = Controls(tokenizer)
        self.clean, self.check = self._controls.clean, self._controls.check
        self.yes, self.no = self._first_tokens(_YES), self._first_tokens(_NO)
        self.yes, self.no = self.yes - self.no, self.no - self.yes  # where ' ' is a token of its own

    def reasoning(self, prompt: str) -> list[int]:
        """The request for a reasoning."""
        self.check(prompt)
        if self._has_templates:
            return self._render("reasoning", prompt)
        request = REASONING.replace("{prompt}", prompt.strip())
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
        """The unconditional twin of a drawing request: all but begin tokens become padding, attended to."""
        return [token if token in (self.begin, self.begin_image) else self.pad for token in drawing]

    def question(self, question: str, closing: str = _YES_OR_NO) -> list[int]:
        """A question about an image, with one image token for each feature of the vision tower.

        `closing` says what kind of answer is wanted; a checkpoint's template has its own way of saying so.
        """
        self.check(question)
        if self._has_templates:
            ids = self._render("question", question)
        else:
            before = self._encode(f"{_ASSISTANT_FOR_VISION}\n\n<|User|>: ")
            after = self._encode(f"\n{question.strip()}{closing}\n\n<|Assistant|>:", begin=False)
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

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text, without begin or end tokens."""
        return self._encode(text, begin=False)

    def _render(self, template: str, user: str, assistant: str | None = None) -> list[int]:
        messages = [{"role": "user", "content": user}]
        if assistant is not None:
            messages.append({"role": "assistant", "content": assistant})
        text = self._tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
        return self._encode(text, begin=False)

    def _encode(self, text: str, begin: bool = True) -> list[int]:
        ids = self._tokenizer.encode(readable(text), add_special_tokens=False)
        return [self.begin, *ids] if begin else list(ids)

    def _named(self, attribute: str, content: str) -> int | None:
        """Id of an extra special token, by the tokenizer's attribute or, in older files, its content."""
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
    raise UserError(f"This checkpoint's tokenizer has no {what.split(' ', 1)[1]}; use a complete Janus checkpoint.")


# --- The backbone ------------------------------------------------------------------------------------------


class JanusBackbone(Batched):
    """A frozen Janus: draws, gives its heads, answers questions. See `milr.backbones.base.Backbone`."""

    def __init__(
        self,
        model: JanusForConditionalGeneration,
        tokenizer: Any,
        name: str,
        max_text_tokens: int | None = None,
        max_batch: int = LARGEST_BATCH,
        memory: Memory | None = None,
    ) -> None:
        """`max_batch` images are drawn at once; fewer, if `memory` is known, where critics took their part of it."""
        model.requires_grad_(False).train(False)
        if model.device.type == "cpu":  # its convolutions take half the time; one value in 4,000 rounds otherwise
            model.model.vqmodel.to(memory_format=torch.channels_last)
        config: Any = model.config
        generation: Any = model.generation_config
        self.model = model
        self.prompts = Prompts(tokenizer, config, generation)
        self.max_text_tokens: int = max_text_tokens or generation.max_new_tokens or DEFAULT_MAX_TEXT_TOKENS
        self.max_batch = max_batch
        self._memory = memory  # until it was looked at
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
        self._engine = Engine(self._decoder)
        self.speculate = "auto"
        self._text_vocabulary: int = config.text_config.vocab_size
        self._image_vocabulary: int = config.vq_config.num_embeddings
        self._longest: int = config.text_config.max_position_embeddings
        self._text_ids = lru_cache(maxsize=256)(self.prompts.reasoning)
        self._writer = Writer(self._engine, self._text_stage(), self._text_ids)

    @property
    def speculate(self) -> str:
        """'auto': several tokens are guessed and checked in one pass, where that pays; 'off': one token a pass. The
        tokens are the same."""
        return "off" if self._engine.pace is None else "auto"

    @speculate.setter
    def speculate(self, choice: str) -> None:
        check_speculate(choice)
        self._engine.pace = pace_of(self._decoder) if choice == "auto" else None

    def forget_guesses(self) -> None:
        """Guess as if nothing had been drawn before (to measure it)."""
        self._engine.forget_guesses()

    # The verbs

    def text_logits(self, latents: Tensor) -> Tensor:
        """Text head: [T, D] -> [T, V_text] float32 on the device of `latents`; differentiable.

        Computed in the model's dtype, exactly as the engine does before it chooses a token.
        """
        head = self.model.lm_head
        return cast(Tensor, head(latents.to(head.weight)).to(latents.device, torch.float32))

    def image_logits(self, latents: Tensor, guidance: float) -> Tensor:
        """Image head and guidance u + w (c - u): [T, 2, D] -> [T, V_image] float32; differentiable."""
        branches = latents[:, :1] if guidance == 1 else latents
        return self._image_logits(branches, guidance).to(latents.device)

    def answer(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[float]:
        """P(yes) against P(no) for a question about each image: the mass on either word's first tokens."""
        return [chance for chance, _ in self.answer_and_share(images, questions)]

    @torch.no_grad()
    def answer_and_share(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[tuple[float, float]]:
        """What `answer` says, and how much of all probability yes and no hold together."""
        if not images:
            return []
        chances = self._finite(self.text_logits(self.understand(images, questions)), "answers").softmax(-1)
        yes = chances[:, sorted(self.prompts.yes)].sum(-1)
        held = yes + chances[:, sorted(self.prompts.no)].sum(-1)
        return list(zip((yes / held.clamp(min=1e-30)).tolist(), held.tolist(), strict=True))

    @torch.no_grad()
    def understand(self, images: Sequence[Image.Image], questions: Sequence[str]) -> Tensor:
        """The final hidden states, [B, D] float32, from which the answers would follow; no image gives [0, D]."""

        def look(chosen: slice) -> list[Tensor]:
            sequences = [self.prompts.question(question) for question in questions[chosen]]
            return list(self._look(images[chosen], sequences, 0)[0].float())

        states = self._in_batches(look, len(images))
        return self._finite(torch.stack(states), "hidden states") if states else torch.empty(0, self.info.hidden_size)

    @torch.no_grad()
    def describe(self, images: Sequence[Image.Image], questions: Sequence[str], max_tokens: int) -> list[str]:
        """The most probable answer to a question about each image, cut after `max_tokens` tokens."""

        def look(chosen: slice) -> list[str]:
            return self._describe_batch(images[chosen], questions[chosen], max_tokens)

        return self._in_batches(look, len(images))

    def _in_batches(self, look: Callable[[slice], list[Found]], count: int) -> list[Found]:
        """Look at so many images, in batches that are halved when memory runs out."""
        found: list[Found] = []
        while len(found) < count:
            chosen = slice(len(found), len(found) + self.max_batch)
            try:
                with planless_attention(self.model.device):
                    found += look(chosen)
            except torch.OutOfMemoryError:
                if self.max_batch == 1:
                    raise
                self.max_batch //= 2
                torch.cuda.empty_cache()
        return found

    def text_end(self) -> int:
        return self.prompts.end

    def decode_text(self, tokens: Sequence[int]) -> str:
        return self.prompts.text(tokens)

    def encode_text(self, text: str) -> list[int]:
        """The text tokens of a string as it would stand in a reasoning, without begin or end tokens."""
        return self.prompts.tokens(text)

    # Drawing

    def _apart(self, order: Order) -> bool:
        """Unguided drafts need half of the rows."""
        return self._guidance(order) == 1.0

    @torch.no_grad()
    def _draw_batch(self, orders: Sequence[Order]) -> list[Drawn]:
        started = time.perf_counter()
        texts = self._writer.write(orders, self.max_text_tokens)
        reasonings = [self.prompts.text(text.tokens).strip() for text in texts]
        pictures = self._paint(orders, reasonings)
        images = self.pixels([picture.tokens for picture in pictures])
        seconds = (time.perf_counter() - started) / len(orders)
        drawn = []
        for order, reasoning, text, picture, image in zip(orders, reasonings, texts, pictures, images, strict=True):
            asked = order.ask.text_ratio > 0 or order.ask.image_ratio > 0
            latents = self._latents(text.latents, picture.latents) if asked else None
            cost = Cost(
                text_tokens=text.sampled,
                image_tokens=picture.sampled,
                prefilled_tokens=text.prefilled + picture.prefilled,
                seconds=seconds,
                text_passes=text.passes,
                image_passes=picture.passes,
                work=self._work(text, picture, self._guidance(order)),
            )
            drawn.append(
                Drawn(
                    reasoning=reasoning,
                    text_tokens=text.tokens,
                    text_ended=text.ended,
                    image_tokens=picture.tokens,
                    image=image,
                    latents=latents,
                    guidance=self._guidance(order),
                    cost=cost,
                )
            )
        return drawn

    def _work(self, text: Decoded, picture: Decoded, guidance: float) -> float:
        """Floating point operations of a draft, whatever it was guessed from and however often it was read again."""
        branches = 1 if guidance == 1.0 else 2
        head = sum(weights.numel() for weights in self.model.model.generation_head.parameters())
        tokens = self._decoder.work(picture.sampled + picture.prefilled) + 2 * head * picture.sampled
        return float(self._writer.work(text) + branches * tokens + self._work_of_pixels)

    @cached_property
    def _work_of_pixels(self) -> int:
        """Of one picture: two operations for every weight of every convolution and every place that it makes, seen in
        one picture. (torch's own counter loads its compiler first.)"""
        made = 0

        def count(convolution: torch.nn.Module, _: Any, places: Tensor) -> None:
            nonlocal made
            made += 2 * cast(Tensor, convolution.weight).numel() * places.shape[-2] * places.shape[-1]

        parts = [part for part in self.model.model.vqmodel.modules() if isinstance(part, torch.nn.Conv2d)]
        hooks = [part.register_forward_hook(count) for part in parts]
        try:
            self.model.decode_image_tokens(
                torch.zeros(1, self.info.image_tokens, dtype=torch.long, device=self.model.device)
            )
        finally:
            for hook in hooks:
                hook.remove()
        return made

    def _latents(self, text: Tensor, image: Tensor) -> Latents:
        """What a search gets, on the model's device, where its heads are; searches compute in float64, which Apple's
        lacks."""
        if text.device.type == "mps":
            text, image = text.cpu(), image.cpu()
        return Latents(text[:, 0].clone(), image.expand(-1, 2, -1).clone())

    def _paint(self, orders: Sequence[Order], reasonings: Sequence[str]) -> list[Decoded]:
        """The image stage: a conditional row for each draft and, if guided, an unconditional one."""
        count = self.info.image_tokens
        plans = []
        for order, reasoning in zip(orders, reasonings, strict=True):
            choice = order.ask.image
            tokens: tuple[int, ...] = ()
            free: Sequence[int] = range(count)
            if isinstance(choice, Forced):
                tokens = choice.tokens[:count]
                free = range(len(tokens), count) if choice.free is None else sorted(choice.free)
            drawing = self.prompts.drawing(order.prompt, reasoning)
            guided = self._guidance(order) != 1.0
            prompts = (drawing, self.prompts.undrawn(drawing)) if guided else (drawing,)
            keep = prefix_length(order.ask.image_ratio, count)
            numbers = uniforms(order.stream, 1, count)
            scale = self._guidance(order)
            guess = next((drawn.image_tokens for drawn in order.earlier if drawn.reasoning == reasoning), ())
            plans.append(Plan(prompts, tokens, free, keep, temperature_of(choice), numbers, scale, guess))
        return self._engine.decode(self.image_stage, plans)

    def _text_stage(self) -> Stage:
        table, head = self._decoder.embed_tokens.weight, self.model.lm_head
        return Stage("text", self.max_text_tokens, table, head, self.prompts.end)

    @cached_property
    def image_stage(self) -> Stage:
        """The stage of image tokens. What each of them feeds, a small network's output, is worked out once for all."""
        with torch.inference_mode():
            tokens = torch.arange(self._image_vocabulary, device=self.model.device)
            parts = [self.model.prepare_embeddings_for_image_generation(part) for part in tokens.split(4096)]
            head = self.model.model.generation_head
            return Stage("image", self.info.image_tokens, torch.cat(parts), head, above=self.info.grid)

    def _image_logits(self, latents: Tensor, guidance: float | Tensor) -> Tensor:
        head = self.model.model.generation_head
        latents = latents.to(self.model.device, self.model.dtype)
        if latents.shape[1] == 1:
            return cast(Tensor, head(latents[:, 0]).float())
        logits = head(latents).float()  # before guidance, which multiplies the rounding of bfloat16
        return guide(logits[:, 0], logits[:, 1], guidance)

    @torch.no_grad()
    def pixels(self, pictures: Sequence[Sequence[int]]) -> list[Image.Image]:
        """Decode whole images, clipping what lies outside [-1, 1] as Janus's own script does."""
        at_once = pictures_at_once(self.info.image_size**2, self.model.device.type)
        images: list[Image.Image] = []
        for start in range(0, len(pictures), at_once):
            tokens = torch.tensor(pictures[start : start + at_once], device=self.model.device)
            values = (self._finite(self.model.decode_image_tokens(tokens).float(), "pixels") + 1) * 127.5
            array = values.round().clamp(0, 255).to(torch.uint8).cpu().numpy()
            images += [Image.fromarray(picture) for picture in array]
        return images

    # Understanding

    def _describe_batch(self, images: Sequence[Image.Image], questions: Sequence[str], max_tokens: int) -> list[str]:
        sequences = [self.prompts.question(question, closing="") for question in questions]
        last, cache, lengths = self._look(images, sequences, max_tokens)
        longest, written = int(lengths.max()), []
        ended = torch.zeros(len(sequences), dtype=torch.bool, device=last.device)
        highest = torch.zeros((), device=last.device)
        while True:
            logits = self.text_logits(last)
            highest = highest + logits.amax()
            chosen = logits.argmax(-1)
            written.append(chosen)
            ended |= chosen == self.prompts.end
            if len(written) == max_tokens or bool(ended.all()):
                break
            step = len(written) - 1  # a shorter row writes over its padding, which it never looked at
            inputs, positions = self._decoder.embed_tokens(chosen)[:, None], (lengths + step)[:, None]
            last = self._decoder.forward(inputs, positions, cache, longest + step + 1, uniform=False)[:, 0]
        self._finite(highest, "words")
        rows = torch.stack(written, 1).tolist()
        texts = [row[: row.index(self.prompts.end)] if self.prompts.end in row else row for row in rows]
        return [self.prompts.text(text).strip() for text in texts]

    def _look(
        self, images: Sequence[Image.Image], sequences: Sequence[Sequence[int]], room: int
    ) -> tuple[Tensor, Cache, Tensor]:
        """Each question read together with its image: the last hidden state [B, D], a cache with `room` for tokens
        that follow, and how long each question is [B]."""
        device, longest = self.model.device, max(len(sequence) for sequence in sequences)
        if longest + room > self._longest:
            raise UserError(
                f"A question to {self.info.name} and its answer take {longest + room} tokens; at most {self._longest} "
                "fit, so shorten the prompt."
            )
        ids = torch.full((len(sequences), longest), self.prompts.pad)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.tensor(sequence)
        ids = ids.to(device)
        core = self.model.model
        size = int(core.config.vision_config.image_size)
        seen = torch.stack([_vision_input(image, size) for image in images]).to(device, self.model.dtype)
        features = core.aligner(core.vision_model(seen).last_hidden_state)
        inputs = self._decoder.embed_tokens(ids)
        inputs[ids == self.prompts.image] = features.flatten(0, 1).to(inputs.dtype)
        cache = self._decoder.new_cache(len(sequences), longest + room)
        positions = torch.arange(longest, device=device).expand(len(sequences), -1)
        hidden = self._decoder.forward(inputs, positions, cache, longest, uniform=False)
        lengths = torch.tensor([len(sequence) for sequence in sequences], device=device)
        return hidden[torch.arange(len(sequences), device=device), lengths - 1], cache, lengths

    # Checks

    def _finite(self, numbers: Tensor, what: str) -> Tensor:
        """The numbers as they are. Raises UserError where one is NaN or overflowed. Waits for the device, so that it is
        to be asked once a batch."""
        if not bool(numbers.isfinite().all()):
            raise self._computes_nan(what)
        return numbers

    def _guidance(self, order: Order) -> float:
        return self.info.guidance if order.ask.guidance is None else order.ask.guidance

    def _check(self, order: Order) -> None:
        self._check_numbers(order, self._guidance(order))
        image = order.ask.image
        if isinstance(image, (Noise, Repaint)):
            raise UserError(f"{self.info.name} makes its pictures of tokens, not of noise; this is for a flow model.")
        self._check_tokens(order.ask.text, self._text_vocabulary)
        self._check_tokens(image, self._image_vocabulary)
        if isinstance(image, Forced) and image.free is not None:
            count = self.info.image_tokens
            if len(image.tokens) != count or not image.free <= set(range(count)):
                raise ValueError(f"with `free`, a forced image is all {count} tokens and free positions below {count}")
        prompt = self._text_ids(order.prompt)
        longest = self._longest - self.max_text_tokens - self.info.image_tokens
        if len(prompt) > longest:
            raise UserError(
                f"The prompt is {len(prompt)} tokens long; {self.info.name} reads at most {max(longest, 0)}."
            )


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


# --- Loading -----------------------------------------------------------------------------------------------


def load_janus(name_or_dir: str = "lab", device: str = "auto", dtype: str = "auto") -> JanusBackbone:
    """Load a preset, a hub id or a local directory. Safetensors only, never remote code.

    Raises UserError, mostly before any weight is read, for a wrong name, device or dtype, a checkpoint that
    is no Janus or is incomplete, or too little memory.
    """
    found = find(name_or_dir, device, dtype)
    showed_progress = is_progress_bar_enabled()
    if found.memory.weights < 10**9:
        disable_progress_bar()  # over before it could be read
    try:
        tokenizer = AutoTokenizer.from_pretrained(found.directory, trust_remote_code=False, local_files_only=True)
        loaded: Any = JanusForConditionalGeneration.from_pretrained(
            found.directory,
            config=found.config,
            dtype=found.dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            attn_implementation="sdpa",
            output_loading_info=True,
        )
    except Exception as error:  # whatever a broken file makes the readers raise, the answer is the same
        reason = str(error).strip().splitlines()
        raise UserError(f"{found.name} cannot be read ({reason[0] if reason else error!r}).") from error
    finally:
        if showed_progress:
            enable_progress_bar()
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(f"{found.name} is incomplete: {len(missing)} weights are missing, the first is {missing[0]}.")
    if not found.config.tie_word_embeddings:
        assert model.lm_head.weight.data_ptr() != model.get_input_embeddings().weight.data_ptr()
    return JanusBackbone(
        model.to(found.device), tokenizer, found.name, max_batch=found.images_at_once(), memory=found.memory
    )
