"""A toy backbone for tests of pure search logic: a tiny recurrent net with the heads, streams and forced
tokens of a real one, and critics to go with it. Tests of the method itself run on a true Janus.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from milr.backbones.base import BackboneInfo
from milr.drafts import Choice, Cost, Drawn, Forced, Greedy, Latents, Order, Score, Task

DIM, VOCAB, GRID, MAX_TEXT, END = 6, 8, 3, 12, 0
SHADE = 7  # of red a token; up to 36 tokens can be told apart in a picture


class Toy:
    """h' = tanh(A h + B[token]); one such net writes the text, another draws the image."""

    def __init__(self, seed: int = 0, guidance: float = 2.0, sharpness: float = 2.0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        self.recur, self.embed = normal(2, DIM, DIM), normal(2, VOCAB, DIM)
        self.heads = normal(2, VOCAB, DIM) * sharpness
        self.heads[0, END] -= 0.5  # texts of a few tokens
        self.info = BackboneInfo(
            name="toy", dtype="float32", device="cpu", image_tokens=GRID * GRID, image_size=GRID,
            hidden_size=DIM, guidance=guidance, grid=GRID,
        )  # fmt: skip
        self.orders: list[Order] = []
        self.batches: list[int] = []

    def text_end(self) -> int:
        return END

    def encode_text(self, text: str) -> list[int]:
        return [int(word[1:]) for word in text.split()]

    def decode_text(self, tokens: Sequence[int]) -> str:
        return " ".join(f"w{token}" for token in tokens)

    def answer(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[float]:
        raise NotImplementedError

    def understand(self, images: Sequence[Image.Image], questions: Sequence[str]) -> Tensor:
        raise NotImplementedError

    def describe(self, images: Sequence[Image.Image], questions: Sequence[str], max_tokens: int) -> list[str]:
        raise NotImplementedError

    def text_logits(self, latents: Tensor) -> Tensor:
        return latents @ self.heads[0].T

    def image_logits(self, latents: Tensor, guidance: float) -> Tensor:
        logits = latents @ self.heads[1].T
        return logits[:, 1] + guidance * (logits[:, 0] - logits[:, 1])

    def draw(self, orders: Sequence[Order]) -> list[Drawn]:
        self.orders.extend(orders)
        self.batches.append(len(orders))
        return [self._draw(order) for order in orders]

    def _draw(self, order: Order) -> Drawn:
        ask = order.ask
        guidance = self.info.guidance if ask.guidance is None else ask.guidance
        prompt = _embed(order.prompt)[None]
        text, text_states, decoded = self._write(
            0, prompt, ask.text, MAX_TEXT, order.stream, lambda z: self.text_logits(z)
        )
        ended = bool(text) and text[-1] == END
        text = text[:-1] if ended else text
        pair = torch.stack([_embed(f"{order.prompt}. {text}"), torch.zeros(DIM)])
        image, image_states, sampled = self._write(
            1, pair, ask.image, GRID * GRID, order.stream, lambda z: self.image_logits(z, guidance)
        )
        latents = None
        if ask.text_ratio or ask.image_ratio:
            latents = Latents(
                text=torch.stack(text_states)[: math.ceil(ask.text_ratio * len(text)), 0],
                image=torch.stack(image_states)[: math.ceil(ask.image_ratio * len(image))],
            )
        colours = np.array([[token * SHADE, 0, 0] for token in image], dtype=np.uint8)
        return Drawn(
            reasoning=self.decode_text(text),
            text_tokens=tuple(text),
            text_ended=ended,
            image_tokens=tuple(image),
            image=Image.fromarray(colours.reshape(GRID, GRID, 3)),
            latents=latents,
            guidance=guidance,
            cost=Cost(text_tokens=decoded, image_tokens=sampled),
        )

    def _write(
        self,
        net: int,
        state: Tensor,
        choice: Choice,
        limit: int,
        stream: int,
        logits: Callable[[Tensor], Tensor],
    ) -> tuple[list[int], list[Tensor], int]:
        """Tokens (the end included), the states behind them, and how many were not forced."""
        forced = choice.tokens if isinstance(choice, Forced) else ()
        free = (choice.free if isinstance(choice, Forced) else None) or frozenset()
        rest = choice.then if isinstance(choice, Forced) else choice
        uniforms = np.random.default_rng([stream, net]).random(limit)
        tokens: list[int] = []
        states: list[Tensor] = []
        while len(tokens) < limit and not (net == 0 and tokens and tokens[-1] == END):
            states.append(state)
            row = logits(state[None] if net else state)[0]
            if len(tokens) < len(forced) and len(tokens) not in free:
                token = forced[len(tokens)]
            elif isinstance(rest, Greedy):
                token = int(row.argmax())
            else:
                assert not isinstance(rest, Forced)
                cdf = torch.softmax(row.double() / rest.temperature, -1).cumsum(-1).numpy()
                token = int(np.searchsorted(cdf, uniforms[len(tokens)] * cdf[-1], side="right"))
            tokens.append(token)
            state = torch.tanh(state @ self.recur[net] + self.embed[net, token])
        kept = sum(i not in free for i in range(min(len(tokens), len(forced))))
        return tokens, states, len(tokens) - kept


def _embed(words: str) -> Tensor:
    return torch.randn(DIM, generator=torch.Generator().manual_seed(zlib.crc32(words.encode())))


class CountingCritic:
    """Scores each image by a function of its tokens and the task, and counts."""

    def __init__(self, judge: Callable[[tuple[int, ...], Task], float | None], name: str = "counting") -> None:
        self.name, self.judge, self.calls = name, judge, 0
        self.rewards: list[float | None] = []

    def score(self, images: Sequence[Image.Image], tasks: Sequence[Task]) -> list[Score]:
        scores = []
        for image, task in zip(images, tasks, strict=True):
            self.calls += 1
            value = self.judge(tokens_of(image), task)
            self.rewards.append(value)
            scores.append(Score(value, reason="" if value is not None else "no idea"))
        return scores


def tokens_of(image: Image.Image) -> tuple[int, ...]:
    return tuple(int(red) // SHADE for red in np.asarray(image)[:, :, 0].ravel())


def match(tokens: tuple[int, ...], task: Task) -> float:
    """Share of image tokens below 4: a graded reward that is hardly ever 1."""
    return sum(token < 4 for token in tokens) / len(tokens)


def noise(tokens: tuple[int, ...], task: Task) -> float:
    return zlib.crc32(repr(tokens).encode()) / 2**32


def tasks(count: int = 1) -> list[Task]:
    return [Task(prompt=f"prompt {number}", id=str(number)) for number in range(count)]
