"""Stage two of training the lab model: the language model that reads, reasons, draws and answers.

A drawing row is `<begin><User> prompt <Assistant> reading <end><boi> 64 codes`; one pass teaches both the reading
and the picture. A question row is `<begin><User><boi> 64 patches <eoi> question <Assistant> Yes|No <end>`, with
another question and a request to describe the page behind it.
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
from milr.lab.detector import check, page_of
from milr.lab.language import is_true, write_plan, write_prompt, write_question
from milr.lab.model import ASSISTANT, BOI, BOS, EOI, EOS, IMAGE, NO, PAD, USER, YES
from milr.lab.optimizers import MovingAverage, MuonAndAdamW, autocast, load_state, save_state, schedule
from milr.lab.world import NO_FRAME, Meaning, Scene, lay_out

DRAWINGS = 40  # rows of each kind in a batch
QUESTIONS = 8
QUESTIONS_PER_PAGE = 2
DESCRIBE = "What does this picture show?"
BUCKETS = 4
UNCONDITIONAL = 0.1
IMAGE_WEIGHT = 6.0  # of the mean over image tokens beside the mean over text: most of the 64 are blank or frame
ANSWER_WEIGHT = 0.5
MUON_RATE, ADAM_RATE = 0.02, 3e-3
SAVE_EVERY, SNAPSHOT_EVERY = 50, 250  # steps

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
    caption_at: Tensor

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


@dataclass(frozen=True)
class QuestionRow:
    """A picture and what is asked about it: tokens, codes, and the positions whose next token is taught."""

    tokens: list[int]
    codes: list[int]
    answers_at: list[int]
    captions_at: list[int]


def question_row(rng: random.Random, ids: Ids, encode: Callable[[str], list[int]]) -> QuestionRow:
    """A page, two yes/no questions about it, and what it shows, in words.

    Half of the questions are 'no', most of these by one detail. The caption is for the eye: one bit an answer
    teaches it slowly. It comes last, so that no answer can be copied from it.
    """
    while True:
        item = make_item(rng.choices(list(MIX), list(MIX.values()))[0], rng, RIDDLES_ELSEWHERE / 3)
        if not is_test_prompt(item.prompt):
            break
    meaning = item.meaning
    scene = lay_out(meaning, rng)
    shown = replace(meaning, frame=scene.frame or NO_FRAME)
    tokens = [ids.bos, ids.user, ids.boi, *[ids.image] * TOKENS, ids.eoi]
    answers_at = []
    for turn in range(QUESTIONS_PER_PAGE):
        question, answer = ask(meaning, item.prompt, scene, rng)
        tokens += (
            [*encode(" " + question), ids.assistant]
            if turn == 0
            else [ids.user, *encode(" " + question), ids.assistant]
        )
        answers_at.append(len(tokens) - 1)
        tokens += [ids.yes if answer else ids.no, ids.eos]
    caption = encode(" " + write_plan(shown))
    tokens += [ids.user, *encode(" " + DESCRIBE), ids.assistant]
    captions_at = list(range(len(tokens) - 1, len(tokens) + len(caption)))
    return QuestionRow([*tokens, *caption, ids.eos], page_tokens(scene), answers_at, captions_at)


def ask(meaning: Meaning, prompt: str, scene: Scene, rng: random.Random) -> tuple[str, bool]:
    """A question about a page, and its true answer: 'yes' half of the time."""
    if rng.random() < 0.5:
        return write_question(meaning, rng, prompt), True
    page = page_of(scene)
    while True:
        other = contradict(meaning, rng)
        if all(c.passed for c in check(other, page)):
            continue  # a natural apple is red, and on a diagonal two relations hold
        question = write_question(other, rng, write_prompt(other, rng))
        # The page fails the changed thing alone; a question about the rest of it would be true.
        if not is_true(question, meaning):
            return question, False


def make_batch(step: int, seed: int, ids: Ids, tokenizer: PreTrainedTokenizerFast, errors: DrawingErrors) -> Batch:
    rng = random.Random(f"lm-{seed}-{step // BUCKETS}")

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    # Rows of like length share a batch: four batches' worth are made, sorted and dealt out, which saves a fifth
    # of the positions from being padding.
    bucket = step % BUCKETS
    pool = sorted((drawing_row(rng, ids, encode, errors) for _ in range(BUCKETS * DRAWINGS)), key=lambda r: len(r[0]))
    drawings = pool[bucket * DRAWINGS : (bucket + 1) * DRAWINGS]
    asked_pool = sorted(
        (question_row(rng, ids, encode) for _ in range(BUCKETS * QUESTIONS)), key=lambda r: len(r.tokens)
    )
    questions = asked_pool[bucket * QUESTIONS : (bucket + 1) * QUESTIONS]
    length = max(max(len(tokens) + TOKENS - 1 for tokens, *_ in drawings), max(len(row.tokens) for row in questions))
    table = torch.full((DRAWINGS + QUESTIONS, length), ids.pad)
    text_at: list[int] = []
    text: list[int] = []
    for row, (tokens, _, first, last) in enumerate(drawings):
        table[row, : len(tokens)] = torch.tensor(tokens)
        text_at += range(row * length + first, row * length + last)
        text += tokens[first + 1 : last + 1]
    answer_at: list[int] = []
    caption_at: list[int] = []
    for row, asked in enumerate(questions, start=DRAWINGS):
        table[row, : len(asked.tokens)] = torch.tensor(asked.tokens)
        answer_at += [row * length + position for position in asked.answers_at]
        caption_at += [row * length + position for position in asked.captions_at]
    pages = torch.from_numpy(look_up(torch.tensor([row.codes for row in questions]).numpy()))
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
        caption_at=torch.tensor(caption_at),
    )


def losses(model: JanusForConditionalGeneration, batch: Batch) -> dict[str, Tensor]:
    """Mean cross-entropies: of the taught text tokens, of the image tokens, of the answers, of the captions."""
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
    following = batch.ids.flatten()
    return {
        "text": F.cross_entropy(model.lm_head(states[batch.text_at]).float(), batch.text),
        "image": F.cross_entropy(inner.generation_head(states[image_at]).float(), batch.codes.flatten()),
        "answer": F.cross_entropy(model.lm_head(states[batch.answer_at]).float(), following[batch.answer_at + 1]),
        "caption": F.cross_entropy(model.lm_head(states[batch.caption_at]).float(), following[batch.caption_at + 1]),
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
            total = parts["text"] + IMAGE_WEIGHT * parts["image"] + ANSWER_WEIGHT * (parts["answer"] + parts["caption"])
        total.backward()
        optimizer.step(schedule(step, plan.steps, hold=plan.hold))
        average.update(step)
        if step % 10 == 0 or step == plan.steps - 1:
            report(step, {name: loss.item() for name, loss in parts.items()})
        if (step + 1) % SAVE_EVERY == 0 or step == plan.steps - 1:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average.average,
                "step": step + 1,
                "seconds": seconds_before + time.monotonic() - began,
            }
            save_state(folder / state_name, state)
        if (step + 1) % SNAPSHOT_EVERY == 0:
            average.swap()
            snapshot(step + 1)
            model.train()
            average.swap()
    average.swap()
    model.eval().requires_grad_(False)
