"""Reads pictures that others made, so that critics see what a person sees in a viewer. Every door reads through here.

The first frame; turned as its EXIF says; its colours brought to sRGB where it has a profile; whatever is transparent
on white; any depth and mode as 8-bit RGB. What was done is said in notes. Only PNG, JPEG and WebP are opened, nothing
in a picture is run, and nothing is decoded before its header says how large it is. A PNG's bare gAMA is not applied.
Knows no critic and no layout.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from milr.drafts import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP")
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
PIXELS = 50_000_000
LARGEST_PROFILE = 4 * 2**20  # bytes; those of printers have one or two million
ORIENTATION = 0x0112
TURNS = {2: "mirrored", 3: "turned by 180 degrees", 4: "mirrored", 5: "mirrored and turned by 90 degrees",
         6: "turned by 90 degrees", 7: "mirrored and turned by 90 degrees", 8: "turned by 270 degrees"}  # fmt: skip
OTHERS = (
    (b"GIF8", "a GIF"),
    (b"BM", "a BMP"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"%PDF", "a PDF"),
    (b"<svg", "an SVG"),
    (b"<?xml", "an SVG"),
    (b"\xff\x0a", "a JPEG XL"),
)


@dataclass(frozen=True)
class Seen:
    """A picture as a person sees it, in RGB, and what was done for that (nothing, mostly)."""

    image: Image
    notes: tuple[str, ...] = ()


class NoPicture(Exception):
    """Why a file is no picture that can be read: the end of a sentence that begins with its name."""


def read_file(file: Path) -> bytes:
    """What is in a picture's file. Raises UserError."""
    try:
        if not file.is_file():
            raise NoPicture("it is not a file" if file.exists() else "there is no such file")
        return file.read_bytes()
    except OSError as error:
        raise _unreadable(file, error.strerror) from error
    except (NoPicture, ValueError) as error:  # ValueError: a name with a NUL
        raise _unreadable(file, error) from error


def see(file: Path, content: bytes | None = None) -> Seen:
    """The picture in a file (whose content may be at hand). Raises UserError with one sentence where it is none."""
    try:
        return decode(open_header(read_file(file) if content is None else content))
    except NoPicture as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, why: object) -> UserError:
    return UserError(f"{str(file)!r:.300} is not a picture that can be read ({why}); remove it or make it anew.")


def open_header(content: bytes) -> Image:
    """An image of which nothing but the header was read: its size is known. Raises NoPicture."""
    from PIL import Image

    if not content:
        raise NoPicture("it is empty")
    try:
        with warnings.catch_warnings():
            # Our own limit is lower than that of the warning, and `decode` checks it.
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(content), formats=FORMATS)
    except Exception as error:  # whatever a broken file makes of the reader
        start = content[:64].lstrip()
        kind = next((kind for mark, kind in OTHERS if start.startswith(mark)), None)
        if kind is None and content[4:8] == b"ftyp":
            kind = "a HEIC or AVIF"
        what = f"it is {kind} file" if kind else "it is damaged, or no picture"
        raise NoPicture(f"{what}; PNG, JPEG and WebP are opened") from error


def decode(file: Image) -> Seen:
    """The picture of a header. Raises NoPicture where the file is broken or has more than PIXELS."""
    if file.width * file.height > PIXELS:
        raise NoPicture(f"it has {file.width} x {file.height} pixels, and the most is {PIXELS:,}")
    try:
        with warnings.catch_warnings(), file:
            warnings.simplefilter("ignore")  # of odd metadata, which no critic reads
            return _seen(file)
    except Exception as error:  # as above
        raise NoPicture("it is cut off or damaged") from error


