"""One reader behind every door: the same file is the same prompts, or refused with the same line."""

import json

import pytest

from command import Milr
from milr.runs.journal import read_tasks

TOY = ("--model", "toy", "--reward", "redness")


@pytest.fixture
def milr(tmp_path):
    with Milr(tmp_path) as milr:
        yield milr


def generate(milr, file, **options):
    return milr.here("generate", *TOY, "--search", "single", "--budget", "1", "--json", "--quiet", "--prompts", file,
                "--out", "drawn", **options)  # fmt: skip


def bench(milr, file, **options):
    return milr.here(
        "bench", "custom", "--data", file, *TOY, "--search", "single", "--budget", "1", "--out", "run", **options
    )


def calibrate(milr, file, **options):
    return milr.here("critic", "calibrate", "noise", "--against", "redness", "--benchmark", "custom", "--data", file,
                "--model", "toy", "--drafts", "1", "--json", "--out", "c", **options)  # fmt: skip


ODD = "a red\u2028fox"
FILES = {
    "p.txt": f"{ODD}\r\n\r\nan owl, at night\r\n".encode("utf-16"),
    "p.csv": f'\ufeffid,Prompt\r1,{ODD}\r2,"an owl, at night"\r'.encode(),
    "p.json": json.dumps([ODD, {"prompt": "an owl, at night"}], ensure_ascii=False).encode(),
    "-": json.dumps({"prompt": ODD}).encode() + b"\n" + b'{"prompt": "an owl, at night"}\n',
}


@pytest.mark.parametrize("name", FILES)
def test_every_door_reads_the_same(milr, name):
    said = [ODD, "an owl, at night"]
    if name != "-":
        (milr.folder / name).write_bytes(FILES[name])
    stdin = {"stdin": FILES[name]} if name == "-" else {}
    drawn = generate(milr, name, **stdin)
    assert drawn.returncode == 0, drawn.stderr
    assert [json.loads(line)["prompt"] for line in drawn.stdout.split("\n") if line] == said
    ran = bench(milr, name, **stdin)
    assert ran.returncode == 0, ran.stderr
    assert [task.prompt for task in read_tasks(milr.folder / "run")] == said
    judged = calibrate(milr, name, **stdin)
    assert (judged.returncode, json.loads(judged.stdout)["prompts"]) == (0, 2), judged.stderr


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.txt", b"a fox\ncaf\xe9\n", "Line 2 of p.txt is not UTF-8 text; save the file as UTF-8."),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": null}\n', "Line 2 of p.jsonl has no prompt"),
        ("p.csv", b"prompt\na fox, red\n", "Line 2 of p.csv has 2 values where the header names 1 columns"),
        ("p.png", b"\x89PNG\r\n\x1a\n", "p.png is no text but a PNG picture"),
        ("-", b"a fox\nan \x1b[0m owl\n", "The prompt in line 2 of stdin cannot be drawn"),
        ("-", b"", "The prompts file stdin holds no prompt"),
    ],
)
def test_every_door_refuses_the_same(milr, name, content, words):
    if name != "-":
        (milr.folder / name).write_bytes(content)
    for door in (generate, bench, calibrate):
        ran = door(milr, name, **({"stdin": content} if name == "-" else {}))
        assert (ran.returncode, ran.stdout) == (2, "")
        assert ran.stderr.startswith("milr: ")
        assert ran.stderr.count("\n") == 1
        assert words in ran.stderr
    assert not any((milr.folder / place).exists() for place in ("drawn", "run", "c"))


def test_wises_copy_goes_through_the_same_reader(milr):
    (milr.folder / "copy").mkdir()
    for name, content in {
        "culture.JSON": json.dumps([{"Prompt": "a\u0085b", "prompt_id": 1, "Explanation": None}], ensure_ascii=False),
        "time.csv": "Prompt,prompt_id,Explanation\r\n\"a clock, late\",401,why\r\n",
        "._culture.json": "\0\0", "README.md": "read me",
    }.items():  # fmt: skip
        (milr.folder / "copy" / name).write_bytes(content.encode())
    ran = milr.here("bench", "wise", "--data", "copy", *TOY, "--search", "single", "--budget", "1", "--out", "run")
    assert ran.returncode == 0, ran.stderr
    first, second = read_tasks(milr.folder / "run")
    assert (first.prompt, first.id, first.metadata["explanation"]) == ("a\u0085b", "wise-1", "")
    assert (second.prompt, second.category, second.metadata["explanation"]) == ("a clock, late", "time", "why")
    (milr.folder / "copy" / "more.jsonl").write_text('{"Prompt": "x", "prompt_id": "401"}')
    ran = milr.here("bench", "wise", "--data", "copy", *TOY, "--out", "other")
    assert (ran.returncode, "prompt_id twice (401, in line " in ran.stderr) == (2, True)
