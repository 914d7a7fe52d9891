import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milr.drafts import UserError
from milr.paths import LONGEST_NAME, Names, below, is_safe, safe_name

KEPT = [
    "a",
    "geneval-00080",
    "00001.png",
    "a photo of a fox",
    "it's 5 o'clock, sunny",
    "fuchs im schnee ü",
    "狐",
    "👩‍🚀",
    "v1.2",
]


@pytest.mark.parametrize("text", KEPT)
def test_plain_names_stay(text):
    assert safe_name(text) == text


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "...", "../../etc/passwd", "/etc/passwd", "C:\\Windows", "C:x", "a\\..\\b", "a/b", "a\0b", "a\nb",
     "a\x1b[0mb", "con", "NUL", "com1.txt", "aux.", "LPT¹", "name.", "name ", " name", ".hidden", "a<b>c", "what?",
     "x" * 300, "狐" * 300, "\ud800", "a|b", 'a"b', "~/../x"],
)  # fmt: skip
def test_names_that_some_file_system_refuses_or_follows(tmp_path, text):
    name = safe_name(text, ".png")
    assert is_safe(name)
    assert len(name.encode()) <= LONGEST_NAME
    assert os.path.basename(name) == name
    file = below(tmp_path, name)
    file.write_text("here")
    assert [one.name for one in tmp_path.iterdir()] == [name]
    assert safe_name(text, ".png") == name


@given(st.text(st.characters(), max_size=400), st.sampled_from(["", ".png"]))
def test_any_text_is_a_name(text, ending):
    name = safe_name(text, ending)
    assert is_safe(name)
    assert name.endswith(ending)
    assert not set(name) & set("/\\:\0\n")
    assert name not in (".", "..")
    assert len(name.encode()) <= LONGEST_NAME


@given(st.text(max_size=60), st.text(max_size=60))
def test_texts_that_differ_have_names_that_differ(one, other):
    names = Names()
    found = names.of(one), names.of(other)
    assert (found[0].casefold() == found[1].casefold()) is (one == other)
    assert names.of(one) == found[0]
    assert names.fresh(one).casefold() not in (found[0].casefold(), found[1].casefold())


def test_names_that_differ_in_case_or_accent_only():
    names = Names()
    assert [names.of(text) for text in ("Fox", "fox", "FOX", "fox", "Fox")] == ["Fox", "fox-2", "FOX-3", "fox-2", "Fox"]
    assert names.of("é") != names.of("e\u0301")
    assert [names.fresh("3", ".png") for _ in range(3)] == ["3.png", "3-2.png", "3-3.png"]


def test_nothing_is_below_that_is_not(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path)
    for names in (("..", "x"), ("/etc", "x"), ("link", "x"), ("a/b",)):
        with pytest.raises(UserError, match="is no name of a file in"):
            below(tmp_path / "out", *names)
    assert below(tmp_path / "out", "a", "b.png") == tmp_path / "out" / "a" / "b.png"
