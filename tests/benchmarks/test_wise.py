import json

import pytest

from milr.benchmarks import wise, wise_verified
from milr.drafts import UserError


def line(number, **more):
    return {"Prompt": f"prompt {number}", "Explanation": "the answer", "Category": "c", "Subcategory": "s",
            "prompt_id": number, **more}  # fmt: skip


@pytest.fixture
def copy(tmp_path):
    ids = (1, 400, 401, 520, 521, 567, 568, 700, 701, 760, 761, 800, 801, 900, 901, 1000)
    (tmp_path / "a.json").write_text(json.dumps([line(number) for number in ids[8:]]))
    (tmp_path / "b.json").write_text(json.dumps([line(number) for number in ids[:8]]))
    return tmp_path


def test_categories_go_by_id(copy):
    legacy = {task.metadata["prompt_id"]: task.category for task in wise.tasks(data=copy)}
    assert [legacy[number] for number in (1, 400, 401, 567, 568, 700, 701, 801, 901, 1000)] == [
        "culture", "culture", "time", "time", "space", "space", "biology", "physics", "chemistry", "chemistry",
    ]  # fmt: skip
    verified = {task.metadata["prompt_id"]: task.category for task in wise_verified.tasks(data=copy)}
    assert [verified[number] for number in (400, 520, 521, 760, 761, 800, 900)] == [
        "culture", "time", "space", "biology", "physics", "physics", "chemistry",
    ]  # fmt: skip
    assert [task.id for task in wise.tasks(data=copy)][:2] == ["wise-1", "wise-400"]
    of_time = [task.id for task in wise.tasks(None, 0, ("time",), data=copy)]
    assert of_time == ["wise-401", "wise-520", "wise-521", "wise-567"]
    assert [one for one in of_time if one in {task.id for task in wise.tasks(2, 0, ("time",), data=copy)}] == [
        task.id for task in wise.tasks(2, 0, ("time",), data=copy)
    ]


def test_wiscore():  # (.7 x 2 + .2 x 1 + .1 x 0) / 2
    assert wise.score(2, 1, 0) == pytest.approx(0.8)
    assert wise.score(2, 2, 2) == pytest.approx(1)
    with pytest.raises(ValueError, match="between 0 and 2"):
        wise.score(3, 0, 0)


def test_weights_of_the_categories():
    only = dict.fromkeys(wise.CATEGORIES, 0.0)
    shares = [wise.overall({**only, name: 1.0}) for name in wise.CATEGORIES]
    assert shares == pytest.approx([0.4, 0.167, 0.133, 0.1, 0.1, 0.1])
    shares = [wise_verified.overall({**only, name: 1.0}) for name in wise.CATEGORIES]
    assert shares == pytest.approx([0.4, 0.12, 0.12, 0.12, 0.12, 0.12])
    assert wise.overall({"time": 0.5}) == 0.5  # of what was run


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is no JSON"),
        ("{}", "Line 1 of .* has no prompt"),
        ('[{"Prompt": "x"}]', r"Entry 1 \(line 1\) of .* is no prompt of WISE"),
        ('[{"Prompt": "x", "prompt_id": 1001}]', "is no prompt of WISE"),
        ('[{"Prompt": "x", "prompt_id": true}]', "is no prompt of WISE"),
        ('[{"Prompt": "x", "prompt_id": 1.5}]', "is no prompt of WISE"),
        (json.dumps([line(7), line(7)]), "has a prompt_id twice"),
    ],
)
def test_a_file_that_is_not_wise(tmp_path, content, words):
    file = tmp_path / "x.json"
    file.write_text(content)
    with pytest.raises(UserError, match=words):
        wise.tasks(data=file)


def test_no_copy(tmp_path):
    with pytest.raises(UserError, match=r"may not ship.*--data"):
        wise.tasks()
    with pytest.raises(UserError, match="no JSON file"):
        wise_verified.tasks(data=tmp_path)
    with pytest.raises(UserError, match="Cannot read"):
        wise.tasks(data=tmp_path / "none.json")


def test_each_protocol_asks_for_its_own_files(tmp_path):
    with pytest.raises(UserError, match="of the verified JSON files"):
        wise_verified.tasks(data=tmp_path)
    with pytest.raises(UserError, match="of the JSON files"):
        wise.tasks(data=tmp_path)
