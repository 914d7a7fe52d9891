"""Draw a recorded trajectory again and say whether the same tokens come out.

The recorded asks are fed to the model one by one, so this checks the model and its engine, not the search or the
critic. PyTorch promises no identity across versions, devices or dtypes: where tokens differ, what else differs is
named.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from milr.drafts import Choice, Drawn, Forced, Order, UserError
from milr.runs.generate import check_prompt
from milr.runs.record import Record, RecordedDraft, fingerprint, read_record, versions

if TYPE_CHECKING:
    from milr.backbones.base import Backbone

DRAFTS_AT_ONCE = 8


@dataclass(frozen=True)
class Replay:
    """The outcome: `changed` drafts drew other tokens; `circumstances` is what is not as it was.

    `refused` says why nothing was drawn at all (other weights under the same name).
    """

    drafts: int
    changed: tuple[str, ...]
    circumstances: tuple[str, ...]
    refused: str = ""

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
    changed: list[str] = []
    for start in range(0, len(record.drafts), DRAFTS_AT_ONCE):
        chunk = record.drafts[start : start + DRAFTS_AT_ONCE]
        for draft, drawn in zip(chunk, _draw(model, record.prompt, chunk), strict=True):
            difference = _difference(draft, drawn)
            if difference:  # two nearly equal logits may swap in another batch: drawn alone, it counts
                difference = _difference(draft, _draw(model, record.prompt, [draft])[0])
            if difference:
                changed.append(f"draft {draft.number}: {difference}")
        if on_draft is not None:
            on_draft(start + len(chunk), len(record.drafts))
    return Replay(len(record.drafts), tuple(changed), circumstances)


def _draw(model: Backbone, prompt: str, drafts: Sequence[RecordedDraft]) -> list[Drawn]:
    return model.draw([Order(prompt, draft.ask, draft.stream) for draft in drafts])


def _difference(draft: RecordedDraft, drawn: Drawn) -> str:
    for kind, then, now in (
        ("text", draft.text_tokens, drawn.text_tokens),
        ("image", draft.image_tokens, drawn.image_tokens),
    ):
        if then != now:
            both = zip(then, now, strict=False)
            first = next((at for at, (old, new) in enumerate(both) if old != new), min(len(then), len(now)))
            return f"{kind} token {first} differs"
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
        if not _is_drawable(draft.ask.image, info.image_tokens):
            raise UserError(f"The record asks draft {draft.number} for an image that no search can ask for.")


def _is_drawable(choice: Choice, length: int) -> bool:
    if not isinstance(choice, Forced):
        return True
    if choice.free is None:
        return len(choice.tokens) <= length
    return len(choice.tokens) == length and all(token < length for token in choice.free)