def _seen(file: Image) -> Seen:
    notes = []
    frames = getattr(file, "n_frames", 1)
    if frames > 1:
        notes.append(f"the first of {frames} frames")
    file.load()
    orientation, profile = _orientation(file), file.info.get("icc_profile")
    image = _eight_bits(file)
    image, transparent = _split(image)
    image, note = _in_srgb(image, profile)
    notes += [note] if note else []
    if transparent is not None:
        from PIL import Image

        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=transparent)
        image = white
        notes.append("transparent parts on white")
    if orientation in TURNS:
        image = _turned(image, orientation)
        notes.append(f"{TURNS[orientation]}, as its EXIF says")
    return Seen(image, tuple(notes))


def _orientation(file: Image) -> int:
    """As EXIF says; 1, as it lies, where that is damaged."""
    try:
        return int(file.getexif().get(ORIENTATION, 1))
    except Exception:  # EXIF is written by anything, and viewers shrug
        return 1


def _turned(image: Image, orientation: int) -> Image:
    from PIL.Image import Transpose

    return image.transpose(
        {2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
         6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90}[orientation]
    )  # fmt: skip


def _eight_bits(image: Image) -> Image:
    """The same with 8 bits a channel, as L, LA, RGB, RGBA or CMYK; a transparent colour becomes alpha."""
    import numpy as np
    from PIL import Image

    key = image.info.get("transparency")
    if image.mode.startswith("I"):  # 16-bit greys; Pillow itself would cut them off at 255
        values = np.asarray(image).astype(np.int64).clip(0, 65_535)
        grey = Image.fromarray(((values * 255 + 32_767) // 65_535).astype(np.uint8))
        if isinstance(key, int):
            grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
        return grey
    if image.mode == "P":
        return image.convert("RGBA" if key is not None or image.has_transparency_data else "RGB")
    if image.mode == "RGB" and isinstance(key, tuple):
        # Pillow keeps 8 of 16 bits of the pixels and all 16 of the transparent colour.
        wanted = np.array([value >> 8 if max(key) > 255 else value for value in key], np.uint8)
        alpha = np.where((np.asarray(image) == wanted).all(-1), 0, 255).astype(np.uint8)
        image = image.copy()
        image.info.pop("transparency", None)
        image.putalpha(Image.fromarray(alpha))
        return image
    if image.mode == "1" and isinstance(key, int):
        black_and_white = image.convert("L")
        black_and_white.putalpha(black_and_white.point(lambda value: 0 if (value > 0) == (key > 0) else 255))
        return black_and_white
    if image.mode == "L" and isinstance(key, int):
        image = image.copy()
        image.info.pop("transparency", None)
        alpha_of = image.point([0 if value == key else 255 for value in range(256)])
        image.putalpha(alpha_of)
        return image
    if image.mode in ("L", "LA", "RGB", "RGBA", "CMYK"):
        return image
    return image.convert({"1": "L", "La": "LA", "PA": "RGBA", "RGBa": "RGBA"}.get(image.mode, "RGB"))


def _split(image: Image) -> tuple[Image, Image | None]:
    """The colours, and the alpha where anything is transparent."""
    if image.mode not in ("LA", "RGBA"):
        return image, None
    alpha = image.getchannel("A")
    lowest, _ = alpha.getextrema()
    return image.convert(image.mode[:-1]), alpha if lowest < 255 else None  # type: ignore[operator]


def _in_srgb(image: Image, profile: bytes | None) -> tuple[Image, str]:
    """The colours in sRGB, by the picture's profile; without one they are sRGB. The second value says what was done."""
    if not profile:
        return image.convert("RGB"), ""
    from PIL import ImageCms

    try:
        if len(profile) > LARGEST_PROFILE:
            raise ValueError("too large")
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = " ".join(ImageCms.getProfileDescription(source).split())[:60]
        if "srgb" in name.lower():
            return image.convert("RGB"), ""
        space = source.profile.xcolor_space.strip()
        if image.mode == "L" and space == "RGB":
            image = image.convert("RGB")
        turned = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except Exception:  # profiles are written by anything; viewers ignore those that are broken or of another space
        return image.convert("RGB"), "its colour profile cannot be used and was left out"
    assert turned is not None
    return turned, f"colours brought from '{name}' to sRGB"
