"""Pictures as other programs write them, beside what a person sees in a viewer. Values are worked out by hand."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from milr import pictures
from milr.drafts import UserError
from milr.pictures import see

RED, WHITE, BLACK = [255, 0, 0], [255, 255, 255], [0, 0, 0]
ON_WHITE = "transparent parts on white"


def seen(folder, image, kind="PNG", **options):
    file = folder / f"picture.{kind.lower()}"
    image.save(file, kind, **options)
    found = see(file)
    assert found.image.mode == "RGB"
    return np.asarray(found.image).tolist(), list(found.notes)


def corner(orientation, kind):
    """A white picture whose first pixels are red, with an EXIF orientation."""
    image, exif = Image.new("RGB", (48, 32), "white"), Image.Exif()
    image.paste((255, 0, 0), (0, 0, 16, 16))
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "size", "place"),  # where EXIF's table puts the first row and column
    [(1, (48, 32), (0, 0)), (2, (48, 32), (0, -1)), (3, (48, 32), (-1, -1)), (4, (48, 32), (-1, 0)),
     (5, (32, 48), (0, 0)), (6, (32, 48), (0, -1)), (7, (32, 48), (-1, -1)), (8, (32, 48), (-1, 0))],
)  # fmt: skip
def test_turned_as_exif_says(tmp_path, kind, orientation, size, place):
    file = tmp_path / "photo"
    file.write_bytes(corner(orientation, kind))
    found = see(file)
    assert found.image.size == size
    pixels = np.asarray(found.image).astype(int)
    places = [(0, 0), (0, -1), (-1, -1), (-1, 0)]
    assert [one for one in places if pixels[one][1] < 100] == [place]
    assert ("as its EXIF says" in " ".join(found.notes)) is (orientation != 1)


@pytest.mark.parametrize("exif", [b"Exif\0\0junk", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\0" * 40])
def test_exif_that_is_damaged_turns_nothing(tmp_path, exif):
    pixels, notes = seen(tmp_path, Image.new("RGB", (16, 8), (255, 0, 0)), "JPEG", exif=exif)
    assert (len(pixels), len(pixels[0]), notes) == (8, 16, [])


def test_alpha_is_on_white(tmp_path):
    image = Image.new("RGBA", (3, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (255, 0, 0, 255))
    image.putpixel((2, 0), (0, 0, 0, 51))  # a fifth of black: 255 * .8
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        assert seen(tmp_path, image, kind, **options) == ([[WHITE, RED, [204] * 3]], [ON_WHITE])
    image.putalpha(255)
    assert seen(tmp_path, image)[1] == []
    grey = Image.new("LA", (2, 1), (0, 255))
    grey.putpixel((1, 0), (0, 0))
    assert seen(tmp_path, grey) == ([[BLACK, WHITE]], [ON_WHITE])


def test_palettes(tmp_path):
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    assert seen(tmp_path, image) == ([[RED, [0, 255, 0], [0, 0, 255]]], [])
    assert seen(tmp_path, image, transparency=1) == ([[RED, WHITE, [0, 0, 255]]], [ON_WHITE])
    assert seen(tmp_path, image, transparency=bytes([0, 255, 51])) == (
        [[WHITE, [0, 255, 0], [204, 204, 255]]], [ON_WHITE],
    )  # fmt: skip


def test_a_transparent_colour(tmp_path):
    image = Image.new("RGB", (2, 1), (7, 8, 9))
    image.putpixel((1, 0), (255, 0, 0))
    assert seen(tmp_path, image, transparency=(7, 8, 9)) == ([[WHITE, RED]], [ON_WHITE])
    grey = Image.new("L", (2, 1), 7)
    grey.putpixel((1, 0), 9)
    assert seen(tmp_path, grey, transparency=7) == ([[WHITE, [9] * 3]], [ON_WHITE])


def test_one_bit_and_sixteen(tmp_path):
    bits = Image.new("1", (2, 1))
    bits.putpixel((1, 0), 1)
    assert seen(tmp_path, bits) == ([[BLACK, WHITE]], [])
    deep = Image.fromarray(np.array([[0, 257, 32_896, 65_535]], np.uint16))
    assert seen(tmp_path, deep) == ([[BLACK, [1] * 3, [128] * 3, WHITE]], [])  # 257 = 65535 / 255


def png(depth, colour, rows, **chunks):
    """A PNG by hand: Pillow writes neither 16-bit colours nor such transparency."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    width = len(rows[0]) // {0: 1, 2: 3, 4: 2, 6: 4}[colour] // (depth // 8)
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
        + b"".join(chunk(name.encode(), content) for name, content in chunks.items())
        + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))) + chunk(b"IEND", b"")
    )  # fmt: skip


