"""What a critic and its client say to each other over HTTP: `/v1`, JSON both ways, written and read here alone.

    GET  /v1/health   {"status": "ok"}
    GET  /v1/info     {"name", "summary", "version", "limits": {"items", "bytes", "pixels"}}
    POST /v1/score    {"items": [{"prompt", "image", "category"?, "metadata"?}]}
                   -> {"critic", "scores": [{"value", "reason", "checks": [{"text", "passed", "boxes"}], "outage"?,
                       "notes"?}]}
    any error         {"error": {"code", "message"}}

Both sides distrust what they read: sizes are checked before anything is decoded, nothing that is sent is an address
to fetch, and a reply that breaks the contract is no score. Knows no transport; `schema` is the contract as OpenAPI.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from milr import pictures
from milr.critics.base import ROUNDING
from milr.drafts import Box, Check, Score, Task

if TYPE_CHECKING:
    from PIL.Image import Image

HEALTH, INFO, SCORE, SCHEMA = "/v1/health", "/v1/info", "/v1/score", "/openapi.json"
PROMPT_CHARACTERS = 4000
CATEGORY_CHARACTERS = 200
METADATA_CHARACTERS = 32_000  # of all its texts together
METADATA_VALUES = 500
METADATA_DEPTH = 6
CHECKS = 64  # questions of one item; each is one more call of the model
REASON_CHARACTERS = 2000
STOPPED = "critic_stopped"  # the code of an error that only the user can put right: asking again does not help


@dataclass(frozen=True)
class Limits:
    """What one request may hold: `bytes` of body, `pixels` of all its pictures together."""

    items: int = 32
    bytes: int = 32 * 2**20
    pixels: int = 32 * 2**20  # 32 pictures of 1024 x 1024: about 100 MB once they are decoded


@dataclass(frozen=True)
class Info:
    """What a service says of itself. `version` is that of its program; the contract's stands in the path."""

    name: str
    summary: str
    version: str
    limits: Limits


class Refused(Exception):
    """A request that is answered with an error: HTTP status, a code for programs, a sentence for people."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, dict(headers or {})


# --- Requests -------------------------------------------------------------------------------------------------


def write_item(image: Image, task: Task) -> bytes:
    """One item of a request. PNG, so that the critic sees the very pixels."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "PNG", compress_level=1)
    item: dict[str, Any] = {"prompt": task.prompt, "image": base64.b64encode(file.getvalue()).decode()}
    if task.category:
        item["category"] = task.category
    if task.metadata:
        item["metadata"] = dict(task.metadata)
    return _to_bytes(item)


def write_request(items: Sequence[bytes]) -> bytes:
    """The body of a request, from items that `write_item` made."""
    return b'{"items": [%s]}' % b", ".join(items)


def read_request(body: bytes | bytearray, limits: Limits) -> tuple[list[pictures.Seen], list[Task]]:
    """The pictures and tasks of a body. Raises Refused; decodes no picture before all sizes are known to be allowed."""
    try:
        said = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "bad_json", f"The body is not JSON ({error}).") from error
    items = said.get("items") if isinstance(said, dict) else None
    if not isinstance(items, list) or not items:
        raise Refused(422, "bad_request", 'The body must be {"items": [...]} with at least one item.')
    if len(items) > limits.items:
        raise Refused(413, "too_large", f"The body has {len(items)} items; the most is {limits.items}.")
    tasks = [_task(item, number) for number, item in enumerate(items)]
    files = [_open(item["image"], number) for number, item in enumerate(items)]
    pixels = sum(file.width * file.height for file in files)
    if pixels > limits.pixels:
        raise Refused(413, "too_large", f"The pictures have {pixels:,} pixels together; the most is {limits.pixels:,}.")
    return [_decode(file, number) for number, file in enumerate(files)], tasks


