"""A flow pipeline as a model that thinks before it draws: its own text encoder writes, and the picture sees the words.

    prompt -> reasoning -> states of "prompt. reasoning" -> noise of the cells -> picture

A picture's choices are a chain of integers, as a token model's are: one key a cell, which names the cell's noise. So a
draft depends on its order alone, and is recorded, drawn again and replayed as any other. What may be left of a finished
picture is left by drawing only a part of it anew (`Repaint`).
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL.Image import Image
from torch import Tensor

from milr.backbones.base import BackboneInfo
from milr.backbones.batches import Batched
from milr.backbones.board import Stage
from milr.backbones.decoder import Decoder
from milr.backbones.decoding import Decoded, Engine
from milr.backbones.flow.drawer import Conditioning, Drawer, Kept, Request
from milr.backbones.flow.noise import coarse_to_fine, fine_to_picture, gaussian
from milr.backbones.flow.policy import Coefficients, check_temperature, resolved
from milr.backbones.sampling import prefix_length
from milr.backbones.writing import Controls, Writer, readable
from milr.drafts import Choice, Cost, Drawn, Forced, Greedy, Latents, Noise, Order, Repaint, Sample, UserError

Keys = npt.NDArray[np.int64]
Named = tuple[str, str, float, Choice]  # prompt, reasoning, guidance, choice: what a finished picture follows from

KEY_BITS = 53  # of a key: what every reader of JSON keeps exactly
REMEMBERED = 64  # finished pictures whose latents are kept, for those that keep a part of them


def keys_of(stream: int, count: int) -> Keys:
    """The keys of a draft's stream: the one at place t names the noise of cell t, whatever the others are."""
    numbers = np.random.Generator(np.random.Philox(key=np.array([stream % 2**64, 2], dtype=np.uint64)))
    return numbers.integers(0, 2**KEY_BITS, count)


