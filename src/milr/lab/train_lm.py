"""Stage two of training the lab model: the language model that reads, reasons, draws and answers.

A drawing row is `<begin><User> prompt <Assistant> reading <end><boi> 64 codes`; one pass teaches both the reading
and the picture. A question row is `<begin><User><boi> 64 patches <eoi> question <Assistant> Yes|No <end>`.
A tenth of the drawing rows are unconditional in exactly the form that guidance uses at inference: every token
but the first and the begin-of-image is padding, and attended to.
Batches depend on (seed, step) alone, so a killed training resumes as if it had never stopped.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import JanusForConditionalGeneration, PreTrainedTokenizerFast

from milr.lab.codes import TOKENS, look_up, page_tokens
from milr.lab.curriculum import (
    MIX,
    RIDDLES_ELSEWHERE,
    DrawingErrors,
    contradict,
    is_test_prompt,
    make_item,
    training_sample,
)
from milr.lab.language import is_true, write_prompt, write_question
from milr.lab.model import ASSISTANT, BOI, BOS, EOI, EOS, IMAGE, NO, PAD, USER, YES
from milr.lab.optimizers import MovingAverage, MuonAndAdamW, autocast, load_state, save_state, schedule
from milr.lab.world import lay_out

DRAWINGS = 40  # rows of each kind in a batch
QUESTIONS = 8
BUCKETS = 4
UNCONDITIONAL = 0.1
IMAGE_WEIGHT = 2.0  # of the image tokens' mean cross-entropy beside the text's
ANSWER_WEIGHT = 0.5
MUON_RATE, ADAM_RATE = 0.02, 3e-3

Report = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class Ids:
    """Ids of the special tokens and of the two answers."""

    pad: int
    bos: int
    eos: int
    boi: int
    eoi: int
    image: int
    user: int
    assistant: int
    yes: int
    no: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> Ids:
        names = (PAD, BOS, EOS, BOI, EOI, IMAGE, USER, ASSISTANT)
        specials = [tokenizer.vocab[name] for name in names]
        answers = [tokenizer(word, add_special_tokens=False).input_ids for word in (YES, NO)]
        if any(len(answer) != 1 for answer in answers):
            raise ValueError("The tokenizer must spell ' Yes' and ' No' with one token each.")
        return cls(*specials, *(answer[0] for answer in answers))


@dataclass(frozen=True)
class Batch:
    """Token ids [B, L] and what is known of each row; index tensors point into the flattened [B * L] positions."""

    ids: Tensor
    codes: Tensor  # [D, 64] true codes of the drawing rows (the first D rows)
    code_start: Tensor  # [D] position of the first code
    pages: Tensor  # [Q, 3, 128, 128] in -1..1, of the question rows (the last Q rows)
    patch_start: int  # position of the first patch in a question row
    text_at: Tensor  # positions whose state predicts a taught text token
    text: Tensor
    answer_at: Tensor
    answers: Tensor

    def to(self, device: torch.device) -> Batch:
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def drawing_row(
    rng: random.Random, ids: Ids, encode: Callable[[str], list[int]], errors: DrawingErrors
) -> tuple[list[int], list[int], int, int]:
    """A drawing row: tokens up to <boi>, its codes, and the span of positions whose next token is taught."""
    sample = training_sample(rng, errors)
    prompt = [ids.bos, ids.user, *encode(" " + sample.item.prompt), ids.assistant]
    reading = encode(" " + sample.reading)
    tokens = [*prompt, *reading, ids.eos, ids.boi]
    first = len(prompt) - 1
    if not sample.plan_is_taught:
        first += len(encode(" " + sample.reading.split(".")[0] + "."))
    last = len(tokens) - 2  # the state at the last reading token predicts <end>
    if rng.random() < UNCONDITIONAL:
        return [ids.bos, *[ids.pad] * (len(tokens) - 2), ids.boi], page_tokens(sample.scene), 0, 0
    return tokens, page_tokens(sample.scene), first, last


def question_row(rng: random.Random, ids: Ids, encode: Callable[[str], list[int]]) -> tuple[list[int], list[int], bool]:
    """A question row: tokens, the codes of the page it is about, and the answer. Half are 'no', most by one detail."""
    while True:
        item = make_item(rng.choices(list(MIX), list(MIX.values()))[0], rng, RIDDLES_ELSEWHERE / 3)
        if not is_test_prompt(item.prompt):
            break
    meaning = item.meaning
    prompt = item.prompt if not any(item.lore) else write_prompt(meaning, rng)
    answer = rng.random() < 0.5
    asked = meaning
    if not answer:
        # Ask about a meaning that differs in one thing; a question about an unchanged part would still be true.
        asked = contradict(meaning, rng)
        prompt = write_prompt(asked, rng)
    scene = lay_out(meaning, rng)
    while True:
        question = write_question(asked, rng, prompt)
        if answer or not is_true(question, meaning):
            break
    tokens = [
        ids.bos, ids.user, ids.boi, *[ids.image] * TOKENS, ids.eoi, *encode(" " + question), ids.assistant,
        ids.yes if answer else ids.no, ids.eos,
    ]  # fmt: skip
    return tokens, page_tokens(scene), answer


def make_batch(step: int, seed: int, ids: Ids, tokenizer: PreTrainedTokenizerFast, errors: DrawingErrors) -> Batch:
    rng = random.Random(f"lm-{seed}-{step // BUCKETS}")

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    # Rows of like length share a batch: four batches' worth are made, sorted and dealt out, which saves a fifth
    # of the positions from being padding.
    pool = sorted((drawing_row(rng, ids, encode, errors) for _ in range(BUCKETS * DRAWINGS)), key=lambda r: len(r[0]))
    bucket = step % BUCKETS
    drawings = pool[bucket * DRAWINGS : (bucket + 1) * DRAWINGS]
    rng = random.Random(f"lm-questions-{seed}-{step}")
    questions = [question_row(rng, ids, encode) for _ in range(QUESTIONS)]
    length = max(max(len(tokens) + TOKENS - 1 for tokens, *_ in drawings), max(len(tokens) for tokens, *_ in questions))
    table = torch.full((DRAWINGS + QUESTIONS, length), ids.pad)
    text_at: list[int] = []
    text: list[int] = []
    for row, (tokens, _, first, last) in enumerate(drawings):
        table[row, : len(tokens)] = torch.tensor(tokens)
        text_at += range(row * length + first, row * length + last)
        text += tokens[first + 1 : last + 1]
    answer_at, answers = [], []
    for row, (tokens, _, _) in enumerate(questions, start=DRAWINGS):
        table[row, : len(tokens)] = torch.tensor(tokens)
        answer_at += [row * length + len(tokens) - 3]
        answers += [tokens[-2]]
    pages = torch.from_numpy(look_up(torch.tensor([codes for _, codes, _ in questions]).numpy()))
    noise = torch.Generator().manual_seed(step)
    pages = pages.permute(0, 3, 1, 2) * 2 - 1
    pages = pages + 0.05 * torch.rand(len(pages), 1, 1, 1, generator=noise) * torch.randn(pages.shape, generator=noise)
    return Batch(
        ids=table,
        codes=torch.tensor([codes for _, codes, _, _ in drawings]),
        code_start=torch.tensor([len(tokens) for tokens, *_ in drawings]),
        pages=pages,
        patch_start=3,
        text_at=torch.tensor(text_at),
        text=torch.tensor(text),
        answer_at=torch.tensor(answer_at),
        answers=torch.tensor(answers),
    )


def losses(model: JanusForConditionalGeneration, batch: Batch) -> dict[str, Tensor]:
    """Mean cross-entropies: of the taught text tokens, of the image tokens, of the answers."""
    inner = model.model
    embeddings = inner.language_model.embed_tokens(batch.ids)
    drawings, length = len(batch.codes), batch.ids.shape[1]
    device = batch.ids.device
    codes = model.prepare_embeddings_for_image_generation(batch.codes[:, :-1]).to(embeddings.dtype)
    places = batch.code_start[:, None] + torch.arange(TOKENS - 1, device=device)
    rows = torch.arange(drawings, device=device)[:, None].expand_as(places)
    seen = inner.aligner(inner.vision_model(batch.pages).last_hidden_state).to(embeddings.dtype)
    patch_places = batch.patch_start + torch.arange(TOKENS, device=device)
    questions = torch.arange(drawings, len(batch.ids), device=device)
    embeddings = embeddings.index_put((rows, places), codes)
    embeddings = embeddings.index_put((questions[:, None], patch_places[None, :]), seen)
    states = inner.language_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state.flatten(0, 1)
    image_at = (
        torch.arange(drawings, device=device)[:, None] * length + batch.code_start[:, None] - 1
        + torch.arange(TOKENS, device=device)
    ).flatten()  # fmt: skip
    return {
        "text": F.cross_entropy(model.lm_head(states[batch.text_at]).float(), batch.text),
        "image": F.cross_entropy(inner.generation_head(states[image_at]).float(), batch.codes.flatten()),
        "answer": F.cross_entropy(model.lm_head(states[batch.answer_at]).float(), batch.answers),
    }


@dataclass(frozen=True)
class LmPlan:
    """How long and how fast to train the language model."""

    steps: int
    seed: int = 0
    errors: DrawingErrors = field(default_factory=DrawingErrors)
    rate: float = 1.0  # factor on both peak learning rates
    hold: float = 0.45  # share of the steps before the learning rate falls


def train_lm(
    model: JanusForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    plan: LmPlan,
    device: torch.device,
    report: Report,
    snapshot: Callable[[int], None] = lambda step: None,
    state_name: str = "lm.pt",
) -> None:
    """Train in place, resuming from `folder`/lm.pt when it is there; the model ends as the moving average.

    `report(step, losses)` is called every 10 steps, `snapshot(step)` every 250 with the averaged weights in place.
    """
    ids = Ids.of(tokenizer)
    nn.Module.to(model, device)
    model.train().requires_grad_(True)
    model.model.vqmodel.requires_grad_(False)
    matrices = [
        p
        for name, p in model.named_parameters()
        if p.requires_grad
        and p.dim() == 2
        and "embed" not in name
        and any(part in name for part in ("language_model.layers", "vision_model.encoder"))
    ]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    optimizer = MuonAndAdamW(matrices, others, plan.rate * MUON_RATE, plan.rate * ADAM_RATE)
    average = MovingAverage(optimizer.parameters)
    start, seconds_before = 0, 0.0
    if state := load_state(folder / state_name):
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        for mean, saved in zip(average.average, state["average"], strict=True):
            mean.copy_(saved)
        start, seconds_before = int(state["step"]), float(state["seconds"])
    began = time.monotonic()
    for step in range(start, plan.steps):
        batch = make_batch(step, plan.seed, ids, tokenizer, plan.errors).to(device)
        with autocast(device):
            parts = losses(model, batch)
            total = parts["text"] + IMAGE_WEIGHT * parts["image"] + ANSWER_WEIGHT * parts["answer"]
        total.backward()
        optimizer.step(schedule(step, plan.steps, hold=plan.hold))
        average.update(step)
        if step % 10 == 0 or step == plan.steps - 1:
            report(step, {name: loss.item() for name, loss in parts.items()})
        if (step + 1) % 50 == 0 or step == plan.steps - 1:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average.average,
                "step": step + 1,
                "seconds": seconds_before + time.monotonic() - began,
            }
            save_state(folder / state_name, state)
        if (step + 1) % 250 == 0:
            average.swap()
            snapshot(step + 1)
            model.train()
            average.swap()
    average.swap()
    model.eval().requires_grad_(False)
