"""Are the asked words written in the picture? Read by RapidOCR with the models in its package (PaddleOCR's).

Asked words stand in quotes in the prompt (a sign that says "OPEN"), or in the task's metadata under `text`. Each
phrase gets (recall + similarity) / 2, the score is their mean:

    recall      share of its words that were read letter by letter
    similarity  1 - edit distance, of the best pairing of its words with words that were read, weighted by length

So a misspelt word is worth more than a missing one, and 1 means that every word stands there. The order of words and
other text in the picture do not count. A picture is read once, whatever it is asked for.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milr.critics.base import Critic, mean
from milr.drafts import Box, Check, Score, Task, UserError
from milr.registry import shorten
from milr.settings import check, setting

if TYPE_CHECKING:
    from PIL.Image import Image

    from milr.backbones.base import Backbone

NAME = "ocr"
SUMMARY = "Whether the words in quotes are written in the picture, read by RapidOCR (pip install 'milr[critics]')"
NEEDS_BACKBONE = False

NO_WORDS = 'the prompt asks for no words in quotes, as in: a sign that says "OPEN"'
# An apostrophe (dog's) or an inch (5") opens nothing, and an apostrophe inside a word (don't) closes nothing.
QUOTES = (
    r'(?<![A-Za-z0-9])"([^"]+)"',
    r"(?<![A-Za-z0-9])'(?=\S)(.+?)'(?!\w)",
    r"‘([^‘]+?)’(?!\w)",
    *(f"{opening}([^{opening}{closing}]+){closing}" for opening, closing in ("“”", "„“", "«»", "「」")),
)
LONGEST_SHAPE = 3  # a picture is padded to at most 3 : 1; the reader blows narrow ones up to gigabytes
GLYPH = r"[\u3040-\u30ff\u3400-\u9fff]"  # kana and Han are written without spaces: each is a word


@dataclass(frozen=True)
class Ocr:
    """Settings of `ocr`."""

    case: bool = setting(False, "whether capitals must be as asked")
    threads: int = setting(1, "processor threads of the reader", low=1, high=256)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Read:
    """A word that stands in a picture, with the box of its line."""

    word: str
    box: Box


# --- What is asked for ----------------------------------------------------------------------------------------


def wanted_phrases(prompt: str, metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """The phrases to be written: the metadata's `text` (one or a list), else what stands in quotes."""
    given = metadata.get("text")
    if isinstance(given, str):
        given = [given]
    if isinstance(given, (list, tuple)) and given:
        phrases = [phrase for phrase in given if isinstance(phrase, str)]
    else:
        phrases = _quoted(prompt)
    return tuple(" ".join(phrase.split()) for phrase in phrases if words_of(phrase, False))


def _quoted(prompt: str) -> list[str]:
    return [next(filter(None, match.groups())) for match in re.finditer("|".join(QUOTES), prompt)]


def words_of(text: str, case: bool) -> list[str]:
    """The words of a text as they are compared: without punctuation, in one form of each letter."""
    text = unicodedata.normalize("NFKC", text)
    text = text if case else text.casefold()
    kept = "".join(letter for letter in text if unicodedata.category(letter)[0] != "P" or letter in "%&@#")
    return re.findall(rf"{GLYPH}|(?:(?!{GLYPH})\S)+", kept)


# --- How well it is there -------------------------------------------------------------------------------------


def grade(phrase: str, read: Sequence[Read], case: bool) -> tuple[float, Check]:
    """The score of one phrase, and the check for it; its boxes are those of misread words."""
    wanted = words_of(phrase, case)
    if _stands_in(wanted, [one.word for one in read]):
        return 1.0, Check(f"the words '{phrase}'", True)
    nearest = _pair(wanted, [one.word for one in read])
    length = sum(map(len, wanted))
    recall = sum(closeness == 1 for _, closeness in nearest) / len(wanted)
    similarity = sum(len(word) * closeness for word, (_, closeness) in zip(wanted, nearest, strict=True)) / length
    near = [index for index, closeness in nearest if index is not None and closeness > 0]
    found = " ".join(read[index].word for index in near)
    boxes = {read[index].box for index, closeness in nearest if index is not None and 0 < closeness < 1}
    said = "" if recall == 1 else f" (read '{found}')" if found else " (not found)"
    return (recall + similarity) / 2, Check(f"the words '{phrase}'{said}", recall == 1, tuple(sorted(boxes)))


def _stands_in(wanted: Sequence[str], read: Sequence[str]) -> bool:
    """Whether neighbouring words that were read make up the phrase, whatever was taken for a space."""
    phrase = "".join(wanted)
    for start in range(len(read)):
        run = ""
        for word in read[start:]:
            run += word
            if run == phrase:
                return True
            if not phrase.startswith(run):
                break
    return False


def _pair(wanted: Sequence[str], read: Sequence[str]) -> list[tuple[int | None, float]]:
    """For each wanted word the word read that stands for it, and how close it is (1: the same); each is used once."""
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    pairs: list[tuple[int | None, float]] = [(None, 0.0)] * len(wanted)
    if not read:
        return pairs
    closeness = np.array([[_closeness(word, other) for other in read] for word in wanted])
    weights = np.array([[len(word)] for word in wanted])
    for row, column in zip(*linear_sum_assignment(closeness * weights, maximize=True), strict=True):
        pairs[row] = (int(column), float(closeness[row, column]))
    return pairs


