"""Reads the text files that people bring: prompts and data, whatever wrote them. Every door reads through here.

    prompts.txt      one prompt a line
    prompts.jsonl    one JSON object a line: {"prompt": "a fox", "id": "f1", ...}
    prompts.json     a JSON list of objects, or of texts
    prompts.csv      a header with a column 'prompt' (.tsv: between tabs)

The ending says which; without one of these (stdin, .txt) JSON and tables are known by their first line. UTF-8, or
UTF-16 and UTF-32 with their mark; lines end at \\n, \\r\\n or \\r and nowhere else. What is not understood is refused
with its line: a prompt that is guessed at would be drawn, judged and believed. Knows no benchmark.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from milr.drafts import UserError

STDIN = Path("-")
LARGEST_FILE = 128 * 2**20  # bytes; two million prompts
LONGEST_PROMPT = 4000  # characters
LONGEST_ID = 1000
MARKS = (  # UTF-32's little-endian mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
NO_TEXT = (
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"RIFF", "a WebP picture or a sound"),
    (b"PK\x03\x04", "a ZIP or Excel file; export it as CSV"),
    (b"\x1f\x8b", "packed with gzip; unpack it"),
    (b"PAR1", "a Parquet file; export it as CSV or JSONL"),
    (b"%PDF", "a PDF"),
)
TABLES = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_UNWRITTEN = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff]")
HEADER_WORD = re.compile(r"[\w .#-]{1,60}")


@dataclass(frozen=True)
class Entry:
    """A prompt of a file, what else its line says, and where it stands.

    `number` is its line, in a JSON list its place from 1: no two have the same. `where` is 'line 3 of prompts.csv'.
    """

    prompt: str
    fields: Mapping[str, Any]
    number: int
    where: str

    def text(self, key: str) -> str:
        """A short field (an id, a category) as text; '' where it is missing, empty or null. Raises UserError."""
        value = self.fields.get(key)
        if value is None:
            return ""
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise UserError(f"The '{key}' in {self.where} is {_shown(value)}; write text or a whole number.")
        value = str(value).strip()
        if len(value) > LONGEST_ID or (why := objection(value)) is not None:
            why = f"it has more than {LONGEST_ID} characters" if len(value) > LONGEST_ID else why
            raise UserError(f"The '{key}' in {self.where} cannot be used ({why}); write a short text.")
        return value


def read_entries(file: Path) -> list[Entry]:
    """The prompts of a file, or of stdin ('-'), in order. Raises UserError with the line where one is none."""
    name = name_of(file)
    text = read_text(file)
    found = list(_entries(text, name, file.suffix.lower()))
    if not found:
        raise UserError(f"The prompts file {name} holds no prompt; write one a line.")
    return found


def name_of(file: Path) -> str:
    """What a file is called in a sentence."""
    return "stdin" if file == STDIN else str(file)


def read_text(file: Path) -> str:
    """A whole text file, or stdin ('-'). Raises UserError where it cannot be read, is too large, or no Unicode text."""
    name = name_of(file)
    try:
        if file == STDIN:
            content = sys.stdin.buffer.read(LARGEST_FILE + 1)
        elif file.is_dir():
            raise UserError(f"Cannot read the prompts file {name} (it is a folder); name a file in it.")
        else:
            with open(file, "rb") as stream:
                content = stream.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        why = getattr(error, "strerror", None) or error
        raise UserError(f"Cannot read the prompts file {name!r:.300} ({why}).") from error
    if len(content) > LARGEST_FILE:
        raise UserError(f"{name} has more than {LARGEST_FILE:,} bytes, the most that is read; split it.")
    kind = next((kind for mark, kind in NO_TEXT if content.startswith(mark)), None)
    if kind is not None:
        raise UserError(f"{name} is no text but {kind}; prompts are text, one a line, JSONL, JSON, CSV or TSV.")
    encoding = next((encoding for mark, encoding in MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = len(lines_of(content[: error.start].decode(encoding, "replace"))) or 1
        what = "not UTF-8 text" if encoding.startswith("utf-8") else f"no {encoding.upper()}, as its mark says"
        raise UserError(f"Line {line} of {name} is {what}; save the file as UTF-8.") from error


def lines_of(text: str) -> list[str]:
    """Lines end at \\n, \\r\\n and \\r; `str.splitlines` also ends them at signs that prompts hold (U+2028, U+0085)."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def objection(text: str) -> str | None:
    """Why a text is none that a person wrote: control characters (but those that are white space), halves of
    characters. None: nothing is wrong."""
    found = _UNWRITTEN.search(text)
    if found is None:
        return None
    is_half = unicodedata.category(found[0]) == "Cs"
    return "it holds half a character" if is_half else f"it holds the control character U+{ord(found[0]):04X}"


