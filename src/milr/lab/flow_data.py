"""What the lab's flow model learns from: texts with the states the picture attends to, and pages beside them.

Texts come in blocks, each written, read by the frozen language model and used a few times, always with another
page: drawing errors are drawn anew, and so is everything that the text leaves open. A block depends on (seed, number)
alone and a page on (seed, step), so a killed training resumes as if it had never stopped.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from milr.lab.codes import page_tokens
from milr.lab.curriculum import DrawingErrors, Sample, misdraw, training_sample
from milr.lab.flow_model import MAX_TEXT, drawer_text, states_of, token_counts
from milr.lab.language import write_plan
from milr.lab.train_lm import RECALIBRATED
from milr.lab.world import Meaning, Scene, lay_out

NOTHING_SAID = 0.1  # share of empty texts: what guidance compares with
ONLY_PROMPT, ONLY_PLAN = 0.05, 0.05  # shares of texts that leave the places and the frame to the noise
WHOLE_LENGTH = 0.15  # share of batches padded as inference pads; the others to their longest text, which is cheaper
ROUND_LENGTH = 8
BLOCK, USES = 16, 4  # batches a block, and how often each is used
FAULTLESS = DrawingErrors(
    count=((0.0, 0.0),) * 3, missing=(0.0, 0.0, 0.0), colour=(0.0, 0.0, 0.0), binding=(0.0, 0.0, 0.0),
    relation=(0.0, 0.0, 0.0), frame=(0.0, 0.0, 0.0),
)  # fmt: skip


@dataclass(frozen=True)
class Told:
    """A text and what it may show: `scene` where the text says what stands where, None where that is open."""

    text: str
    meaning: Meaning
    scene: Scene | None

    def page(self, rng: random.Random, errors: DrawingErrors) -> list[int]:
        """The tokens of a page that stands beside this text in the training data."""
        scene = self.scene or lay_out(self.meaning, rng)
        return page_tokens(misdraw(self.meaning, scene, rng, errors))


def tell(rng: random.Random) -> Told:
    """A random text of the training side."""
    sample: Sample = training_sample(rng, FAULTLESS)
    kind = rng.random()
    if kind < NOTHING_SAID:
        return Told("", sample.meaning, None)
    if kind < NOTHING_SAID + ONLY_PROMPT:  # what the prompt means, not what a reading makes of it
        return Told(drawer_text(sample.item.prompt, None), sample.item.meaning, None)
    if kind < NOTHING_SAID + ONLY_PROMPT + ONLY_PLAN:
        return Told(drawer_text(sample.item.prompt, write_plan(sample.meaning)), sample.meaning, None)
    return Told(drawer_text(sample.item.prompt, sample.reading), sample.meaning, sample.scene)


@dataclass(frozen=True)
class Texts:
    """The texts of one batch and their states, [B, L, 768], half precision."""

    told: list[Told]
    states: Tensor


@torch.no_grad()
def make_block(
    number: int, seed: int, size: int, writer: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> list[Texts]:
    """The batches of a block: texts of like length share one."""
    rng = random.Random(f"flow-block-{seed}-{number}")
    told = [tell(rng) for _ in range(BLOCK * size)]
    counts = token_counts(tokenizer, [one.text for one in told])
    order = sorted(range(len(told)), key=counts.__getitem__)
    batches = []
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        longest = -(-counts[chosen[-1]] // ROUND_LENGTH) * ROUND_LENGTH
        length = MAX_TEXT if rng.random() < WHOLE_LENGTH else min(MAX_TEXT, longest)
        some = [told[index] for index in chosen]
        batches.append(Texts(some, states_of(writer, tokenizer, [one.text for one in some], length).half()))
    rng.shuffle(batches)
    return batches


class Data:
    """Batches by step; keeps the block that the last one was of."""

    def __init__(
        self,
        seed: int,
        size: int,
        writer: LlamaForCausalLM,
        tokenizer: PreTrainedTokenizerFast,
        errors: DrawingErrors = RECALIBRATED,
    ) -> None:
        self.seed, self.size, self.errors = seed, size, errors
        self.writer, self.tokenizer = writer, tokenizer
        self.number, self.block = -1, list[Texts]()

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """States [B, L, 768] and tokens [B, 64] of a step, the same whatever was asked before."""
        number, place = divmod(step, BLOCK * USES)
        if number != self.number:
            self.block = make_block(number, self.seed, self.size, self.writer, self.tokenizer)
            self.number = number
        texts = self.block[place % BLOCK]
        rng = random.Random(f"flow-page-{self.seed}-{step}")
        return texts.states, torch.tensor([one.page(rng, self.errors) for one in texts.told])
