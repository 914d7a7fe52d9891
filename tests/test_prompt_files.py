"""Prompts as people's programs write them: what is read, and what is refused with its line."""

import codecs
import io
import json
import sys
from pathlib import Path

import pytest

from milr import reading
from milr.drafts import UserError
from milr.reading import lines_of, read_entries


def read(folder, name, content):
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_entries(file)


def prompts(folder, name, content):
    return [entry.prompt for entry in read(folder, name, content)]


TWO = ["a red fox", "an owl, at night"]
OBJECTS = [{"prompt": TWO[0], "id": "f"}, {"prompt": TWO[1]}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "a red fox\nan owl, at night"),
        ("p", "\n  a red fox \r\n\r\nan owl, at night\r\n"),
        ("p.txt", "a red fox\ran owl, at night\r"),
        ("p.md", "a red fox\nan owl, at night\n\n"),
        ("p.jsonl", '{"prompt": "a red fox"}\r\n\r\n{"Prompt": "an owl, at night"}'),
        ("p.ndjson", '{"prompt": "a red fox"}\r{"PROMPT": "an owl, at night"}'),
        ("p.JSONL", '"a red fox"\n"an owl, at night"\n'),
        ("p.json", json.dumps(TWO)),
        ("p.json", json.dumps(OBJECTS, indent=2)),
        ("p.json", json.dumps(OBJECTS, indent=2).replace("\n", "\r")),
        ("p.json", "\n".join(map(json.dumps, OBJECTS))),  # many call JSONL so
        ("p.txt", "\n".join(map(json.dumps, OBJECTS))),
        ("p.txt", json.dumps(TWO)),
        ("p", json.dumps(OBJECTS, indent=2)),
        ("p.csv", 'prompt\na red fox\n"an owl, at night"\n'),
        ("p.csv", '\r\nid,Prompt\r\n1,a red fox\r\n\r\n,"an owl, at night"\r\n,\r\n'),
        ("p.csv", "id;prompt\n1;a red fox\n2;an owl, at night\n"),  # Excel in German
        ("p.csv", "id\tprompt\n1\ta red fox\n2\tan owl, at night\n"),
        ("p.CSV", 'ID,PROMPT\r1,a red fox\r2,"an owl, at night"\r'),
        ("p.tsv", "category\tPrompt\nc\ta red fox\nc\tan owl, at night\n"),
        ("p.txt", "id\tprompt\n1\ta red fox\n2\tan owl, at night\n"),
        ("p", 'prompt,seed\na red fox,1\n"an owl, at night",2\n'),
    ],
)
def test_two_prompts_in_every_form(tmp_path, name, content):
    assert prompts(tmp_path, name, content) == TWO
    for mark, encoding in [(codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"),
                           (codecs.BOM_UTF16_BE, "utf-16-be"), (codecs.BOM_UTF32_LE, "utf-32-le"),
                           (codecs.BOM_UTF32_BE, "utf-32-be")]:  # fmt: skip
        assert prompts(tmp_path, name, mark + content.encode(encoding)) == TWO, encoding


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\t", "\u00a0"])
def test_a_prompt_ends_where_its_line_does(tmp_path, sign):
    said = f"a red{sign}fox"
    assert prompts(tmp_path, "p.txt", f"{said}\nan owl") == [said, "an owl"]
    line = json.dumps({"prompt": said}, ensure_ascii=ord(sign) < 32)
    assert prompts(tmp_path, "p.jsonl", line) == [said]
    assert prompts(tmp_path, "p.json", f"[{line}]") == [said]
    assert prompts(tmp_path, "p.csv", f'prompt\n"{said}"\n') == [said]


def test_what_looks_odd_and_is_a_prompt(tmp_path):
    odd = ["# a fox", "prompt", "a, b", "1984", "null", "[a fox] in snow", "{fox}", '"fox"', "👩‍🚀 🦊", "=1+1", "שלום"]
    assert prompts(tmp_path, "p.txt", "\n".join(odd)) == odd
    assert prompts(tmp_path, "p.csv", "prompt\n1984\nnull\n") == ["1984", "null"]
    assert prompts(tmp_path, "p.csv", 'prompt,n\n"a ""red"" fox\non ice",1\n') == ['a "red" fox\non ice']
    assert prompts(tmp_path, "p.txt", "a fox\n\ufeffan owl") == ["a fox", "an owl"]  # two files joined


def test_lines_and_fields_are_known(tmp_path):
    entries = read(tmp_path, "p.json", '[\n  {"prompt": "a",\n   "id": 3},\n\n  "b"]')
    assert [(one.number, one.where.split(" of ")[0]) for one in entries] == [
        (1, "entry 1 (line 2)"), (2, "entry 2 (line 5)"),
    ]  # fmt: skip
    assert [one.text("id") for one in entries] == ["3", ""]
    entries = read(tmp_path, "p.csv", 'prompt,id,Category\n"a\nb",,x\nc,7,\n')
    assert [(one.number, dict(one.fields)) for one in entries] == [(2, {"Category": "x"}), (4, {"id": "7"})]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.txt", b"", "holds no prompt"),
        ("p.txt", b"\xef\xbb\xbf\r\n \n", "holds no prompt"),
        ("p.json", b"", "holds no prompt"),
        ("p.json", b"[]", "holds no prompt"),
        ("p.csv", b"prompt\n", "holds no prompt"),
        ("p.txt", b"a fox\ncaf\xe9\n", "Line 2 of .* is not UTF-8 text; save the file as UTF-8"),
        ("p.txt", b"a fox\r\rcaf\xe9", "Line 3 of .* is not UTF-8"),
        ("p.csv", b"prompt\nna\xefve\n", "Line 2 of .* is not UTF-8"),
        ("p.txt", b"\xff\xfea\x00\x00", "is no UTF-16, as its mark says"),
        ("p.txt", "a fox".encode("utf-16-le"), "Line 1 of .* holds a NUL .UTF-16 without its mark"),
        ("p.txt", "a fox\nan\x1b[31m owl", r"line 2 of .* control character U\+001B"),
        ("p.txt", "a fox\nan \x80 owl", r"line 2 of .* control character U\+0080"),
        ("p.jsonl", '{"prompt": "a \\u0000 fox"}', r"line 1 of .* control character U\+0000"),
        ("p.jsonl", '{"prompt": "a \\ud800 fox"}', "line 1 of .* half a character"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": "b"', "Line 2 of .* is no JSON object"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": null}', "Line 2 of .* has no prompt"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": " "}', "Line 2 of .* has no prompt"),
        ("p.jsonl", '{"prompt": 5}', "prompt in line 1 of .* is a number; write it as text"),
        ("p.jsonl", '{"prompt": ["a"]}', "prompt in line 1 of .* is a list"),
        ("p.jsonl", '{"prompt": true}', "prompt in line 1 of .* is true or false"),
        ("p.jsonl", '{"prompt": "a", "n": NaN}', "Line 1 of .*NaN is no value"),
        ("p.jsonl", '{"prompt": "a", "prompt": "b"}', "Line 1 of .*'prompt' is there twice"),
        ("p.jsonl", '{"prompt": "a", "Prompt": "b"}', "Line 1 of .* prompt twice"),
        ("p.jsonl", '{"prompt": "a"} {"prompt": "b"}', "Line 1 of .* is no JSON object"),
        ("p.jsonl", '["a"]', "Line 1 of .* has no prompt .a list"),
        ("p.jsonl", "[" * 100_000, "Line 1 of .*nested too deeply"),
        ("p.jsonl", '{"text": "a"}', "Line 1 of .* has no prompt"),
        ("p.json", '[\n"a",\n["b"]\n]', "Entry 2 .line 3. of .* has no prompt .a list"),
        ("p.json", '["a",\n]', "line 2: Expecting"),
        ("p.json", '["a"\n"b"]', "line 2: Expecting ','"),
        ("p.json", '["a"]\n["b"]', "line 2: more behind the list"),
        ("p.json", '["a",\n"b', "line 2: Unterminated"),
        ("p.json", '["a", 3]', "Entry 2 .line 1. of .* has no prompt .a number"),
        ("p.json", '{"prompts": ["a", "b"]}', "Line 1 of .* has no prompt"),
        ("p.json", "[" * 100_000, "nested too deeply"),
        ("p.txt", '[\n  "a fox",\n  "an owl"\n', "line 4: Expecting"),
        ("p.txt", '{"prompt": "a"}\nb', "Line 2 of .* is no JSON object"),
        ("p.csv", "text\na fox\n", "Line 1 of .* is no header with a column 'prompt' .it has text"),
        ("p.csv", "a fox, red\nan owl, blue\n", "Line 1 of .* is no header"),
        ("p.csv", "prompt,Prompt\na,b\n", "two columns 'prompt'"),
        ("p.csv", "prompt,,\na,b,c\n", "two columns without a name"),
        ("p.csv", "prompt\na fox, red\n", "Line 2 of .* has 2 values where the header names 1 columns; put quotes"),
        ("p.csv", "prompt,n\na\n", "Line 2 of .* has 1 values"),
        ("p.csv", "n,prompt\n1,\n", "Line 2 of .* has no prompt"),
        ("p.csv", 'prompt\na\n"b\nc\n', "row in line 3 of .* cannot be read"),
        ("p.csv", 'prompt\n"a"b\n', "row in line 2 of .* cannot be read"),
        ("p.csv", f"prompt\n{'x' * 200_000}\n", "row in line 2 of .* cannot be read"),
        ("p.txt", f"a\n{'x' * 4001}", "prompt in line 2 of .* is longer than 4,000"),
        ("p.txt", b"\x89PNG\r\n\x1a\n", "is no text but a PNG picture"),
        ("p.csv", b"PK\x03\x04", "is no text but a ZIP or Excel file; export it as CSV"),
        ("p.jsonl", b"\x1f\x8b", "packed with gzip"),
    ],
)
def test_what_is_refused(tmp_path, name, content, words):
    with pytest.raises(UserError, match=words) as caught:
        read(tmp_path, name, content)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_files_that_are_none(tmp_path, monkeypatch):
    for file, words in [(tmp_path, "is a folder"), (tmp_path / "none.txt", "No such file"),
                        (Path("a\0b"), "null byte"), (tmp_path / ("x" * 300), "too long")]:  # fmt: skip
        with pytest.raises(UserError, match=f"Cannot read the prompts file .*{words}"):
            read_entries(file)
    monkeypatch.setattr(reading, "LARGEST_FILE", 10)
    with pytest.raises(UserError, match="has more than 10 bytes"):
        read(tmp_path, "p.txt", "a red fox in snow")


def test_stdin(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"prompt,id\r\na fox,1\r\n")))
    (entry,) = read_entries(Path("-"))
    assert (entry.prompt, entry.where) == ("a fox", "line 2 of stdin")


@pytest.mark.parametrize("said", ['{"a": 1}', "[1]", "1.5", "true", '"a\\u001bb"', json.dumps("x" * 2000)])
def test_ids_are_short_texts(tmp_path, said):
    (entry,) = read(tmp_path, "p.jsonl", f'{{"prompt": "a", "id": {said}}}')
    with pytest.raises(UserError, match="'id' in line 1 of"):
        entry.text("id")


def test_lines_by_hand():
    assert lines_of("a\r\nb\rc\n\u2028d\x1ee") == ["a", "b", "c", "\u2028d\x1ee"]