def _closeness(one: str, other: str) -> float:
    """1 - edit distance / length of the longer."""
    above = list(range(len(other) + 1))
    for row, letter in enumerate(one, 1):
        line = [row]
        for column, sign in enumerate(other, 1):
            line.append(min(line[-1] + 1, above[column] + 1, above[column - 1] + (letter != sign)))
        above = line
    return 1 - above[-1] / max(len(one), len(other))


# --- The reader -----------------------------------------------------------------------------------------------


class OcrCritic:
    """Reads each picture line by line. Abstains where nothing is asked for that it could read."""

    name = NAME

    def __init__(self, settings: Ocr) -> None:
        self._settings = settings
        self._reader = _load(settings.threads)
        self._letters = frozenset(self._reader.text_rec.session.get_character_list())

    def score(self, images: Sequence[Image], tasks: Sequence[Task]) -> list[Score]:
        """One score a picture, one check a phrase."""
        return [self._score(image, task) for image, task in zip(images, tasks, strict=True)]

    def why_not(self, prompt: str) -> str | None:
        """Why nothing can be said of a prompt (without metadata)."""
        return self._objection(wanted_phrases(prompt, {}))

    def _objection(self, phrases: Sequence[str]) -> str | None:
        if not phrases:
            return NO_WORDS
        letters = {letter for phrase in phrases for word in words_of(phrase, True) for letter in word}
        unknown = sorted(letter for letter in letters - self._letters if letter.isalnum())
        return f"the reader knows no '{unknown[0]}'" if unknown else None

    def _score(self, image: Image, task: Task) -> Score:
        phrases = wanted_phrases(task.prompt, task.metadata)
        if (objection := self._objection(phrases)) is not None:
            return Score(None, reason=objection)
        read = self._read(image)
        grades = [grade(phrase, read, self._settings.case) for phrase in phrases]
        said = " ".join(one.word for one in read)
        return Score(
            mean([value for value, _ in grades]),
            tuple(found for _, found in grades),
            f"read: {shorten(said, 200)}" if said else "no words read",
        )

    def _read(self, image: Image) -> list[Read]:
        """Every word, line by line from the top."""
        found = self._reader(_padded(image.convert("RGB")), use_det=True, use_cls=True, use_rec=True)
        if found.txts is None or found.boxes is None:
            return []
        read = []
        for line, corners in zip(found.txts, found.boxes, strict=True):
            (left, top), (right, bottom) = corners.min(0), corners.max(0)
            box = (
                max(0.0, float(left)), max(0.0, float(top)),
                min(float(image.width), float(right)), min(float(image.height), float(bottom)),
            )  # fmt: skip
            read += [Read(word, box) for word in words_of(line, self._settings.case)]
        return read


def _padded(image: Image) -> Image:
    """The picture with a border at the right or below if it is too long and narrow for the reader."""
    from PIL import Image

    width, height = (
        max(image.width, -(-image.height // LONGEST_SHAPE)),
        max(image.height, -(-image.width // LONGEST_SHAPE)),
    )
    if (width, height) == image.size:
        return image
    padded = Image.new("RGB", (width, height), image.getpixel((image.width - 1, image.height - 1)))
    padded.paste(image, (0, 0))
    return padded


def _load(threads: int) -> Any:
    """RapidOCR with the models inside its package, quiet, warmed up. Raises UserError."""
    for package in ("rapidocr", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"The critic 'ocr' needs the package '{package}'; pip install 'milr[critics]' brings it.")
    import numpy as np
    from rapidocr import RapidOCR

    reader = RapidOCR(
        params={
            **_shipped_models(),
            "Global.log_level": "critical",
            "EngineConfig.onnxruntime.intra_op_num_threads": min(threads, os.cpu_count() or 1),
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )
    blank = np.full((48, 320, 3), 255, np.uint8)
    reader(blank, use_det=False, use_cls=False, use_rec=True)  # it loads its models when it first needs them
    return reader


def _shipped_models() -> dict[str, str]:
    """Where the models are that came with the package. Named to it, so that it never looks for others in the net."""
    shipped = [
        Path(str(file.locate())) for file in importlib.metadata.files("rapidocr") or () if file.suffix == ".onnx"
    ]
    found = {}
    for part in ("det", "cls", "rec"):
        fitting = [file for file in shipped if f"_{part}_" in file.name and file.is_file()]
        if len(fitting) != 1:
            raise UserError("The models of the package 'rapidocr' are not where they should be; install it again.")
        found[f"{part.capitalize()}.model_path"] = str(fitting[0])
    return found


def content(settings: Ocr) -> Mapping[str, str]:
    """The version of the reader, whose models come with it."""
    try:
        return {"rapidocr": importlib.metadata.version("rapidocr")}
    except importlib.metadata.PackageNotFoundError:  # `make` says so
        return {}


def make(backbone: Backbone, settings: Ocr) -> Critic:
    """The critic; it looks at pixels alone, whatever model drew them."""
    return OcrCritic(settings)


SETTINGS = Ocr
