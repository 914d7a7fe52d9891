"""The record of one search as JSON: everything needed to look at it, to trust it, and to draw it again.

`to_record` writes it, `read_record` reads it back and believes nothing: the file may be old, cut or forged. Images
are files beside the record; latents are not kept (they come back with the same asks). No path of the machine and no
environment value is ever written.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from milr.backbones.base import Backbone
from milr.drafts import (
    Ask,
    Check,
    Choice,
    Cost,
    Draft,
    Drawn,
    Forced,
    Greedy,
    Noise,
    Repaint,
    Sample,
    Score,
    Trajectory,
    UserError,
)
from milr.version import __version__

if TYPE_CHECKING:
    from PIL.Image import Image

LINEAGE = 400  # pictures that are repainted one from the other
TOKENS = 2**53  # above any token's number: the keys of a flow model's noise, which every JSON reader keeps exactly
FORMAT = "milr-trajectory/1"
MAX_RECORD_BYTES = 256 * 2**20
RECORDED_PACKAGES = ("torch", "transformers", "numpy", "pillow")

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class RecordedDraft:
    """What replay needs of one draft."""

    number: int
    ask: Ask
    stream: int
    reasoning: str
    text_tokens: tuple[int, ...]
    image_tokens: tuple[int, ...]


@dataclass(frozen=True)
class Record:
    """A trajectory read back from its file. `raw` is the whole JSON object."""

    prompt: str
    model: Mapping[str, Any]
    versions: Mapping[str, str]
    drafts: tuple[RecordedDraft, ...]
    raw: Mapping[str, Any]


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    found = {"milr": __version__, "python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found


def fingerprint(backbone: Backbone) -> str:
    """A short hash that tells two sets of weights apart, whatever device and dtype they are on; '' if unknown.

    A backbone may bring its own (`fingerprint() -> str`); of one that holds a torch `model`, a sample of every weight
    tensor is hashed.
    """
    own = getattr(backbone, "fingerprint", None)
    if callable(own):
        return str(own())
    import torch

    model = getattr(backbone, "model", None)
    if not isinstance(model, torch.nn.Module):
        return ""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().flatten()
        sample = values[:: max(1, values.numel() // 64)].to("cpu", torch.bfloat16).contiguous().view(torch.uint8)
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def to_record(trajectory: Trajectory, backbone: Backbone, preset: str | None = None) -> dict[str, Any]:
    """The JSON object of a trajectory (strict JSON: no NaN, no infinity)."""
    import torch

    cost = trajectory.cost
    return {
        "format": FORMAT,
        "prompt": trajectory.task.prompt,
        "task": {
            "id": trajectory.task.id,
            "category": trajectory.task.category,
            "metadata": _plain(trajectory.task.metadata),
        },
        "model": {**asdict(backbone.info), "fingerprint": fingerprint(backbone)},
        "search": trajectory.search,
        "preset": preset,
        "settings": _plain(trajectory.settings),
        "critic": trajectory.critic,
        "seed": trajectory.seed,
        "seed_index": trajectory.seed_index,
        "best": trajectory.best,
        "stopped": trajectory.stopped,
        "notes": list(trajectory.notes),
        "held_out": {name: _score(score) for name, score in trajectory.held_out.items()},
        "cost": {**asdict(cost), "decoded_tokens": cost.decoded_tokens},
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "drafts": [_draft(draft, backbone) for draft in trajectory.drafts],
    }


def dump(record: Mapping[str, Any]) -> bytes:
    """The record as UTF-8 text, one draft a line."""
    drafts = ",\n    ".join(json.dumps(draft, allow_nan=False) for draft in record["drafts"])
    head = json.dumps({**record, "drafts": []}, indent=2, allow_nan=False)
    before, found, after = head.rpartition('"drafts": []')
    assert (bool(found), after) == (True, "\n}"), "the drafts come last"
    return f'{before}"drafts": [\n    {drafts}\n  ]{after}\n'.encode()


def read_record(path: Path) -> Record:
    """Read and check a trajectory.json, or the one in this folder. UserError names what is wrong with it."""
    file = path / "trajectory.json" if path.is_dir() else path
    try:
        if file.stat().st_size > MAX_RECORD_BYTES:
            raise UserError(f"{file} is larger than {MAX_RECORD_BYTES // 2**20} MB; this is no trajectory of milr.")
        raw = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"Cannot read {file} ({error.strerror}); give the folder that 'milr generate' wrote."
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid JSON; draw again with 'milr generate'.") from error
    try:
        return _check(raw)
    except _Unreadable as error:
        raise UserError(f"{file} is not a trajectory that this milr can read: {error}.") from error


# --- Writing --------------------------------------------------------------------------------------------------


def _draft(draft: Draft, backbone: Backbone) -> dict[str, Any]:
    drawn, searched = draft.drawn, searched_tokens(draft)
    return {
        **draft_to_json(draft),
        "image": f"drafts/{draft.number:02d}.png",
        "searched_text": backbone.decode_text(drawn.text_tokens[: searched[0]]).strip() if searched[0] else "",
        "searched_image": list(searched[1]),
    }


def draft_to_json(draft: Draft) -> dict[str, Any]:
    """Everything of a draft but its image and its latents. `draft_from_json` reads it back."""
    drawn = draft.drawn
    return {
        "number": draft.number,
        "reward": draft.reward,
        "reasoning": drawn.reasoning,
        "score": _score(draft.score),
        "ask": {
            "text": _choice(draft.ask.text),
            "image": _choice(draft.ask.image),
            "text_ratio": draft.ask.text_ratio,
            "image_ratio": draft.ask.image_ratio,
            "guidance": draft.ask.guidance,
            "note": _plain(draft.ask.note),
        },
        "stream": str(draft.stream),  # 64 bits: a JSON number would lose some in other languages
        "guidance": drawn.guidance,
        "text_tokens": list(drawn.text_tokens),
        "text_ended": drawn.text_ended,
        "image_tokens": list(drawn.image_tokens),
        "cost": {**asdict(drawn.cost), "decoded_tokens": drawn.cost.decoded_tokens},
    }


def searched_tokens(draft: Draft) -> tuple[int, tuple[int, ...]]:
    """How many first text tokens, and which image tokens, the search chose (or will, from this draft's latents)."""
    ask, drawn = draft.ask, draft.drawn
    text = ask.note.get("text_searched")
    if not isinstance(text, int):
        text = math.ceil(ask.text_ratio * len(drawn.text_tokens))
    image = ask.note.get("image_searched")
    if isinstance(ask.image, (Forced, Repaint)) and ask.image.free is not None:
        return text, tuple(sorted({*ask.image.free, *ask.note.get("image_changed", ())}))
    if not isinstance(image, int):
        image = math.ceil(ask.image_ratio * len(drawn.image_tokens))
    return min(text, len(drawn.text_tokens)), tuple(range(min(image, len(drawn.image_tokens))))


def _choice(choice: Choice) -> dict[str, Any]:
    if isinstance(choice, Greedy):
        return {"how": "greedy"}
    if isinstance(choice, Sample):
        return {"how": "sample", "temperature": choice.temperature}
    if isinstance(choice, Noise):
        return {
            "how": "noise",
            "values": list(choice.values),
            "then": _choice(choice.then),
            "tokens": list(choice.tokens),
        }
    if isinstance(choice, Repaint):
        return {
            "how": "repaint",
            "of": _choice(choice.of),
            "free": sorted(choice.free),
            "then": _choice(choice.then),
            "strength": choice.strength,
            "tokens": list(choice.tokens),
        }
    free = None if choice.free is None else sorted(choice.free)
    return {"how": "forced", "tokens": list(choice.tokens), "then": _choice(choice.then), "free": free}


def _score(score: Score) -> dict[str, Any]:
    return {
        "value": score.value,
        "reason": score.reason,
        "outage": score.outage,
        "checks": [
            {
                "text": check.text,
                "passed": check.passed,
                "boxes": [list(map(float, box)) for box in check.boxes],
            }
            for check in score.checks
        ],
    }


def _plain(value: Any) -> Any:
    """JSON values only: numbers that JSON cannot say, and foreign objects, become text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    item = getattr(value, "item", None)  # numpy and torch scalars
    return _plain(item()) if callable(item) and getattr(value, "size", 2) == 1 else str(value)


# --- Reading --------------------------------------------------------------------------------------------------


def draft_from_json(raw: Any, image: Image) -> Draft:
    """The draft that `draft_to_json` wrote, without latents. Raises UserError where it cannot be read."""
    try:
        kept = _check_draft(raw, _get(raw, "number", int))
        cost = {key: value for key, value in _get(raw, "cost", dict).items() if key != "decoded_tokens"}
        score = _get(raw, "score", dict)
        return Draft(
            number=kept.number,
            ask=replace(kept.ask, note=_get(raw["ask"], "note", dict)),
            stream=kept.stream,
            drawn=Drawn(
                reasoning=kept.reasoning,
                text_tokens=kept.text_tokens,
                text_ended=_get(raw, "text_ended", bool),
                image_tokens=kept.image_tokens,
                image=image,
                latents=None,
                guidance=_number(raw, "guidance"),
                cost=Cost(**cost),
            ),
            score=Score(
                None if score.get("value") is None else _number(score, "value"),
                tuple(_check_of(found) for found in _get(score, "checks", list)),
                _get(score, "reason", str),
                # Older records do not say whether an abstention was one: then the critic is asked again.
                bool(score.get("outage", score.get("value") is None)),
            ),
        )
    except (_Unreadable, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"A recorded draft cannot be read: {error}.") from error


def _check_of(raw: Any) -> Check:
    boxes = tuple((float(left), float(top), float(right), float(bottom)) for left, top, right, bottom in raw["boxes"])
    return Check(_get(raw, "text", str), _get(raw, "passed", bool), boxes)


class _Unreadable(Exception):
    """What is wrong with a record, in words."""


def _check(raw: Any) -> Record:
    if not isinstance(raw, dict) or "format" not in raw:
        raise _Unreadable("it has no 'format'")
    if raw["format"] != FORMAT:
        raise _Unreadable(f"its format is {raw['format']!r:.60}, not '{FORMAT}'")
    drafts = _get(raw, "drafts", list)
    model = _get(raw, "model", dict)
    _get(model, "name", str)
    known = _get(raw, "versions", dict)
    if not all(isinstance(key, str) and isinstance(value, str) for key, value in known.items()):
        raise _Unreadable("'versions' is not a table of names and versions")
    if not drafts:
        raise _Unreadable("it has no drafts")
    best = _get(raw, "best", int)
    if not 0 <= best < len(drafts):
        raise _Unreadable(f"the best draft is number {best} of {len(drafts)}")
    return Record(
        prompt=_get(raw, "prompt", str),
        model=model,
        versions=known,
        drafts=tuple(_check_draft(draft, number) for number, draft in enumerate(drafts)),
        raw=raw,
    )


def _check_draft(raw: Any, number: int) -> RecordedDraft:
    if not isinstance(raw, dict):
        raise _Unreadable(f"draft {number} is not an object")
    if _get(raw, "number", int) != number:
        raise _Unreadable(f"draft {number} is missing or out of order")
    ask = _get(raw, "ask", dict)
    guidance = ask.get("guidance")
    stream = _get(raw, "stream", str)
    if not (stream.isdecimal() and len(stream) <= 20):
        raise _Unreadable(f"the random stream of draft {number} is not a number")
    return RecordedDraft(
        number=number,
        ask=Ask(
            text=_check_text(_get(ask, "text", dict)),
            image=_check_choice(_get(ask, "image", dict)),
            text_ratio=_number(ask, "text_ratio"),
            image_ratio=_number(ask, "image_ratio"),
            guidance=None if guidance is None else _number(ask, "guidance"),
        ),
        stream=int(stream),
        reasoning=_get(raw, "reasoning", str),
        text_tokens=_tokens(raw, "text_tokens"),
        image_tokens=_tokens(raw, "image_tokens"),
    )


def _check_choice(raw: Mapping[str, Any], depth: int = 0) -> Choice:
    how = raw.get("how")
    if how == "greedy":
        return Greedy()
    if how == "sample":
        temperature = _number(raw, "temperature")
        if temperature <= 0:
            raise _Unreadable("a temperature is not above 0")
        return Sample(temperature)
    if how == "forced":
        then = _check_choice(_get(raw, "then", dict))
        if not isinstance(then, (Greedy, Sample)):
            raise _Unreadable("forced tokens are followed by forced tokens")
        free = None if raw.get("free") is None else frozenset(_tokens(raw, "free"))
        return Forced(_tokens(raw, "tokens"), then, free)
    if how in ("noise", "repaint"):
        return _check_picture(raw, how, depth)
    raise _Unreadable(f"a way of choosing tokens is called {how!r:.60}")


def _check_text(raw: Mapping[str, Any]) -> Choice:
    choice = _check_choice(raw)
    if isinstance(choice, (Noise, Repaint)):
        raise _Unreadable("a text is said to be made of noise")
    return choice


def _check_picture(raw: Mapping[str, Any], how: str, depth: int) -> Choice:
    """A flow model's choice."""
    then = _check_choice(_get(raw, "then", dict))
    if not isinstance(then, Sample):
        raise _Unreadable("noise is followed by something else")
    if how == "noise":
        values = _get(raw, "values", list)
        if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
            raise _Unreadable("'values' is not a list of numbers")
        return Noise(tuple(map(float, values)), then, _tokens(raw, "tokens"))
    if depth >= LINEAGE:
        raise _Unreadable(f"more than {LINEAGE} pictures are repainted one from the other")
    of, strength = _check_choice(_get(raw, "of", dict), depth + 1), _number(raw, "strength")
    if not isinstance(of, (Forced, Noise, Repaint)) or not 0 < strength <= 1:
        raise _Unreadable("what is repainted is no picture")
    return Repaint(of, frozenset(_tokens(raw, "free")), then, strength, _tokens(raw, "tokens"))


def _get(raw: Mapping[str, Any], key: str, kind: type[Kind]) -> Kind:
    value = raw.get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _Unreadable(f"'{key}' is missing or not of type {kind.__name__}")
    return value


def _number(raw: Mapping[str, Any], key: str) -> float:
    value = raw.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise _Unreadable(f"'{key}' is not a number")
    return float(value)


def _tokens(raw: Mapping[str, Any], key: str) -> tuple[int, ...]:
    values: Sequence[Any] = _get(raw, key, list)
    if not all(isinstance(value, int) and not isinstance(value, bool) and 0 <= value < TOKENS for value in values):
        raise _Unreadable(f"'{key}' is not a list of token ids")
    return tuple(values)
