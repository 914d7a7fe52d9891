"""Text of others as names of files: ids, categories and prompts may hold anything, and nothing may leave its folder.

A name that every file system takes stays as it is; any other is cleaned and marked with a hash of what it was, so that
two texts do not become one name. Knows no run and no layout.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from pathlib import Path

from milr.drafts import UserError

LONGEST_NAME = 200  # bytes; file systems take 255, and files are written under a longer temporary name first
RESERVED = re.compile(r"(?i)(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])\s*(\..*)?")  # Windows' devices
FORBIDDEN = '<>:"/\\|?*'


def safe_name(text: str, ending: str = "") -> str:
    """A name of one file or folder: `text` with the ending where that is one everywhere, else something like it.

    The same text always gives the same name. Texts that differ may give names that differ in case only: see `Names`.
    """
    cleaned = "".join(" " if sign in FORBIDDEN or not _is_plain(sign) else sign for sign in text)
    # Names of dots are places, dots and spaces at the end vanish on Windows, a dot in front hides.
    cleaned = re.sub(r" +", " ", cleaned).strip(". ")
    if cleaned == text and text and not RESERVED.fullmatch(text) and _fits(text, ending):
        return text + ending
    mark = "-" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    if not cleaned or RESERVED.fullmatch(cleaned):
        cleaned = f"_{cleaned}"
    while not _fits(cleaned, mark + ending):
        cleaned = cleaned[:-1]
    return f"{cleaned.rstrip('. ')}{mark}{ending}"


def is_safe(name: str) -> bool:
    """Whether a text can be the name of a file or folder as it is."""
    return safe_name(name) == name


class Names:
    """Names in one folder. None is given to two texts, also where the file system takes A and a for the same."""

    def __init__(self) -> None:
        self._taken: dict[str, str] = {}

    def of(self, text: str, ending: str = "") -> str:
        """The name of this text: the same for the same text."""
        return self._find(text, ending, again=True)

    def fresh(self, text: str, ending: str = "") -> str:
        """A name that was not given before, not even for this text."""
        return self._find(text, ending, again=False)

    def _find(self, text: str, ending: str, again: bool) -> str:
        number = 1
        while True:
            name = safe_name(text if number == 1 else f"{text}-{number}", ending)
            key = unicodedata.normalize("NFKC", name).casefold()
            if key not in self._taken or (again and self._taken[key] == text):
                self._taken[key] = text
                return name
            number += 1


def below(folder: Path, *names: str) -> Path:
    """The file of these names in the folder. Raises UserError where that is somewhere else."""
    path = folder.joinpath(*names)
    if not all(map(is_safe, names)) or not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"'{'/'.join(names)!r:.200}' is no name of a file in {folder}; rename it in the data.")
    return path


def _is_plain(sign: str) -> bool:
    return sign.isprintable() or unicodedata.category(sign) in ("Cf", "Zs")  # joined emoji, wide spaces


def _fits(text: str, rest: str) -> bool:
    return len((text + rest).encode("utf-8", "replace")) <= LONGEST_NAME
