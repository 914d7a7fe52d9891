import json
import re
from pathlib import Path

import pytest

from milr.benchmarks import custom
from milr.critics.ocr import wanted_phrases
from milr.drafts import UserError


def test_packs():
    for pack in custom.PACKS:
        tasks = custom.tasks(data=Path(pack))
        assert len(tasks) == 16
        assert all(task.category == pack and len(task.metadata["checks"]) >= 2 for task in tasks)
        assert all(check.endswith("?") for task in tasks for check in task.metadata["checks"])


def test_the_medical_pack_asks_for_annotations_and_never_for_a_finding():
    tasks = custom.tasks(data=Path("medical"))
    said = " ".join([*(task.prompt for task in tasks), *(check for task in tasks for check in task.metadata["checks"])])
    finding = r"diagnos|disease|tumou?r|cancer|fractur|lesion|patholog|patient|symptom|infect|treat|abnormal|healthy"
    assert not re.findall(finding, said, re.IGNORECASE)
    for task in tasks:
        quoted = wanted_phrases(task.prompt, {})
        assert set(quoted) <= set(task.metadata.get("text", ())), task.prompt
    assert sum("text" in task.metadata for task in tasks) >= 4
    with pytest.raises(UserError, match="not for clinical use"):
        custom.tasks()


def test_a_text_file(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("a fox\n\n  an owl at night \n")
    assert [(task.id, task.prompt) for task in custom.tasks(data=file)] == [
        ("mine-1", "a fox"),
        ("mine-3", "an owl at night"),
    ]


def test_a_jsonl_file(tmp_path):
    file = tmp_path / "mine.jsonl"
    lines = [
        {"prompt": "a dog", "id": "d", "category": "c", "tag": "counting", "checks": ["Is there a dog?"]},
        {"prompt": "a cat"},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    first, second = custom.tasks(data=file)
    assert (first.id, first.category) == ("d", "c")
    assert first.metadata == {"tag": "counting", "checks": ["Is there a dog?"]}
    assert (second.id, second.metadata) == ("mine-2", {})
    assert custom.tasks(None, 0, ("c",), data=file) == [first]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"prompt": "a"}\nnonsense', "Line 2 of .* is no JSON object"),
        ('{"text": "a"}', "Line 1 of .* has no prompt"),
        ('{"prompt": "  "}', "has no prompt"),
        ('["a"]', "has no prompt"),
        ('{"prompt": "a", "checks": "Is there?"}', "no list of questions"),
        ('{"prompt": "a", "id": 1}\n{"prompt": "b", "id": "1"}', "have the id '1'"),
        (json.dumps({"prompt": "x" * 5000}), "longer than"),
        ("", "holds no prompt"),
    ],
)
def test_wrong_lines(tmp_path, content, words):
    file = tmp_path / "mine.jsonl"
    file.write_text(content)
    with pytest.raises(UserError, match=words):
        custom.tasks(data=file)


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="needs your prompts"):
        custom.tasks()
    with pytest.raises(UserError, match="Cannot read"):
        custom.tasks(data=tmp_path / "none.txt")
    (tmp_path / "picture.txt").write_bytes(b"\x89PNG\xff")
    with pytest.raises(UserError, match="is no text but a PNG picture"):
        custom.tasks(data=tmp_path / "picture.txt")


def test_a_limit_is_a_fixed_sample_of_each_category(tmp_path):
    file = tmp_path / "sorted.csv"
    rows = [f"prompt {number},{'ab'[number // 300]}" for number in range(600)]
    file.write_text("\n".join(["prompt,category", *rows]))
    twenty, forty = custom.tasks(20, data=file), custom.tasks(40, data=file)
    assert custom.tasks(20, data=file) == twenty
    assert {task.id for task in twenty} < {task.id for task in forty}
    for some, each in ((twenty, 10), (forty, 20), (custom.tasks(41, data=file), 20)):
        assert [sum(task.category == name for task in some) >= each for name in "ab"] == [True, True]
        assert [task.id for task in some] == sorted((task.id for task in some), key=lambda one: int(one.split("-")[1]))
    places = [int(task.prompt.split()[1]) % 300 for task in forty]
    assert min(places) < 60
    assert max(places) > 240  # the first ones are none: a sorted file would be judged by its beginning


def test_tables(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text('id,Prompt,category,checks\n7,a fox,c,"[""Is there a fox?""]"\n,"an owl, at night",,\n')
    first, second = custom.tasks(data=file)
    assert (first.id, first.category, first.metadata) == ("7", "c", {"checks": ["Is there a fox?"]})
    assert (second.id, second.prompt, second.metadata) == ("t-3", "an owl, at night", {})
    for content, words in [
        ("prompt,checks\na fox,Is there a fox?\n", "'checks' in line 2 of .* no list of questions"),
        ("prompt,id\na,1\nb,2\nc,1\n", r"id '1' \(line 2 and line 4\)"),
    ]:
        file.write_text(content)
        with pytest.raises(UserError, match=words):
            custom.tasks(data=file)
