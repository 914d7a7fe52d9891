"""The folder that one prompt's result goes into.

    image.png          the chosen draft; its text chunks say how it was made and that a model made it
    drafts/NN.png      every draft, written as it is scored
    trajectory.json    everything needed to replay (record.py)
    trajectory.html    the same to look at (page.py)

Every file is written under a temporary name and then renamed, so whatever stands under a final name is complete.
Nothing that exists is replaced unless the user said so. This file knows no model and no search.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import tempfile
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL.PngImagePlugin import PngInfo

from milr.disk import write_atomically
from milr.drafts import Draft, UserError
from milr.runs.page import render_page
from milr.runs.record import dump
from milr.version import __version__

if TYPE_CHECKING:
    from PIL.Image import Image

OWN_FILES = ("image.png", "trajectory.json", "trajectory.html")
DEFAULT_ROOT = Path("milr-out")


@dataclass(frozen=True)
class Folder:
    """An output folder that is ours to write into. Made by `claim` or `claim_fresh`."""

    path: Path
    made_here: bool = False
    replaces: bool = False  # an earlier result is in it, and goes when the new search begins
    marks: bool = True  # pictures say that a model made them

    @property
    def image(self) -> Path:
        return self.path / "image.png"

    @property
    def trajectory(self) -> Path:
        return self.path / "trajectory.json"

    @property
    def page(self) -> Path:
        return self.path / "trajectory.html"

    def draft(self, number: int) -> Path:
        return self.path / "drafts" / f"{number:02d}.png"

    def clear(self) -> None:
        """Remove the earlier result that the user agreed to replace; anything else in the folder stays."""
        if self.replaces:
            _remove_old_result(self.path)

    def save_draft(self, draft: Draft) -> Path:
        """Keep a draft as soon as it is scored: a run that is killed keeps what was drawn."""
        file = self.draft(draft.number)
        about = {
            "draft": draft.number,
            "reasoning": draft.drawn.reasoning,
            "reward": draft.reward,
            "stream": str(draft.stream),  # 64 bits: a JSON number would lose some in other languages
        }
        write_atomically(file, png(draft.drawn.image, about, mark=self.marks))
        return file

    def save_result(self, record: Mapping[str, Any], images: list[Image]) -> None:
        """Write the chosen image, the record and the page. `images` are those of all drafts, in order."""
        for number, image in enumerate(images):
            if not self.draft(number).exists():
                write_atomically(self.draft(number), png(image, {"draft": number}, mark=self.marks))
        write_atomically(self.trajectory, dump(record))
        write_atomically(self.page, render_page(record, images).encode())
        best = images[record["best"]]
        write_atomically(self.image, png(best, provenance(record), parameters(record, best), mark=self.marks))

    def release(self) -> None:
        """Remove the folder again if nothing was written into it and it was made for this run."""
        if self.made_here:
            with contextlib.suppress(OSError):
                (self.path / "drafts").rmdir()
            with contextlib.suppress(OSError):  # not empty: there is something worth keeping
                self.path.rmdir()


def claim(path: Path, overwrite: bool = False) -> Folder:
    """Make `path` (or take it, if empty) for one result, before anything expensive begins.

    With `overwrite`, the folder may hold an earlier result; `clear` removes it once the new search begins.
    Raises UserError where the path is a file, not empty, or cannot be written to.
    """
    try:
        made_here = not path.exists()
        path.mkdir(parents=True, exist_ok=True)
        is_empty = not any(path.iterdir())
        if not is_empty and not overwrite:
            raise UserError(f"The folder {path} is not empty; name another with --out, or add --overwrite.")
        with tempfile.TemporaryFile(dir=path):  # a folder that cannot be written to is better found now
            pass
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{path} is not a folder; name another with --out.") from error
    except OSError as error:
        raise UserError(f"Cannot write to {path} ({error.strerror}); name another folder with --out.") from error
    return Folder(path, made_here, replaces=not is_empty)


def claim_fresh(prompt: str, seed: int, root: Path = DEFAULT_ROOT) -> Folder:
    """A new folder named after prompt and seed; where it exists already, numbered: fox-0, fox-0-2, fox-0-3 ..."""
    name = f"{slug(prompt)}-{seed}"
    for number in range(1, 100_000):
        path = root / (name if number == 1 else f"{name}-{number}")
        try:
            root.mkdir(parents=True, exist_ok=True)
            path.mkdir()
        except FileExistsError:
            if root.is_dir():
                continue
            raise UserError(f"{root} is not a folder; name another with --out.") from None
        except OSError as error:
            raise UserError(f"Cannot write to {root} ({error.strerror}); name another folder with --out.") from error
        return Folder(path, made_here=True)
    raise UserError(f"The folder {root} holds 100,000 results of this prompt; name another with --out.")


def slug(prompt: str, limit: int = 48) -> str:
    """A short file name that reads like the prompt: ASCII letters, digits and dashes only."""
    ascii_only = unicodedata.normalize("NFKD", prompt[:1000]).encode("ascii", "ignore").decode().lower()
    words = re.findall(r"[a-z0-9]+", ascii_only)
    name = ""
    for word in words:
        if len(name) + len(word) + 1 > limit:
            break
        name = f"{name}-{word}" if name else word
    return name or (words[0][:limit] if words else "prompt")


def provenance(record: Mapping[str, Any]) -> dict[str, Any]:
    """What an image says of itself: enough to know how it was made, and nothing about the machine or its user."""
    best = record["drafts"][record["best"]]
    return {
        "prompt": record["prompt"],
        "reasoning": best["reasoning"],
        "reward": best["reward"],
        "critic": record["critic"],
        "seed": record["seed"],
        "model": {key: record["model"][key] for key in ("name", "dtype", "fingerprint")},
        "search": record["search"],
        "settings": {**record["settings"], "preset": record["preset"]},
        "draft": best["number"],
        "versions": record["versions"],
    }


def parameters(record: Mapping[str, Any], image: Image) -> str:
    """The same in the words that galleries and viewers read (the format of Stable Diffusion WebUI): the prompt in a
    line, then one line of names and values. Steps are the drafts that were drawn."""
    best = record["drafts"][record["best"]]
    values = {
        "Steps": len(record["drafts"]),
        "Sampler": record["search"],
        "CFG scale": best["guidance"],
        "Seed": record["seed"],
        "Size": f"{image.width}x{image.height}",
        "Model hash": record["model"]["fingerprint"],
        "Model": record["model"]["name"],
        "Critic": record["critic"],
        "Reward": best["reward"],
        "Version": f"milr {record['versions']['milr']}",
    }
    line = ", ".join(f"{name}: {_quoted(value)}" for name, value in values.items() if value not in (None, ""))
    prompt = re.sub(r"[\s\x00-\x1f\x7f]+", " ", record["prompt"]).strip()  # a line, and no sign that ends a text chunk
    return f"{prompt}\n{line}"


def _quoted(value: Any) -> str:
    """As its readers expect it: what holds one of their own signs is a JSON string."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:"\n]', text) else text