def _task(item: object, number: int) -> Task:
    """The task of an item, whose image is known to be text afterwards."""

    def wrong(what: str) -> Refused:
        return Refused(422, "bad_request", f"items[{number}]{what}.")

    if not isinstance(item, dict):
        raise wrong(" must be an object")
    prompt, category, metadata = item.get("prompt"), item.get("category", ""), item.get("metadata", {})
    if not isinstance(prompt, str) or not prompt.strip():
        raise wrong(".prompt must be text")
    if len(prompt) > PROMPT_CHARACTERS:
        raise wrong(f".prompt has {len(prompt):,} characters; the most is {PROMPT_CHARACTERS:,}")
    if not isinstance(category, str):
        raise wrong(".category must be text")
    if len(category) > CATEGORY_CHARACTERS:
        raise wrong(f".category has {len(category):,} characters; the most is {CATEGORY_CHARACTERS}")
    if not isinstance(metadata, dict):
        raise wrong(".metadata must be an object")
    if (why := _too_much(metadata)) is not None:
        raise wrong(f".metadata{why}")
    if not isinstance(item.get("image"), str):
        raise wrong(".image must be text: a PNG, JPEG or WebP file in base64")
    return Task(_text(prompt), str(number), _text(category), metadata)


def _too_much(metadata: dict[str, Any]) -> str | None:
    """What in the metadata is more than a critic should be given. Every text in it is work, and may be a question."""
    checks = metadata.get("checks", [])
    if not isinstance(checks, list) or not all(isinstance(check, str) for check in checks):
        return ".checks must be a list of texts"
    if len(checks) > CHECKS:
        return f".checks has {len(checks):,} questions; the most is {CHECKS}"
    values = characters = 0
    open_ones: list[tuple[Any, int]] = [(metadata, 1)]
    while open_ones:
        value, depth = open_ones.pop()
        values += 1
        if isinstance(value, (dict, list)):
            if depth > METADATA_DEPTH:
                return f" is nested more than {METADATA_DEPTH} deep"
            inside = [*value, *value.values()] if isinstance(value, dict) else value
            if values + len(open_ones) + len(inside) > METADATA_VALUES:
                return f" has more than {METADATA_VALUES} keys and values"
            open_ones += [(one, depth + 1) for one in inside]
        elif isinstance(value, str):
            characters += len(value)
            if len(value) > PROMPT_CHARACTERS:
                return f" has a text of {len(value):,} characters; the most is {PROMPT_CHARACTERS:,}"
            if characters > METADATA_CHARACTERS:
                return f" has more than {METADATA_CHARACTERS:,} characters"
    return None


def _open(text: str, number: int) -> Image:
    """An image file of which nothing but the header has been read."""
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise Refused(422, "bad_image", f"items[{number}].image is not base64 ({error}).") from error
    try:
        return pictures.open_header(content)
    except pictures.NoPicture as error:
        raise Refused(422, "bad_image", f"items[{number}].image is no PNG, JPEG or WebP file ({error}).") from error


def _decode(file: Image, number: int) -> pictures.Seen:
    try:
        return pictures.decode(file)
    except pictures.NoPicture as error:
        raise Refused(422, "bad_image", f"items[{number}].image is a broken or truncated file ({error}).") from error


# --- Replies --------------------------------------------------------------------------------------------------


def write_scores(critic: str, scores: Sequence[Score], seen: Sequence[pictures.Seen]) -> bytes:
    """The reply to a request. What was done to a picture before it was scored stands beside its score."""
    said = [
        {
            "value": score.value,
            "reason": score.reason,
            "checks": [
                {"text": check.text, "passed": check.passed, "boxes": [list(box) for box in check.boxes]}
                for check in score.checks
            ],
            **({"outage": True} if score.outage else {}),
            **({"notes": list(one.notes)} if one.notes else {}),
        }
        for score, one in zip(scores, seen, strict=True)
    ]
    return _to_bytes({"critic": critic, "scores": said})


def read_scores(body: bytes, count: int) -> list[Score]:
    """The scores of a reply; one that breaks the contract is an abstention that says how.

    Raises ValueError where there are not `count` of them.
    """
    said = _read_object(body)
    scores = said.get("scores")
    if not isinstance(scores, list):
        raise ValueError("the reply has no list 'scores'")
    if len(scores) != count:
        raise ValueError(f"the reply has {len(scores)} scores for {count} pictures")
    return [_score(score) for score in scores]


