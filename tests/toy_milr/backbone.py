"""A model that "draws" coloured blocks: it honours asks, streams and forced tokens as any backbone must.

Tests stop it where they want it, in whatever process it draws: with TOY_GATE=FOLDER it draws TOY_ROUNDS rounds, then
makes FOLDER/waiting and waits until FOLDER/go is there. So two processes meet by a sign, never by a time.
"""

import os
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from milr.backbones.base import BackboneInfo
from milr.drafts import Cost, Drawn, Forced, Latents, Sample, UserError
from milr.searches import driver

driver.clock = lambda: 0.0  # as its seconds are made up, so that two runs can be compared byte by byte

NAME = "toy"
SUMMARY = "coloured blocks, for tests"

WORDS = [
    "a",
    "the",
    "red",
    "blue",
    "green",
    "one",
    "two",
    "three",
    "fox",
    "car",
    "bird",
    "tree",
    "above",
    "under",
    "beside",
    "small",
    "large",
    "and",
    "with",
    "near",
]
END = len(WORDS)
HIDDEN, GRID, BLOCK, COLOURS = 6, 4, 8, 12
TEXT_LENGTH = 8


class ToyBackbone:
    rounds = 0

    def __init__(self, device="auto", dtype="auto"):
        if dtype == "float16":
            raise UserError("float16 is for GPUs; on the CPU use --dtype bfloat16 or float32.")
        self.info = BackboneInfo(
            name="toy",
            dtype="float32",
            device="cpu",
            image_tokens=GRID * GRID,
            image_size=GRID * BLOCK,
            hidden_size=HIDDEN,
            guidance=1.0,
            grid=GRID,
        )
        generator = torch.Generator().manual_seed(int(os.environ.get("TOY_WEIGHTS", "5")))
        self.model = torch.nn.ModuleDict(
            {
                "text": torch.nn.Linear(HIDDEN, END + 1, bias=False),
                "image": torch.nn.Linear(HIDDEN, COLOURS, bias=False),
            }
        )
        self.rounds = 0
        for weight in self.model.parameters():
            torch.nn.init.normal_(weight, generator=generator)
            weight.requires_grad_(False)

        if "TOY_MAX_BATCH" in os.environ:
            self.max_batch = int(os.environ["TOY_MAX_BATCH"])

    def draw(self, orders):
        time.sleep(float(os.environ.get("TOY_SECONDS", "0")))
        self._wait_at_the_gate()
        self.rounds += 1
        return [self._draw(order) for order in orders]

    def _wait_at_the_gate(self):
        gate = os.environ.get("TOY_GATE")
        if gate is not None and self.rounds >= int(os.environ.get("TOY_ROUNDS", "2")):
            (Path(gate) / "waiting").touch()
            while not (Path(gate) / "go").exists():
                time.sleep(0.01)

    def _draw(self, order):
        latents = torch.randn(
            TEXT_LENGTH + GRID * GRID, HIDDEN, generator=torch.Generator().manual_seed(hash_of(order.prompt))
        )
        uniforms = np.random.default_rng(order.stream).random(TEXT_LENGTH + GRID * GRID)
        text, ended, sampled = self._choose(
            order.ask.text, self.model["text"], latents[:TEXT_LENGTH], uniforms[:TEXT_LENGTH]
        )
        if END in text:
            text, ended = text[: text.index(END)], True
        image, _, drawn = self._choose(
            order.ask.image, self.model["image"], latents[TEXT_LENGTH:], uniforms[TEXT_LENGTH:]
        )
        wanted = order.ask.text_ratio > 0 or order.ask.image_ratio > 0
        return Drawn(
            reasoning=self.decode_text(text),
            text_tokens=tuple(text),
            text_ended=ended,
            image_tokens=tuple(image),
            image=paint(image),
            latents=Latents(
                latents[: int(np.ceil(order.ask.text_ratio * len(text)))],
                latents[TEXT_LENGTH:][: int(np.ceil(order.ask.image_ratio * GRID * GRID))][:, None].repeat(1, 2, 1),
            )
            if wanted
            else None,
            guidance=1.0,
            cost=Cost(text_tokens=sampled, image_tokens=drawn, seconds=0.25),
        )

    @torch.no_grad()
    def _choose(self, choice, head, latents, uniforms):
        forced = choice.tokens if isinstance(choice, Forced) else ()
        free = choice.free if isinstance(choice, Forced) else None
        then = choice.then if isinstance(choice, Forced) else choice
        probabilities = torch.softmax(head(latents), -1).numpy()
        tokens, sampled = [], 0
        for at, row in enumerate(probabilities):
            if at < len(forced) and (free is None or at not in free):
                tokens.append(forced[at])
            else:
                sampled += 1
                cdf = row.cumsum()
                tokens.append(
                    int(np.searchsorted(cdf, uniforms[at] * cdf[-1])) if isinstance(then, Sample) else int(row.argmax())
                )
            if head is self.model["text"] and tokens[-1] == END:
                return tokens[:-1], True, sampled
        return tokens, False, sampled

    def text_logits(self, latents):
        return self.model["text"](latents)

    def image_logits(self, latents, guidance):
        return self.model["image"](latents[:, 1] + guidance * (latents[:, 0] - latents[:, 1]))

    def answer(self, images, questions):
        return [float(np.asarray(image)[..., 0].mean() / 255) for image in images]

    def understand(self, images, questions):
        return torch.tensor([np.asarray(image).mean((0, 1)) / 255 for image in images])

    def describe(self, images, questions, max_tokens):
        return ["blocks in many colours" for _ in images]

    def text_end(self):
        return END

    def encode_text(self, text):
        return [WORDS.index(word) for word in text.split()]

    def decode_text(self, tokens):
        return " ".join(WORDS[token] for token in tokens)


def paint(tokens):
    hues = np.array([[30 + 20 * token, 255 - 20 * token, 40 + (token * 67) % 200] for token in tokens], np.uint8)
    return Image.fromarray(hues.reshape(GRID, GRID, 3).repeat(BLOCK, 0).repeat(BLOCK, 1))


def hash_of(text):
    return int.from_bytes(text.encode()[:7], "little")


def load(device="auto", dtype="auto"):
    return ToyBackbone(device, dtype)
