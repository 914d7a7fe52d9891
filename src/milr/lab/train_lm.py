"""Stage three of training the lab model: the language model that reads, reasons, draws and answers.

A drawing row is `<begin><User> prompt <Assistant> reading <end><boi> 64 codes`; one pass teaches both the reading
and the picture. Drawing what a reading says is learnt long before writing it, so twice as many rows stop at the
reading's end. A question row is `<begin><User><boi> 64 patches <eoi> question <Assistant> Yes|No <end>`, with
more questions and a request to describe the page behind it.
A tenth of the drawing rows are unconditional in exactly the form that guidance uses at inference: every token
but the first and the begin-of-image is padding, and attended to.
Batches depend on (seed, step) alone, so a killed training resumes as if it had never stopped.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import JanusForConditionalGeneration, PreTrainedTokenizerFast

from milr.lab.codes import TOKENS, look_up, page_tokens
from milr.lab.curriculum import (
    BAD_DRAWING,
    EVEN,
    MIX,
    RIDDLES_ELSEWHERE,
    DrawingErrors,
    Item,
    misdraw,
    training_item,
    training_sample,
)
from milr.lab.detector import page_of
from milr.lab.language import write_frame, write_layout
from milr.lab.model import ASSISTANT, BOI, BOS, EOI, EOS, IMAGE, NO, PAD, USER, YES
from milr.lab.optimizers import MovingAverage, MuonAndAdamW, autocast, resume, save_state, schedule
from milr.lab.questions import Question, ask
from milr.lab.train_eye import see, with_noise
from milr.lab.train_vq import Report
from milr.lab.world import Scene, lay_out

QUESTIONS_PER_PAGE = 4
FIRST_PATCH = 3  # position of the first patch in a question row
DRAWN_WRONG = 0.35  # share of the pages asked about that do not show what was meant
DESCRIBE = "What does this picture show?"
BUCKETS = 4
UNCONDITIONAL = 0.1
ROUND_LENGTH = 8  # lengths are multiples of this: a CPU plans its matrix products anew for each shape
MUON_RATE, ADAM_RATE = 0.02, 3e-3
SAVE_EVERY, SNAPSHOT_EVERY = 50, 250  # steps


@dataclass(frozen=True)
class Diet:
    """What a step learns from: rows of each kind, and the weights of their mean losses over tokens.

    Text weighs enough not to drown in what pictures with mistakes and guessed answers add.
    """

    drawings: int = 20
    readings: int = 44
    questions: int = 16
    text: float = 3.0
    image: float = 3.0
    answer: float = 1.0
    caption: float = 1.0


# Once the readings are right: more to draw and to answer. Guidance makes rare mistakes rarer, so these rates lie above
# those wanted.
DRAWING = Diet(drawings=40, readings=12, questions=24, image=6.0, answer=2.0)
CALIBRATED = DrawingErrors(
    count=((0.15, 0.55), (0.30, 0.80), (0.40, 0.90)), hard_counts=0.35, missing=(0.05, 0.30, 0.20),
    colour=(0.04, 0.40, 0.15), binding=(0.20, 0.75, 0.30), relation=(0.04, 0.40, 0.20), crowded=0.25,
)  # fmt: skip


# Last the eye: answers are learnt late, at a high rate, from pages of every category alike; the rest goes on beside.
ASKING = Diet(drawings=16, readings=24, questions=32, image=6.0, answer=4.0)
RECALIBRATED = replace(  # after the drawing stage attribute was too low, position too high
    CALIBRATED, colour=(0.02, 0.25, 0.15), binding=(0.20, 0.72, 0.30), relation=(0.10, 0.60, 0.30), crowded=0.1
)


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
class Readings:
    """Rows that read and reason. Index tensors point into the flattened [B * L] positions."""

    ids: Tensor  # [B, L]
    text_at: Tensor  # positions whose state predicts a taught text token
    text: Tensor


@dataclass(frozen=True)
class Drawings(Readings):
    """Rows that go on to draw."""

    codes: Tensor  # [B, 64] true codes
    code_start: Tensor  # [B] position of the first code


@dataclass(frozen=True)
class Questions:
    """Rows that look at a page, answer questions and say what is where."""

    ids: Tensor  # [B, L]
    pages: Tensor  # [B, 3, 128, 128] in -1..1
    answer_at: Tensor  # positions whose state predicts an answer
    caption_at: Tensor


@dataclass(frozen=True)
class Batch:
    """What one step learns from: three tables, since their rows differ in length."""

    drawings: Drawings
    readings: Readings
    questions: Questions

    def to(self, device: torch.device) -> Batch:
        return Batch(**{name: _moved(part, device) for name, part in vars(self).items()})


def _moved(part: Any, device: torch.device) -> Any:
    return replace(part, **{name: value.to(device) for name, value in vars(part).items()})


Encode = Callable[[str], list[int]]
Row = TypeVar("Row", "DrawingRow", "QuestionRow")


@dataclass(frozen=True)
class DrawingRow:
    """Tokens up to <boi>, the codes behind it, and the span of positions whose next token is taught."""

    tokens: list[int]
    codes: list[int]
    first: int
    last: int


def drawing_row(rng: random.Random, ids: Ids, encode: Encode, errors: DrawingErrors) -> DrawingRow:
    sample = training_sample(rng, errors)
    prompt = [ids.bos, ids.user, *encode(" " + sample.item.prompt), ids.assistant]
    tokens = [*prompt, *encode(" " + sample.reading), ids.eos, ids.boi]
    first = len(prompt) - 1
    if not sample.plan_is_taught:
        first += len(encode(" " + sample.reading.split(".")[0] + "."))
    return DrawingRow(tokens, page_tokens(sample.scene), first, len(tokens) - 2)  # the last state predicts <end>


def unconditional(row: DrawingRow, ids: Ids) -> DrawingRow:
    """The row as guidance sees it: a picture of nothing in particular."""
    return DrawingRow([ids.bos, *[ids.pad] * (len(row.tokens) - 2), ids.boi], row.codes, 0, 0)


@dataclass(frozen=True)
class QuestionRow:
    """A page and what is asked about it: tokens, codes, and the positions whose next token is taught."""

    tokens: list[int]
    codes: list[int]
    answers_at: list[int]
    captions_at: list[int]


@dataclass(frozen=True)
class AskedPage:
    """A page that was meant to show `item`, and questions about it with their true answers."""

    item: Item
    scene: Scene
    questions: list[tuple[Question, bool]]


def asked_page(rng: random.Random, even_pages: bool, of_test_prompts: bool = False) -> AskedPage:
    """A page and its questions: half of these are 'no', most by one detail; a third of the pages are drawn wrong."""
    item = training_item(rng, RIDDLES_ELSEWHERE / 3, EVEN if even_pages else MIX)
    scene = lay_out(item.meaning, rng)
    if rng.random() < DRAWN_WRONG:
        scene = misdraw(item.meaning, scene, rng, BAD_DRAWING)
    page = page_of(scene)
    asked = [ask(item.meaning, item.prompt, page, rng, of_test_prompts) for _ in range(QUESTIONS_PER_PAGE)]
    return AskedPage(item, scene, asked)


def question_row(rng: random.Random, ids: Ids, encode: Encode, even_pages: bool = False) -> QuestionRow:
    """A page, some yes/no questions about it, and what it shows, place by place.

    The caption is for the eye: one bit an answer teaches it slowly. It comes last, so that no answer can be copied
    from it.
    """
    shown = asked_page(rng, even_pages)
    tokens = [ids.bos, ids.user, ids.boi, *[ids.image] * TOKENS, ids.eoi]
    answers_at = []
    for turn, (question, answer) in enumerate(shown.questions):
        tokens += [ids.user] * (turn > 0) + [*encode(" " + question.text), ids.assistant]
        answers_at.append(len(tokens) - 1)
        tokens += [ids.yes if answer else ids.no, ids.eos]
    caption = encode(f" {write_layout(shown.scene.things)} {write_frame(shown.scene.frame)}")
    tokens += [ids.user, *encode(" " + DESCRIBE), ids.assistant]
    captions_at = list(range(len(tokens) - 1, len(tokens) + len(caption)))
    return QuestionRow([*tokens, *caption, ids.eos], page_tokens(shown.scene), answers_at, captions_at)


@dataclass(frozen=True)
class LmPlan:
    """How long, how fast and on what to train the language model. `data` names the stage in its random streams."""

    steps: int
    seed: int = 0
    data: str = "lm"
    diet: Diet = Diet()
    errors: DrawingErrors = field(default_factory=DrawingErrors)
    rate: float = 1.0  # factor on both peak learning rates
    hold: float = 0.4  # share of the steps before the learning rate falls
    even_pages: bool = False  # ask about pages of all categories in equal shares instead of the mix


def make_batch(step: int, plan: LmPlan, ids: Ids, tokenizer: PreTrainedTokenizerFast) -> Batch:
    """The batch of a step: the same for the same plan, whatever was made before."""
    drawn, read, asked = _pools(step // BUCKETS, plan, ids, tokenizer)

    def dealt(pool: list[Row]) -> list[Row]:
        share = len(pool) // BUCKETS
        return pool[step % BUCKETS * share :][:share]

    rng = random.Random(f"{plan.data}-{plan.seed}-{step}")
    rows = [unconditional(row, ids) if rng.random() < UNCONDITIONAL else row for row in dealt(drawn)]
    return Batch(_drawings(rows, ids), _readings(dealt(read), ids, 0), _questions(dealt(asked), ids, step))


def pool_rng(plan: LmPlan, number: int) -> random.Random:
    """The random stream of one pool: drawings, then readings, then questions (`_pools`; lab.report_set lists them)."""
    return random.Random(f"{plan.data}-pool-{plan.seed}-{number}")


@functools.lru_cache(maxsize=1)
def _pools(
    number: int, plan: LmPlan, ids: Ids, tokenizer: PreTrainedTokenizerFast
) -> tuple[list[DrawingRow], list[DrawingRow], list[QuestionRow]]:
    """Rows for four batches, sorted: rows of like length share a batch, which saves a fifth of the positions."""
    rng = pool_rng(plan, number)

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    def pool(make: Callable[[], Row], count: int) -> list[Row]:
        return sorted((make() for _ in range(BUCKETS * count)), key=lambda row: len(row.tokens))

    return (
        pool(lambda: drawing_row(rng, ids, encode, plan.errors), plan.diet.drawings),
        pool(lambda: drawing_row(rng, ids, encode, plan.errors), plan.diet.readings),
        pool(lambda: question_row(rng, ids, encode, plan.even_pages), plan.diet.questions),
    )


def _rounded(length: int) -> int:
    return -(-length // ROUND_LENGTH) * ROUND_LENGTH


def _table(rows: list[list[int]], length: int, pad: int) -> Tensor:
    return torch.tensor([row + [pad] * (length - len(row)) for row in rows])


def _readings(rows: list[DrawingRow], ids: Ids, room: int) -> Readings:
    """The rows as a table with room for so many more tokens behind the longest."""
    length = _rounded(max(len(row.tokens) for row in rows) + room)
    return Readings(
        ids=_table([row.tokens for row in rows], length, ids.pad),
        text_at=torch.tensor([n * length + at for n, row in enumerate(rows) for at in range(row.first, row.last)]),
        text=torch.tensor([token for row in rows for token in row.tokens[row.first + 1 : row.last + 1]]),
    )


def _drawings(rows: list[DrawingRow], ids: Ids) -> Drawings:
    return Drawings(
        **vars(_readings(rows, ids, TOKENS - 1)),
        codes=torch.tensor([row.codes for row in rows]),
        code_start=torch.tensor([len(row.tokens) for row in rows]),
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
    inner = model.model
    drawn, read = _drawing_states(model, batch.drawings), _states(model, _embed(model, batch.readings.ids))
    text_states = torch.cat([drawn[batch.drawings.text_at], read[batch.readings.text_at]])
    text = torch.cat([batch.drawings.text, batch.readings.text])
    rows, length = batch.drawings.ids.shape
    device = batch.drawings.ids.device
    image_at = torch.arange(rows, device=device)[:, None] * length + batch.drawings.code_start[:, None] - 1
    image_states = drawn[(image_at + torch.arange(TOKENS, device=device)).flatten()]
    return {
        "text": F.cross_entropy(model.lm_head(text_states).float(), text),
        "image": F.cross_entropy(inner.generation_head(image_states).float(), batch.drawings.codes.flatten()),
        **_question_losses(model, batch.questions),
    }


def _embed(model: JanusForConditionalGeneration, ids: Tensor) -> Tensor:
    embeddings: Tensor = model.model.language_model.embed_tokens(ids)
    return embeddings


def _states(model: JanusForConditionalGeneration, embeddings: Tensor) -> Tensor:
    """Final hidden states, [B * L, D]."""
    output = model.model.language_model(inputs_embeds=embeddings, use_cache=False)
    states: Tensor = output.last_hidden_state.flatten(0, 1)
    return states


def _drawing_states(model: JanusForConditionalGeneration, batch: Drawings) -> Tensor:
    embeddings = _embed(model, batch.ids)
    codes = model.prepare_embeddings_for_image_generation(batch.codes[:, :-1]).to(embeddings.dtype)
    places = batch.code_start[:, None] + torch.arange(TOKENS - 1, device=batch.ids.device)
    rows = torch.arange(len(batch.ids), device=batch.ids.device)[:, None].expand_as(places)
    return _states(model, embeddings.index_put((rows, places), codes))


def _question_losses(model: JanusForConditionalGeneration, batch: Questions) -> dict[str, Tensor]:
    embeddings = _embed(model, batch.ids)
    seen = see(model, batch.pages).to(embeddings.dtype)
    after = FIRST_PATCH + TOKENS
    embeddings = torch.cat([embeddings[:, :FIRST_PATCH], seen, embeddings[:, after:]], dim=1)
    states = _states(model, embeddings)
    following = batch.ids.flatten()
    return {
        name: F.cross_entropy(model.lm_head(states[at]).float(), following[at + 1])
        for name, at in (("answer", batch.answer_at), ("caption", batch.caption_at))
    }


def train_lm(
    model: JanusForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    plan: LmPlan,
    device: torch.device,
    report: Report,
    snapshot: Callable[[str], None] = lambda name: None,
    state_name: str = "lm.pt",
) -> None:
    """Train in place, resuming from `folder`/lm.pt when it is there; the model ends as the moving average.

    `report(step, losses)` is called every 10 steps, `snapshot(name)` every 250 with the averaged weights in
    place.
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
    if state := resume(folder / state_name, model, optimizer, average):
        start, seconds_before = int(state["step"]), float(state["seconds"])
    began = time.monotonic()
    for step in range(start, plan.steps):
        batch = make_batch(step, plan, ids, tokenizer).to(device)
        with autocast(device):
            parts = losses(model, batch)
            total = torch.stack([getattr(plan.diet, name) * loss for name, loss in parts.items()]).sum()
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
            snapshot(f"{plan.data}-{step + 1:05d}")
            model.train()
            average.swap()
    average.swap()
    model.eval().requires_grad_(False)