# --- Forms ----------------------------------------------------------------------------------------------------


def _entries(text: str, name: str, ending: str) -> Iterator[Entry]:
    if "\0" in text:
        broken = len(lines_of(text[: text.index("\0")]))
        raise UserError(
            f"Line {broken} of {name} holds a NUL (UTF-16 without its mark, or no text?); save the file as UTF-8."
        )
    first = next((line.strip("\ufeff \t") for line in lines_of(text) if line.strip("\ufeff \t")), "")
    if ending in (".jsonl", ".ndjson"):
        yield from _json_lines(text, name)
    elif ending == ".json":
        yield from _json(text, name)
    elif ending in TABLES:
        yield from _table(text, name, TABLES[ending])
    elif re.match(r'\{\s*("|$)|\[\s*(["{[]|$)', first):
        yield from _json(text, name)
    elif (delimiter := _delimiter_of_header(first)) is not None:
        yield from _table(text, name, delimiter)
    else:
        for number, line in _numbered(text):
            yield _entry({"prompt": line}, number, f"line {number} of {name}")


def _numbered(text: str) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, from 1. Files that were joined have marks of encoding in their middle."""
    for number, line in enumerate(lines_of(text), 1):
        stripped = line.removeprefix("\ufeff").strip()
        if stripped:
            yield number, stripped


def _json_lines(text: str, name: str) -> Iterator[Entry]:
    for number, line in _numbered(text):
        try:
            value = _DECODER.decode(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"Line {number} of {name} is no JSON object ({_why(error)}); write one object a line."
            ) from error
        yield _entry(value, number, f"line {number} of {name}")


def _json(text: str, name: str) -> Iterator[Entry]:
    """A list, one object, or (many call JSONL so) one object a line."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")
    start = _skip(text, 0)
    if text[start : start + 1] != "[":
        try:
            value, end = _DECODER.raw_decode(text, start) if start < len(text) else (None, 0)
        except (ValueError, RecursionError) as error:
            _refuse_json(name, text, error)
        if start == len(text):
            return
        if _skip(text, end) < len(text):
            yield from _json_lines(text, name)
        else:
            line = 1 + text.count("\n", 0, start)
            yield _entry(value, line, f"line {line} of {name}")
        return
    line, counted, number = 1, 0, 0
    at = _skip(text, start + 1)
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            _refuse_json(name, text, error, line)
        number += 1
        yield _entry(value, number, f"entry {number} (line {line}) of {name}")
        at = _skip(text, at)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
            if text[at : at + 1] == "]":
                _refuse_json(name, text, json.JSONDecodeError("Expecting a value behind the comma", text, at))
        elif text[at : at + 1] != "]":
            _refuse_json(name, text, json.JSONDecodeError("Expecting ',' or ']'", text, at))
    if (rest := _skip(text, at + 1)) < len(text):
        _refuse_json(name, text, json.JSONDecodeError("more behind the list", text, rest))


def _skip(text: str, at: int) -> int:
    """The next place that is no white space of JSON."""
    found = re.compile(r"[ \t\n\ufeff]*").match(text, at)
    assert found is not None
    return found.end()


def _refuse_json(name: str, text: str, error: Exception, line: int = 1) -> NoReturn:
    if isinstance(error, json.JSONDecodeError):
        line = error.lineno
    raise UserError(f"{name} is no JSON (line {line}: {_why(error)}); mend that line.") from error


