"""Stage three of training the lab model: the language model that reads, reasons, draws and answers.

A drawing row is `<begin><User> prompt <Assistant> reading <end><boi> 64 codes`; one pass teaches both the reading
and the picture. A question row is `<begin><User><boi> 64 patches <eoi> question <Assistant> Yes|No <end>`, with
more questions and a request to describe the page behind it.
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

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import JanusForConditionalGeneration, PreTrainedTokenizerFast

from milr.lab.codes import TOKENS, look_up, page_tokens
from milr.lab.curriculum import (
    BAD_DRAWING,
    MIX,
    RIDDLES_ELSEWHERE,
    DrawingErrors,
    is_test_prompt,
    make_item,
    misdraw,
    training_sample,
)
from milr.lab.detector import page_of
from milr.lab.language import write_frame, write_layout
from milr.lab.model import ASSISTANT, BOI, BOS, EOI, EOS, IMAGE, NO, PAD, USER, YES
from milr.lab.optimizers import MovingAverage, MuonAndAdamW, autocast, load_state, save_state, schedule
from milr.lab.questions import ask
from milr.lab.train_eye import see, with_noise
from milr.lab.world import lay_out

DRAWINGS = 32  # rows of each kind in a batch
QUESTIONS = 20
QUESTIONS_PER_PAGE = 4
FIRST_PATCH = 3  # position of the first patch in a question row
DRAWN_WRONG = 0.35  # share of the pages asked about that do not show what was meant
DESCRIBE = "What does this picture show?"
BUCKETS = 4
UNCONDITIONAL = 0.1
IMAGE_WEIGHT = 6.0  # of the mean over image tokens beside the mean over text: most of the 64 are blank or frame
ANSWER_WEIGHT = 1.0  # of answers and of captions
ROUND_LENGTH = 8  # lengths are multiples of this: a CPU plans its matrix products anew for each shape
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
class Drawings:
    """Rows that read, reason and draw. Index tensors point into the flattened [B * L] positions."""

    ids: Tensor  # [B, L]
    codes: Tensor  # [B, 64] true codes
    code_start: Tensor  # [B] position of the first code
    text_at: Tensor  # positions whose state predicts a taught text token
    text: Tensor


@dataclass(frozen=True)
class Questions:
    """Rows that look at a page, answer questions and say what is where."""

    ids: Tensor  # [B, L]
    pages: Tensor  # [B, 3, 128, 128] in -1..1
    answer_at: Tensor  # positions whose state predicts an answer
    caption_at: Tensor


@dataclass(frozen=True)
class Batch:
    """What one step learns from: two tables, since their rows differ in length."""

    drawings: Drawings
    questions: Questions

    def to(self, device: torch.device) -> Batch:
        return Batch(
            *(
                replace(part, **{name: value.to(device) for name, value in vars(part).items()})
                for part in (self.drawings, self.questions)
            )
        )


Encode = Callable[[str], list[int]]


def drawing_row(
    rng: random.Random, ids: Ids, encode: Encode, errors: DrawingErrors
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
    """A page and what is asked about it: tokens, codes, and the positions whose next token is taught."""

    tokens: list[int]
    codes: list[int]
    answers_at: list[int]
    captions_at: list[int]


def question_row(rng: random.Random, ids: Ids, encode: Encode) -> QuestionRow:
    """A page, some yes/no questions about it, and what it shows, place by place.

    Half of the questions are 'no', most of these by one detail; a third of the pages are drawn wrong. The caption is
    for the eye: one bit an answer teaches it slowly. It comes last, so that no answer can be copied from it.
    """
    while True:
        item = make_item(rng.choices(list(MIX), list(MIX.values()))[0], rng, RIDDLES_ELSEWHERE / 3)
        if not is_test_prompt(item.prompt):
            break
    scene = lay_out(item.meaning, rng)
    if rng.random() < DRAWN_WRONG:
        scene = misdraw(item.meaning, scene, rng, BAD_DRAWING)
    page = page_of(scene)
    tokens = [ids.bos, ids.user, ids.boi, *[ids.image] * TOKENS, ids.eoi]
    answers_at = []
    for turn in range(QUESTIONS_PER_PAGE):
        question, answer = ask(item.meaning, item.prompt, page, rng)
        tokens += [ids.user] * (turn > 0) + [*encode(" " + question.text), ids.assistant]
        answers_at.append(len(tokens) - 1)
        tokens += [ids.yes if answer else ids.no, ids.eos]
    caption = encode(f" {write_layout(scene.things)} {write_frame(scene.frame)}")
    tokens += [ids.user, *encode(" " + DESCRIBE), ids.assistant]
    captions_at = list(range(len(tokens) - 1, len(tokens) + len(caption)))
    return QuestionRow([*tokens, *caption, ids.eos], page_tokens(scene), answers_at, captions_at)


def make_batch(step: int, seed: int, ids: Ids, tokenizer: PreTrainedTokenizerFast, errors: DrawingErrors) -> Batch:
    rng = random.Random(f"lm-{seed}-{step // BUCKETS}")

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    # Rows of like length share a batch: four batches' worth are made, sorted and dealt out, which saves a fifth
    # of the positions from being padding.
    bucket = step % BUCKETS
    pool = sorted((drawing_row(rng, ids, encode, errors) for _ in range(BUCKETS * DRAWINGS)), key=lambda r: len(r[0]))
    asked = sorted((question_row(rng, ids, encode) for _ in range(BUCKETS * QUESTIONS)), key=lambda r: len(r.tokens))
    return Batch(
        _drawings(pool[bucket * DRAWINGS : (bucket + 1) * DRAWINGS], ids),
        _questions(asked[bucket * QUESTIONS : (bucket + 1) * QUESTIONS], ids, step),
    )


def _rounded(length: int) -> int:
    return -(-length // ROUND_LENGTH) * ROUND_LENGTH


def _table(rows: list[list[int]], length: int, pad: int) -> Tensor:
    return torch.tensor([row + [pad] * (length - len(row)) for row in rows])


def _drawings(rows: list[tuple[list[int], list[int], int, int]], ids: Ids) -> Drawings:
    length = _rounded(max(len(tokens) for tokens, *_ in rows) + TOKENS - 1)
    text_at, text = [], []
    for row, (tokens, _, first, last) in enumerate(rows):
        text_at += range(row * length + first, row * length + last)
        text += tokens[first + 1 : last + 1]
    return Drawings(
        ids=_table([tokens for tokens, *_ in rows], length, ids.pad),
        codes=torch.tensor([codes for _, codes, _, _ in rows]),
        code_start=torch.tensor([len(tokens) for tokens, *_ in rows]),
        text_at=torch.tensor(text_at, dtype=torch.long),
        text=torch.tensor(text, dtype=torch.long),
    )


def _questions(rows: list[QuestionRow], ids: Ids, step: int) -> Questions:
    length = _rounded(max(len(row.tokens) for row in rows))
    pages = torch.from_numpy(look_up(torch.tensor([row.codes for row in rows]).numpy())).permute(0, 3, 1, 2) * 2 - 1
    return Questions(
        ids=_table([row.tokens for row in rows], length, ids.pad),
        pages=with_noise(pages, step),
        answer_at=torch.tensor([n * length + at for n, row in enumerate(rows) for at in row.answers_at]),
        caption_at=torch.tensor([n * length + at for n, row in enumerate(rows) for at in row.captions_at]),
    )


def losses(model: JanusForConditionalGeneration, batch: Batch) -> dict[str, Tensor]:
    """Mean cross-entropies: of the taught text tokens, of the image tokens, of the answers, of the captions."""
    return {**_drawing_losses(model, batch.drawings), **_question_losses(model, batch.questions)}


def _drawing_losses(model: JanusForConditionalGeneration, batch: Drawings) -> dict[str, Tensor]:
    inner = model.model
    device, (rows, length) = batch.ids.device, batch.ids.shape
    embeddings = inner.language_model.embed_tokens(batch.ids)
    codes = model.prepare_embeddings_for_image_generation(batch.codes[:, :-1]).to(embeddings.dtype)
    places = batch.code_start[:, None] + torch.arange(TOKENS - 1, device=device)
    row = torch.arange(rows, device=device)[:, None]
    embeddings = embeddings.index_put((row.expand_as(places), places), codes)
    states = inner.language_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state.flatten(0, 1)
    image_at = (row * length + batch.code_start[:, None] - 1 + torch.arange(TOKENS, device=device)).flatten()
    return {
        "text": F.cross_entropy(model.lm_head(states[batch.text_at]).float(), batch.text),
        "image": F.cross_entropy(inner.generation_head(states[image_at]).float(), batch.codes.flatten()),
    }


def _question_losses(model: JanusForConditionalGeneration, batch: Questions) -> dict[str, Tensor]:
    inner = model.model
    embeddings = inner.language_model.embed_tokens(batch.ids)
    seen = see(model, batch.pages).to(embeddings.dtype)
    after = FIRST_PATCH + TOKENS
    embeddings = torch.cat([embeddings[:, :FIRST_PATCH], seen, embeddings[:, after:]], dim=1)
    states = inner.language_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state.flatten(0, 1)
    following = batch.ids.flatten()
    return {
        name: F.cross_entropy(model.lm_head(states[at]).float(), following[at + 1])
        for name, at in (("answer", batch.answer_at), ("caption", batch.caption_at))
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
    if device.type == "cpu":
        model.set_attn_implementation("eager")  # a tenth quicker at these lengths, for its backward pass
    for trained_before in (model.model.vqmodel, model.model.vision_model, model.model.aligner):
        trained_before.requires_grad_(False)
    matrices = [
        p
        for name, p in model.named_parameters()
        if p.requires_grad and p.dim() == 2 and "embed" not in name and "language_model.layers" in name
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