# IPTC's word for a picture that a trained model made, where Google, Meta and others look for it.
MADE_BY_A_MODEL = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
XMP = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    Iptc4xmpExt:DigitalSourceType="{MADE_BY_A_MODEL}"
    xmp:CreatorTool="milr {__version__}"/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""


def png(image: Image, about: Mapping[str, Any], parameters: str = "", *, mark: bool = True) -> bytes:
    """The image as PNG. `about` becomes one chunk of JSON named 'milr', a name that no other reader takes for its own
    (ComfyUI reads 'prompt' as a workflow); `mark` adds the XMP packet that says that a model made the picture."""
    info = PngInfo()
    if parameters:
        info.add_text("parameters", parameters)
    info.add_itxt("milr", json.dumps(about, ensure_ascii=False))
    if mark:
        info.add_itxt("XML:com.adobe.xmp", XMP)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def _remove_old_result(path: Path) -> None:
    old = [path / name for name in OWN_FILES] + [*(path / "drafts").glob("[0-9]*.png")]
    leftovers = [*path.glob(".*.tmp"), *path.glob("drafts/.*.tmp")]  # of a run that was killed
    try:
        for file in old + leftovers:
            file.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"Cannot replace {error.filename} ({error.strerror}); name another folder with --out."
        ) from error