def _delimiter_of_header(line: str) -> str | None:
    """What stands between the columns of a table, where this line is surely its header."""
    for delimiter in ("\t", ",", ";"):
        cells = [cell.strip().strip('"') for cell in line.split(delimiter)]
        if len(cells) > 1 and "prompt" in map(str.lower, cells) and all(map(HEADER_WORD.fullmatch, cells)):
            return delimiter
    return None


def _table(text: str, name: str, delimiter: str) -> Iterator[Entry]:
    """Rows under a header. Spreadsheets of some countries write ';' for ','."""
    text = text.removeprefix("\ufeff")
    first = next((line for line in lines_of(text) if line.strip()), "")
    if "prompt" not in _columns(first, delimiter):
        delimiter = next((one for one in (",", ";", "\t") if "prompt" in _columns(first, one)), delimiter)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    before = 0
    try:
        for row in rows:
            line, before = before + 1, rows.line_num
            if not any(cell.strip() for cell in row):
                continue
            if not header:
                header = _header(row, name, line)
                continue
            if len(row) != len(header):
                raise UserError(
                    f"Line {line} of {name} has {len(row)} values where the header names {len(header)} columns; put "
                    f"quotes around a value that holds {'a tab' if delimiter == chr(9) else repr(delimiter)}."
                )
            cells = {key: cell for key, cell in zip(header, row, strict=True) if cell.strip()}
            yield _entry(cells, line, f"line {line} of {name}")
    except csv.Error as error:
        raise UserError(
            f"The row in line {before + 1} of {name} cannot be read ({error}); quotes come in pairs, and a quote in a "
            "quoted value is written twice."
        ) from error


def _columns(line: str, delimiter: str) -> list[str]:
    try:
        return [cell.strip().lower() for cell in next(csv.reader([line], delimiter=delimiter))]
    except (csv.Error, StopIteration):
        return []


def _header(row: Iterable[str], name: str, line: int) -> list[str]:
    header = [cell.strip() for cell in row]
    lower = [cell.lower() for cell in header]
    if "prompt" not in lower:
        raise UserError(
            f"Line {line} of {name} is no header with a column 'prompt' (it has {', '.join(header)[:200]}); name the "
            "column of the prompts so."
        )
    twice = next((cell for cell in lower if lower.count(cell) > 1), None)
    if twice is not None:
        what = f"two columns '{twice}'" if twice else "two columns without a name"
        raise UserError(f"The header of {name} has {what}; give each its own name.")
    return header


def _entry(value: Any, number: int, where: str) -> Entry:
    """The entry that a value of JSON, or a row, is."""
    where_first = where[0].upper() + where[1:]
    fields = {"prompt": value} if isinstance(value, str) else value
    if not isinstance(fields, dict):
        raise UserError(f'{where_first} has no prompt ({_shown(value)}); write {{"prompt": "..."}}.')
    keys = [key for key in fields if key.lower() == "prompt"]
    if len(keys) > 1:
        raise UserError(f"{where_first} has a prompt twice ({' and '.join(keys)}); keep one.")
    prompt = fields[keys[0]] if keys else None
    if prompt is None or (isinstance(prompt, str) and not prompt.removeprefix("\ufeff").strip()):
        raise UserError(f'{where_first} has no prompt; write {{"prompt": "..."}}, or leave the line out.')
    if not isinstance(prompt, str):
        raise UserError(f"The prompt in {where} is {_shown(prompt)}; write it as text, in quotes.")
    prompt = prompt.removeprefix("\ufeff").strip()
    if len(prompt) > LONGEST_PROMPT:
        raise UserError(f"The prompt in {where} is longer than {LONGEST_PROMPT:,} characters; shorten it.")
    if (why := objection(prompt)) is not None:
        raise UserError(f"The prompt in {where} cannot be drawn ({why}); remove it.")
    return Entry(prompt, {key: one for key, one in fields.items() if key not in keys}, number, where)


def _shown(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else kinds.get(type(value), "something else")


def _why(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys come once: of two values one would be dropped without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"'{next(key for key in keys if keys.count(key) > 1)[:60]}' is there twice")
    return found


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no value of JSON; leave the key out")


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant)