@pytest.mark.parametrize(
    ("colour", "values", "key", "expected"),
    [
        (2, (65_535, 0, 0, 0x0708, 0x0809, 0x090A), (0x0708, 0x0809, 0x090A), [RED, WHITE]),
        (0, (0x0708, 65_535 // 5), (0x0708,), [WHITE, [51] * 3]),
        (6, (65_535, 0, 0, 65_535, 0, 0, 0, 0), (), [RED, WHITE]),
        (4, (0, 65_535, 0, 0), (), [BLACK, WHITE]),
    ],
)
def test_sixteen_bits_with_transparency(tmp_path, colour, values, key, expected):
    chunks = {"tRNS": struct.pack(f">{len(key)}H", *key)} if key else {}
    (tmp_path / "deep.png").write_bytes(png(16, colour, [struct.pack(f">{len(values)}H", *values)], **chunks))
    found = see(tmp_path / "deep.png")
    assert np.asarray(found.image).tolist() == [expected]
    assert found.notes == (ON_WHITE,)


def test_inks_of_a_jpeg(tmp_path):
    """CMYK as Adobe's programs write it, inverted: no cyan, full magenta and yellow is red."""
    pixels, _ = seen(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    assert np.abs(np.array(pixels) - RED).max() <= 3


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_the_first_frame(tmp_path, kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    options = {"save_all": True, "append_images": frames[1:], **({"lossless": True} if kind == "WEBP" else {})}
    pixels, notes = seen(tmp_path, frames[0], kind, **options)
    assert pixels[0][0] == RED
    assert notes == ["the first of 3 frames"]


# --- Profiles ---------------------------------------------------------------------------------------------------


def profile(name, primaries, gamma=2.2):
    """A small ICC profile (version 2): three primaries as XYZ (D50) and one gamma."""

    def fixed(number):
        return struct.pack(">i", round(number * 65_536))

    def xyz(values):
        return b"XYZ \0\0\0\0" + b"".join(map(fixed, values))

    text = name.encode() + b"\0"
    description = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    tags = {b"desc": description, b"cprt": b"text\0\0\0\0none\0", b"wtpt": xyz((0.9642, 1.0, 0.8249))}
    tags |= dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(xyz, primaries), strict=True))
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, content, at = b"", b"", 132 + 12 * len(tags)
    for tag, value in tags.items():
        value += bytes(-len(value) % 4)
        table += tag + struct.pack(">II", at + len(content), len(value))
        content += value
    head = struct.pack(">I4sI4s4s4s", at + len(content), b"lcms", 0x02100000, b"mntr", b"RGB ", b"XYZ ")
    head += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(24) + bytes(4)
    head += b"".join(map(fixed, (0.9642, 1.0, 0.8249)))
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + content


# Display P3's and sRGB's primaries adapted to D50 (as their published profiles have them).
P3 = ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141))


def test_wide_colours_come_to_srgb(tmp_path):
    said = np.array([150, 100, 60]) / 255
    linear = np.linalg.inv(np.array(SRGB).T) @ (np.array(P3).T @ said**2.2)
    expected = 255 * np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    image = Image.new("RGB", (8, 8), (150, 100, 60))
    for kind in ("PNG", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        pixels, notes = seen(tmp_path, image, kind, icc_profile=profile("Phone P3", P3), **options)
        assert np.abs(np.array(pixels[0][0]) - expected).max() < 1.5
        assert notes == ["colours brought from 'Phone P3' to sRGB"]
    assert abs(expected[0] - 150) > 4  # or the test would prove nothing
    clear = Image.new("RGBA", (1, 1), (150, 100, 60, 0))
    assert seen(tmp_path, clear, icc_profile=profile("Phone P3", P3))[0] == [[WHITE]]


def test_profiles_that_change_nothing(tmp_path):
    image = Image.new("RGB", (1, 1), (150, 100, 60))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert seen(tmp_path, image, icc_profile=srgb) == ([[[150, 100, 60]]], [])
    for broken in (b"junk" * 50, profile("P3", P3)[:300]):
        assert seen(tmp_path, image, icc_profile=broken) == (
            [[[150, 100, 60]]], ["its colour profile cannot be used and was left out"],
        )  # fmt: skip
    grey = Image.new("L", (1, 1), 128)
    assert len(seen(tmp_path, grey, icc_profile=profile("P3", P3))[0]) == 1


# --- Files that are no pictures -----------------------------------------------------------------------------------


def test_files_that_are_none(tmp_path, monkeypatch):
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(whole, "PNG")
    gif = io.BytesIO()
    Image.new("RGB", (4, 4)).save(gif, "GIF")
    for content, words in [
        (b"", "it is empty"),
        (b"a fox", "damaged, or no picture; PNG, JPEG and WebP are opened"),
        (gif.getvalue(), "it is a GIF file"),
        (b"<svg/>", "it is an SVG file"),
        (b"\0\0\0\x18ftypheic", "it is a HEIC or AVIF file"),
        (whole.getvalue()[:900], "it is cut off or damaged"),
        (whole.getvalue()[:20], "PNG, JPEG and WebP"),
        (png(8, 2, [b"\0\0\0"]).replace(b"\0\0\0\x01\0\0\0\x01", b"\0\0\0\0\0\0\0\x01", 1), "not a picture"),
    ]:
        file = tmp_path / "it.png"
        file.write_bytes(content)
        with pytest.raises(UserError, match=words):
            see(file)
    for file, words in [(tmp_path, "it is not a file"), (tmp_path / "none.png", "no such file")]:
        with pytest.raises(UserError, match=words):
            see(file)
    Image.new("1", (pictures.PIXELS // 1000, 1001)).save(tmp_path / "huge.png")
    with pytest.raises(UserError, match="pixels, and the most is 50,000,000"):
        see(tmp_path / "huge.png")
    monkeypatch.setattr(pictures, "PIXELS", 4000)
    (tmp_path / "it.png").write_bytes(whole.getvalue())
    with pytest.raises(UserError, match="64 x 64 pixels, and the most is 4,000"):
        see(tmp_path / "it.png")