def _score(said: object) -> Score:
    if not isinstance(said, dict):
        return Score(None, reason="the reply's score is no object")
    value, reason, checks = said.get("value"), said.get("reason", ""), said.get("checks", [])
    if not isinstance(reason, str):
        return Score(None, reason="the reply's reason is no text")
    reason = _text(reason)[:REASON_CHARACTERS]
    try:
        read = tuple(_check(check) for check in checks)
    except (TypeError, ValueError, KeyError, OverflowError):
        return Score(None, reason="the reply's checks are not as the contract says")
    if value is None:
        return Score(None, read, reason or "the service abstained without a reason", said.get("outage") is True)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not -ROUNDING <= value <= 1 + ROUNDING:  # False for NaN
        return Score(None, read, f"the service gave the reward {str(value)[:50]}, not a number in [0, 1]")
    return Score(min(1.0, max(0.0, float(value))), read, reason)


def _check(said: Any) -> Check:
    text, passed, boxes = said["text"], said["passed"], said.get("boxes", [])
    if not isinstance(text, str) or not isinstance(passed, bool):
        raise ValueError
    return Check(_text(text)[:REASON_CHARACTERS], passed, tuple(_box(box) for box in boxes))


def _box(said: Any) -> Box:
    left, top, right, bottom = (float(number) for number in said)
    if not all(math.isfinite(number) for number in (left, top, right, bottom)):
        raise ValueError
    return (left, top, right, bottom)


def write_error(code: str, message: str) -> bytes:
    return _to_bytes({"error": {"code": code, "message": message}})


def read_error(body: bytes) -> tuple[str, str]:
    """Code and message of an error; both empty where the body is none of ours (a proxy's page)."""
    try:
        error = _read_object(body).get("error")
    except ValueError:
        return "", ""
    if not isinstance(error, dict):
        return "", ""
    return str(error.get("code", "")), _text(str(error.get("message", "")))


def write_info(info: Info) -> bytes:
    return _to_bytes(asdict(info))


def read_info(body: bytes) -> Info:
    """What a service says of itself. Raises ValueError where that is not what the contract says."""
    said = _read_object(body)
    limits = said.get("limits")
    if not isinstance(limits, dict) or not isinstance(said.get("name"), str):
        raise ValueError("it has no name and limits")
    numbers = [limits.get(name) for name in ("items", "bytes", "pixels")]
    if not all(isinstance(number, int) and number >= 1 for number in numbers):
        raise ValueError("its limits are no positive whole numbers")
    summary, version = str(said.get("summary", "")), str(said.get("version", ""))
    return Info(_text(said["name"]), _text(summary), _text(version), Limits(*(int(number) for number in numbers)))  # type: ignore[arg-type]


def _to_bytes(said: Any) -> bytes:
    """JSON in ASCII: whatever a text holds, it can be sent. Raises ValueError for NaN and infinity."""
    return json.dumps(said, allow_nan=False).encode()


def _read_object(body: bytes) -> dict[str, Any]:
    try:
        said = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError("the reply is not JSON") from error
    if not isinstance(said, dict):
        raise ValueError("the reply is no JSON object")
    return said


def _text(text: str) -> str:
    """A text that can be written as UTF-8 (JSON may hold half a character)."""
    return text.encode("utf-8", "replace").decode()


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


# --- The contract as OpenAPI ----------------------------------------------------------------------------------


