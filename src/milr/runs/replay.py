"""Draw a recorded trajectory again and say whether the same tokens come out.

The recorded asks are fed to the model one by one, so this checks the model and its engine, not the search or the
critic. PyTorch promises no identity across versions, devices or dtypes: where tokens differ, what else differs is
named, and a weaker question is asked. The recorded tokens are forced through the model: are they as probable as what
it draws itself? Then the other tokens are a matter of rounding, and it is the same model (`Likelihood`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from milr.drafts import Ask, Choice, Drawn, Forced, Noise, Order, Repaint, Sample, UserError
from milr.pictures import see
from milr.runs.generate import check_prompt
from milr.runs.output import Folder
from milr.runs.record import TOKENS, Record, RecordedDraft, fingerprint, read_record, versions

if TYPE_CHECKING:
    from milr.backbones.base import Backbone, BackboneInfo

DRAFTS_AT_ONCE = 8
SAME_PICTURE = 3.0  # of 255, on average: another batch, or another device, rounds every value by a little
ROUNDING = 0.5  # of a log-probability: logits of 16 to 32 are 0.125 apart in bfloat16, and states are rounded before
CHANCE = 4.0  # standard errors


@dataclass(frozen=True)
class Likelihood:
    """How probable recorded tokens are to this model, teacher-forced: each after the recorded ones before it.

    sampled: tokens that were drawn by chance. surprise: minus the mean log-probability of these, in nats; expected:
    what that is for tokens that this model draws itself (its entropy), error: the standard error of their difference.
    greedy: tokens that were to be the most probable. behind: by how much the log-probability of one of these lies below
    the most probable one's, at most.
    """

    sampled: int = 0
    surprise: float = 0.0
    expected: float = 0.0
    error: float = 0.0
    greedy: int = 0
    behind: float = 0.0

    @property
    def is_of_this_model(self) -> bool:
        """Whether rounding explains the difference: no greedy token is far behind, and chance explains the surprise."""
        return self.behind <= ROUNDING and abs(self.surprise - self.expected) <= CHANCE * self.error + ROUNDING

    def __str__(self) -> str:
        found = []
        if self.sampled:
            found.append(
                f"{self.sampled} sampled tokens have a mean log-probability of {-self.surprise:.2f}, this model's own "
                f"{-self.expected:.2f} +- {self.error:.2f}"
            )
        if self.greedy:
            found.append(
                f"{self.greedy} tokens that should be the most probable ones are at most {self.behind:.2g} behind"
            )
        verdict = (
            "other tokens by rounding, the same model" if self.is_of_this_model else "more than rounding, another model"
        )
        return f"{verdict}: {'; '.join(found)}"


@dataclass(frozen=True)
class Replay:
    """The outcome: `changed` drafts drew other tokens; `circumstances` is what is not as it was.

    `refused` says why nothing was drawn at all (other weights under the same name).
    """

    drafts: int
    changed: tuple[str, ...]
    circumstances: tuple[str, ...]
    refused: str = ""
    likelihood: Likelihood | None = None  # of the recorded tokens of the changed drafts

    @property
    def is_same(self) -> bool:
        return not self.changed and not self.refused


def replay(
    folder: str | os.PathLike[str],
    model: Backbone | str | None = None,
    *,
    device: str = "auto",
    dtype: str | None = None,
    on_draft: Callable[[int, int], None] | None = None,
) -> Replay:
    """Draw every draft of a `milr generate` folder again and compare the tokens.

    Args:
        folder: the folder, or its trajectory.json. model: a loaded model or a name; None is the recorded name.
        dtype: None is the recorded one. on_draft: hears (drafts done, drafts in all).
    Raises UserError if the file is unreadable or does not fit the model.
    """
    record = read_record(Path(folder))
    check_prompt(record.prompt)
    if model is None or isinstance(model, str):
        from milr.backbones import load

        recorded_dtype = str(record.model.get("dtype", "auto"))
        model = load(model or str(record.model["name"]), device=device, dtype=dtype or recorded_dtype)
    circumstances = _circumstances(record, model)
    then, now = record.model.get("fingerprint"), fingerprint(model)
    if then and now and then != now:
        refused = f"the weights are not those of the record (fingerprint {then!s:.20}, now {now})"
        return Replay(len(record.drafts), (), circumstances, refused)
    _check_fit(record, model)
    pictures = _pictures(Path(folder), record) if model.info.choices == "noise" else {}
    changed: list[str] = []
    doubted: list[RecordedDraft] = []
    for start in range(0, len(record.drafts), DRAFTS_AT_ONCE):
        chunk = record.drafts[start : start + DRAFTS_AT_ONCE]
        for draft, drawn in zip(chunk, _draw(model, record.prompt, chunk), strict=True):
            picture = pictures.get(draft.number)
            difference = _difference(draft, drawn, picture)
            if difference:  # two nearly equal logits may swap in another batch: drawn alone, it counts
                difference = _difference(draft, _draw(model, record.prompt, [draft])[0], picture)
            if difference:
                changed.append(f"draft {draft.number}: {difference}")
                doubted.append(draft)
        if on_draft is not None:
            on_draft(start + len(chunk), len(record.drafts))
    likelihood = likelihood_of(model, record.prompt, doubted) if doubted else None
    return Replay(len(record.drafts), tuple(changed), circumstances, likelihood=likelihood)


def likelihood_of(model: Backbone, prompt: str, drafts: Sequence[RecordedDraft]) -> Likelihood:
    """How probable the tokens of recorded drafts are to this model. Forced tokens of a search are not asked about, nor
    is the end of a text."""
    import torch

    surprises, entropies, variances, gaps = [], [], [], []
    for draft in drafts:
        ask = draft.ask
        (drawn,) = model.draw([Order(prompt, _forced(draft, model.text_end()), draft.stream)])
        assert drawn.latents is not None, "latents were asked for"
        with torch.no_grad():
            parts = [(ask.text, model.text_logits(drawn.latents.text), draft.text_tokens)]
            if model.info.choices == "tokens":  # noise follows from its key, whatever model draws from it
                image = model.image_logits(drawn.latents.image, drawn.guidance)
                parts.append((ask.image, image, draft.image_tokens))
        for choice, logits, tokens in parts:
            free = [at for at in _chosen(choice, len(tokens)) if at < len(logits)]
            if not free:
                continue
            then = choice.then if isinstance(choice, Forced) else choice
            scale = then.temperature if isinstance(then, Sample) else 1.0
            logs = torch.log_softmax(logits[free].double() / scale, -1)
            theirs = logs[torch.arange(len(free)), torch.tensor([tokens[at] for at in free])]
            if isinstance(then, Sample):
                chances = logs.exp()
                entropy = -(chances * logs.clamp(min=-1e9)).sum(-1)  # 0 * -inf is not a number
                surprises += (-theirs).tolist()
                entropies += entropy.tolist()
                variances += ((chances * logs.clamp(min=-1e9) ** 2).sum(-1) - entropy**2).clamp(min=0).tolist()
            else:
                gaps += (logs.max(-1).values - theirs).tolist()
    count = len(surprises)
    return Likelihood(
        sampled=count,
        surprise=sum(surprises) / count if count else 0.0,
        expected=sum(entropies) / count if count else 0.0,
        error=math.sqrt(sum(variances)) / count if count else 0.0,
        greedy=len(gaps),
        behind=max(gaps, default=0.0),
    )


def _forced(draft: RecordedDraft, text_end: int) -> Ask:
    """The ask that gives a recorded draft with all its latents, and samples nothing."""
    text = Forced((*draft.text_tokens, text_end))
    return replace(
        draft.ask, text=text, image=Forced(draft.image_tokens, free=frozenset()), text_ratio=1.0, image_ratio=1.0
    )


def _chosen(choice: Choice, length: int) -> list[int]:
    """The positions that the model chose."""
    if not isinstance(choice, Forced):
        return list(range(length))
    return list(range(len(choice.tokens), length)) if choice.free is None else sorted(choice.free)


def _draw(model: Backbone, prompt: str, drafts: Sequence[RecordedDraft]) -> list[Drawn]:
    return model.draw([Order(prompt, draft.ask, draft.stream, (draft,)) for draft in drafts])


def _pictures(path: Path, record: Record) -> dict[int, Path]:
    """The pictures on record, by draft. A flow model's keys follow from its stream, whatever it makes of them, so that
    only the pictures themselves say whether they are the same. Raises UserError where one is missing."""
    folder = Folder(path if path.is_dir() else path.parent)
    found = {draft.number: folder.draft(draft.number) for draft in record.drafts}
    for file in found.values():
        if not file.is_file():
            raise UserError(f"{file} is missing, and a flow model is told by its pictures; give a whole folder.")
    return found


def _difference(draft: RecordedDraft, drawn: Drawn, picture: Path | None = None) -> str:
    for kind, then, now in (
        ("text", draft.text_tokens, drawn.text_tokens),
        ("image", draft.image_tokens, drawn.image_tokens),
    ):
        if then != now:
            both = zip(then, now, strict=False)
            first = next((at for at, (old, new) in enumerate(both) if old != new), min(len(then), len(now)))
            return f"{kind} token {first} differs"
    if picture is not None:
        then_pixels, now_pixels = (np.asarray(image, dtype=float) for image in (see(picture).image, drawn.image))
        apart = float(np.abs(then_pixels - now_pixels).mean()) if then_pixels.shape == now_pixels.shape else 255.0
        if apart > SAME_PICTURE:
            return f"the picture differs by {apart:.0f} of 255 on average"
    return ""


def _circumstances(record: Record, model: Backbone) -> tuple[str, ...]:
    """What is not as it was when the record was made, in words."""
    found = []
    for what in ("name", "dtype", "device"):
        then, now = record.model.get(what), getattr(model.info, what)
        if then != now:
            found.append(f"{'model' if what == 'name' else what}: {then!s:.80} then, {now} now")
    current = versions()
    for package in sorted({*record.versions, *current}):
        then, now = record.versions.get(package, "not recorded"), current.get(package, "not installed")
        if then != now:
            found.append(f"{package}: {then:.40} then, {now} now")
    import torch

    then, now = record.raw.get("threads"), torch.get_num_threads()
    if then != now:
        found.append(f"threads: {then!s:.20} then, {now} now")
    return tuple(found)


def _check_fit(record: Record, model: Backbone) -> None:
    """Refuse token ids and lengths that this model does not have: the file may come from anywhere."""
    import torch

    info = model.info
    with torch.no_grad():
        text_size = model.text_logits(torch.zeros(1, info.hidden_size)).shape[-1]
        image_size = TOKENS
        if info.choices == "tokens":
            image_size = model.image_logits(torch.zeros(1, 2, info.hidden_size), 1.0).shape[-1]
    for draft in record.drafts:
        image_length = len(draft.image_tokens)
        if image_length != info.image_tokens:
            raise UserError(
                f"The record has {image_length} tokens an image, the model '{info.name}' {info.image_tokens}; "
                "name the model that drew it with --model."
            )
        for kind, choice, tokens, size in (
            ("text", draft.ask.text, draft.text_tokens, text_size),
            ("image", draft.ask.image, draft.image_tokens, image_size),
        ):
            forced = choice.tokens if isinstance(choice, Forced) else ()
            if max((*forced, *tokens), default=0) >= size:
                raise UserError(
                    f"Draft {draft.number} of the record has {kind} tokens that the model '{info.name}' does not know; "
                    "name the model that drew it with --model."
                )
        if not _is_drawable(draft.ask.image, info):
            raise UserError(f"The record asks draft {draft.number} for an image that no search can ask for.")


def _is_drawable(choice: Choice, info: BackboneInfo) -> bool:
    length = info.image_tokens
    if isinstance(choice, (Noise, Repaint)) and (info.choices != "noise" or len(choice.tokens) not in (0, length)):
        return False
    if isinstance(choice, Repaint):  # nothing in what is kept may be left to a stream
        is_whole = len(choice.of.tokens) == length and not (isinstance(choice.of, Forced) and choice.of.free)
        return is_whole and all(cell < length for cell in choice.free) and _is_drawable(choice.of, info)
    if not isinstance(choice, Forced):
        return True
    if choice.free is None:
        return len(choice.tokens) <= length
    return len(choice.tokens) == length and all(token < length for token in choice.free)