class FlowBackbone(Batched):
    """A flow model with a text encoder that writes. See `milr.backbones.base.Backbone`."""

    smaller = "a smaller model, smaller pictures"
    good_width = 1  # drafts of one prompt at once: each is arithmetic, so that a batch takes as long as all of them

    def __init__(self, drawer: Drawer) -> None:
        if not drawer.writes:
            raise UserError(
                f"The text encoder of {drawer.name} has no head, so that it cannot write a reasoning; use a pipeline "
                "whose encoder is a whole language model."
            )
        self.drawer = drawer
        encoder: Any = drawer.pipe.text_encoder
        self._tokenizer: Any = drawer.pipe.tokenizer
        body = encoder.model
        self.model = torch.nn.ModuleList([encoder, drawer.pipe.transformer, drawer.pipe.vae])  # whose weights count
        self._decoder = Decoder(getattr(body, "language_model", body))
        self._engine = Engine(self._decoder)
        self._head: torch.nn.Module = encoder.get_output_embeddings()
        self._controls = Controls(self._tokenizer)
        self._end = _end_of(encoder, self._tokenizer, drawer.name)
        self.max_text_tokens: int = drawer.reasoning_tokens
        self.max_batch: int = drawer.images_at_once
        self._request_ids = lru_cache(maxsize=256)(self._request)
        stage = Stage("text", self.max_text_tokens, self._decoder.embed_tokens.weight, self._head, self._end)
        self._writer = Writer(self._engine, stage, self._request_ids)
        self._finished: OrderedDict[Named, Tensor] = OrderedDict()
        self._memory = drawer.memory
        self.info = BackboneInfo(
            name=drawer.name,
            dtype=str(drawer.dtype).removeprefix("torch."),
            device=str(drawer.device),
            image_tokens=drawer.grid**2,
            image_size=drawer.image_size,
            hidden_size=self._decoder.hidden_size,
            guidance=drawer.guidance,
            grid=drawer.grid,
            sees=False,
            choices="noise",
        )

    # --- The verbs ---

    def text_logits(self, latents: Tensor) -> Tensor:
        """Text head: [T, D] -> [T, V_text] float32 on the device of `latents`; differentiable."""
        weight = self._decoder.weight
        found: Tensor = self._head(latents.to(weight)).to(latents.device, torch.float32)
        return found

    def image_logits(self, latents: Tensor, guidance: float) -> Tensor:
        raise UserError(f"{self.info.name} makes its pictures of noise, not of tokens, so there are no logits of them.")

    def image_policy(self, guidance: float, temperature: float) -> Coefficients:
        """How pictures follow from their noise; guidance is no part of it, and there is no temperature."""
        check_temperature(Sample(temperature))
        return Coefficients(self.drawer.channels, self.drawer.grid)

    def answer(self, images: Sequence[Image], questions: Sequence[str]) -> list[float]:
        raise self._blind()

    def understand(self, images: Sequence[Image], questions: Sequence[str]) -> Tensor:
        raise self._blind()

    def describe(self, images: Sequence[Image], questions: Sequence[str], max_tokens: int) -> list[str]:
        raise self._blind()

    def text_end(self) -> int:
        return self._end

    def encode_text(self, text: str) -> list[int]:
        """The text tokens of a string as it would stand in a reasoning, without begin or end tokens."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def decode_text(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    # --- Drawing ---

    @torch.no_grad()
    def _draw_batch(self, orders: Sequence[Order]) -> list[Drawn]:
        started = time.perf_counter()
        texts = self._writer.write(orders, self.max_text_tokens)
        reasonings = [self.decode_text(text.tokens).strip() for text in texts]
        seen = [self._seen(order.prompt, said) for order, said in zip(orders, reasonings, strict=True)]
        unlike = list(dict.fromkeys(seen))
        states = dict(zip(unlike, self.drawer.encode(unlike), strict=True))
        requests, keys = [], []
        for order, reasoning, read in zip(orders, reasonings, seen, strict=True):
            request, named = self._requested(order, reasoning, states[read])
            requests.append(request)
            keys.append(named)
        pictures = self.drawer.paint(requests)
        images = self.drawer.decode(pictures)
        seconds = (time.perf_counter() - started) / len(orders)
        drawn = []
        for order, reasoning, text, request, named, picture, image in zip(
            orders, reasonings, texts, requests, keys, pictures, images, strict=True
        ):
            tokens = tuple(named.tolist())
            self._remember((order.prompt, reasoning, self._guidance(order), resolved(order.ask.image, tokens)), picture)
            drawn.append(
                Drawn(
                    reasoning=reasoning,
                    text_tokens=text.tokens,
                    text_ended=text.ended,
                    image_tokens=tokens,
                    image=image,
                    latents=self._latents(order, text, request),
                    guidance=self._guidance(order),
                    cost=Cost(
                        text_tokens=text.sampled,
                        prefilled_tokens=text.prefilled,
                        seconds=seconds,
                        text_passes=text.passes,
                        evaluations=self.drawer.evaluations(request),
                        work=float(
                            self.drawer.flops(request)
                            + self.drawer.encoding_flops(request.conditioning)
                            + self._writer.work(text)
                        ),
                    ),
                )
            )
        return drawn

    def _latents(self, order: Order, text: Decoded, request: Request) -> Latents | None:
        if not order.ask.text_ratio and not order.ask.image_ratio:
            return None
        first = prefix_length(order.ask.image_ratio, self._coefficients)
        return Latents(text.latents[:, 0].clone(), coarse_to_fine(request.noise)[:first].to(self.drawer.device))

    def _requested(self, order: Order, reasoning: str, conditioning: Conditioning) -> tuple[Request, Keys]:
        """What to paint, and the keys of its cells."""
        choice, guidance = order.ask.image, self._guidance(order)
        count, grid = self.info.image_tokens, self.drawer.grid
        keys = keys_of(order.stream, count)
        kept = None
        if isinstance(choice, Forced) and choice.free:
            choice = Repaint(Forced(choice.tokens, free=frozenset()), choice.free)
        if isinstance(choice, Forced):
            keys[: len(choice.tokens)] = choice.tokens[:count]
        elif isinstance(choice, (Noise, Repaint)) and choice.tokens:
            keys = np.array(choice.tokens, dtype=np.int64)
        elif isinstance(choice, Repaint):
            held = np.ones(count, dtype=bool)
            held[list(choice.free)] = False
            keys[held] = np.array(choice.of.tokens, dtype=np.int64)[held]
        noise = gaussian(keys, self.drawer.channels, grid)
        if isinstance(choice, Noise):
            coefficients = coarse_to_fine(noise)
            coefficients[: len(choice.values)] = torch.tensor(choice.values)
            noise = fine_to_picture(coefficients, (self.drawer.channels, grid, grid))
        if isinstance(choice, Repaint):
            if not choice.free:
                return self._requested(_asking(order, choice.of), reasoning, conditioning)[0], keys
            where = torch.zeros(count, dtype=torch.bool)
            where[list(choice.free)] = True
            old = self._picture(order, reasoning, conditioning, choice.of)
            kept = Kept(old, where.view(grid, grid), choice.strength)
        return Request(conditioning, noise, guidance=guidance, kept=kept), keys

    def _picture(self, order: Order, reasoning: str, conditioning: Conditioning, of: Choice) -> Tensor:
        """The final latents of a picture that is named wholly: drawn before, or drawn now."""
        named = order.prompt, reasoning, self._guidance(order), of
        if named not in self._finished:
            request, _ = self._requested(_asking(order, of), reasoning, conditioning)
            self._remember(named, self.drawer.paint([request])[0])
        self._finished.move_to_end(named)
        return self._finished[named]

    def _remember(self, named: Named, picture: Tensor) -> None:
        self._finished[named] = picture.cpu()
        while len(self._finished) > REMEMBERED:
            self._finished.popitem(last=False)

    # --- Words ---

    def _request(self, prompt: str) -> list[int]:
        """The tokens that ask for a reasoning."""
        asked = self.drawer.reasoning.replace("{prompt}", _in_a_line(prompt))
        said = self.drawer.family.template(self.drawer.pipe, asked)
        return list(self._tokenizer.encode(said, add_special_tokens=False))

    def _seen(self, prompt: str, reasoning: str) -> str:
        """What the picture is drawn from."""
        if not reasoning:
            return _in_a_line(prompt)
        words = {"{prompt}": _in_a_line(prompt), "{reasoning}": _in_a_line(self._controls.clean(reasoning))}
        return re.sub(r"\{prompt\}|\{reasoning\}", lambda found: words[found.group()], self.drawer.drawing)

    # --- What an order may ask for ---

    def _check(self, order: Order) -> None:
        self._controls.check(order.prompt)
        self._check_numbers(order, self._guidance(order))
        self._check_tokens(order.ask.text, len(self._decoder.embed_tokens.weight))
        length, most = self.drawer.length(self._seen(order.prompt, "")), self.drawer.text_tokens
        if length > most:
            raise UserError(f"The prompt is {length} tokens long; {self.info.name} reads at most {most}.")
        choice = order.ask.image
        while isinstance(choice, Repaint):
            choice = choice.of
        then = getattr(choice, "then", choice)
        if isinstance(choice, Greedy):
            raise UserError(
                f"{self.info.name} makes its pictures of noise, of which none is the most probable; sample it."
            )
        if isinstance(then, Sample):
            check_temperature(then)
        if isinstance(choice, Noise) and len(choice.values) > self._coefficients:
            raise UserError(
                f"{len(choice.values)} coefficients of noise are given, and a picture of {self.info.name} has "
                f"{self._coefficients}."
            )

    def _guidance(self, order: Order) -> float:
        return self.drawer.guidance if order.ask.guidance is None else order.ask.guidance

    @property
    def _coefficients(self) -> int:
        return self.drawer.channels * self.drawer.grid**2

    def _blind(self) -> UserError:
        return UserError(
            f"{self.info.name} cannot look at pictures, so it cannot judge its own; choose a critic that has eyes "
            "(milr list critics)."
        )


def _in_a_line(text: str) -> str:
    """As a template takes it, in which a new line may mean something."""
    return " ".join(readable(text).split())


def _asking(order: Order, choice: Choice) -> Order:
    return replace(order, ask=replace(order.ask, image=choice))


def _end_of(encoder: Any, tokenizer: Any, name: str) -> int:
    """The token that ends what a language model writes."""
    said = getattr(encoder.generation_config, "eos_token_id", None) or tokenizer.eos_token_id
    end = said[0] if isinstance(said, list) else said
    if end is None:
        raise UserError(f"The tokenizer of {name} has no end-of-text token; use a complete pipeline.")
    return int(end)


def load_flow(name_or_dir: str, device: str = "auto", dtype: str = "auto") -> FlowBackbone:
    """Load a preset, a hub id or the folder of a pipeline. Safetensors only, never remote code. Raises UserError."""
    return FlowBackbone(Drawer.load(name_or_dir, device, dtype))