def schema(info: Info, wants_token: bool) -> dict[str, Any]:
    """OpenAPI 3.1: enough to write a client or a service in any language."""

    def of(kind: str, **more: Any) -> dict[str, Any]:
        return {"type": kind, **more}

    def named(name: str) -> dict[str, str]:
        return {"$ref": f"#/components/schemas/{name}"}

    def holds(name: str) -> dict[str, Any]:
        return {"application/json": {"schema": named(name)}}

    def record(required: Sequence[str], **properties: Any) -> dict[str, Any]:
        return of("object", required=list(required), properties=properties)

    def reply(name: str, *errors: int) -> dict[str, Any]:
        replies: dict[str, Any] = {"200": {"description": "Done.", "content": holds(name)}}
        for status in errors:
            replies[str(status)] = {"description": ERRORS[status], "content": holds("Error")}
        return replies

    unit = {"minimum": 0, "maximum": 1}
    safety: list[Any] = [{"token": []}] if wants_token else []
    guarded = (401,) if wants_token else (403,)
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": f"milr critic '{info.name}'", "summary": info.summary, "version": info.version},
        "paths": {
            HEALTH: {"get": {"operationId": "health", "security": [], "responses": reply("Health")}},
            INFO: {"get": {"operationId": "info", "security": safety, "responses": reply("Info", *guarded)}},
            SCORE: {
                "post": {
                    "operationId": "score",
                    "summary": "How well does each picture show its prompt? One score an item, in order.",
                    "security": safety,
                    "requestBody": {"required": True, "content": holds("Request")},
                    "responses": reply("Scores", 400, *guarded, 408, 413, 415, 422, 429, 500, 503),
                }
            },
        },
        "components": {
            "schemas": {
                "Health": record(["status"], status=of("string", const="ok")),
                "Info": record(
                    ["name", "summary", "version", "limits"],
                    name=of("string"),
                    summary=of("string"),
                    version=of("string", description="Of the program; the contract's stands in the path."),
                    limits=record(
                        ["items", "bytes", "pixels"],
                        items=of("integer", minimum=1, description="Items of one request."),
                        bytes=of("integer", minimum=1, description="Bytes of one request's body."),
                        pixels=of("integer", minimum=1, description="Pixels of all pictures of one request."),
                    ),
                ),
                "Request": record(
                    ["items"], items=of("array", items=named("Item"), minItems=1, maxItems=info.limits.items)
                ),
                "Item": record(
                    ["prompt", "image"],
                    prompt=of("string", minLength=1, maxLength=PROMPT_CHARACTERS),
                    image=of("string", contentEncoding="base64", description="A PNG, JPEG or WebP file; no address."),
                    category=of("string", default="", maxLength=CATEGORY_CHARACTERS),
                    metadata=of(
                        "object",
                        default={},
                        description=f"What a benchmark's own critic needs: at most {METADATA_VALUES} keys and values, "
                        f"{METADATA_DEPTH} deep, texts of {PROMPT_CHARACTERS:,} and together {METADATA_CHARACTERS:,} "
                        "characters.",
                        properties={"checks": of("array", items=of("string"), maxItems=CHECKS)},
                    ),
                ),
                "Scores": record(
                    ["critic", "scores"], critic=of("string"), scores=of("array", items=named("Score"))
                ),
                "Score": record(
                    ["value", "reason", "checks"],
                    value={"type": ["number", "null"], **unit, "description": "1 is satisfied; null: it abstains."},
                    reason=of("string", description="Why it abstains, or what it said."),
                    checks=of("array", items=named("Check")),
                    outage=of("boolean", default=False, description="It abstains only for now: it could not be asked."),
                    notes=of(
                        "array", items=of("string"), description="What was done to the picture before it was scored."
                    ),
                ),
                "Check": record(
                    ["text", "passed", "boxes"],
                    text=of("string"),
                    passed=of("boolean"),
                    boxes=of(
                        "array",
                        description="What is wrong: left, top, right, bottom in pixels.",
                        items=of("array", items=of("number"), minItems=4, maxItems=4),
                    ),
                ),
                "Error": record(
                    ["error"], error=record(["code", "message"], code=of("string"), message=of("string"))
                ),
            },
        },
    }  # fmt: skip
    if wants_token:
        found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return found


ERRORS: Mapping[int, str] = {
    400: "bad_json: the body is not JSON.",
    401: "unauthorized: no token, or a wrong one.",
    403: "forbidden_host: without a token, only requests to a loopback address are answered.",
    408: "slow: the body did not arrive in time.",
    413: "too_large: more than a limit allows.",
    415: "unsupported_media_type: the body is not declared as application/json.",
    422: "bad_request or bad_image: the message names the item.",
    429: "busy: all places are taken; come again after Retry-After seconds.",
    500: "internal: a fault of the service.",
    503: f"{STOPPED}: the critic cannot go on before its user has acted; the message says how.",
}
