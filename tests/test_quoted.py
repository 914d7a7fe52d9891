"""Numbers in the prose of the docs are those of docs/data (tools/quoted.py)."""

import json
import sys

import pytest

from command import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import quoted

PAIR = {"a": "mine", "b": "rival", "axis": "calls", "at": 20, "difference": 0.041, "low": 0.02, "high": 0.062,
        "won": 9, "lost": 2, "p_mcnemar": 0.0654}  # fmt: skip
ROW = {"n": 200, "success": 0.98, "low": 0.95, "high": 0.99, "calls": 2.25,
       "by_calls": {"4": {"success": 0.9, "low": 0.85, "high": 0.94}}}  # fmt: skip
REPORT = {
    "calls": [4, 20], "baseline": "rival", "prompts": 100, "seeds": 2, "pairs": [PAIR],
    "searches": {"mine": {**ROW, "to_reach_baseline": {"budget": 7, "share_of_decoded_tokens": 0.537}},
                 "rival": {**ROW, "success": 0.9}},
}  # fmt: skip


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(quoted, "DATA", tmp_path)
    (tmp_path / "toy.json").write_text(json.dumps(REPORT))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("toy success mine", ".980 [.950, .990]"),
        ("toy success mine at=4", ".900 [.850, .940]"),
        ("toy failures mine", "4"),
        ("toy percent mine of base", "20 %"),
        ("toy failures base", "20"),
        ("toy points mine", "+4.1 [+2.0, +6.2]"),
        ("toy points rival mine", "-4.1 [-6.2, -2.0]"),
        ("toy won mine", "9"),
        ("toy won rival mine", "2"),
        ("toy p mine", "= .065"),
        ("toy mean mine calls", "2.2"),
        ("toy reach mine tokens", "54 %"),
        ("toy reach mine budget", "7"),
        ("toy configurations", "2"),
        ("toy configurations mi", "1"),
        ("toy prompts", "100"),
    ],
)
def test_a_mark_is_filled_from_the_data(data, asked, said):
    assert quoted.filled(f"it is <!-- n {asked} -->old<!-- /n -->.") == f"it is <!-- n {asked} -->{said}<!-- /n -->."


@pytest.mark.parametrize(
    "good", ["+4.1 [2.0, 6.2]", "-4.1 points [-6.2, -2.0]", ".980 [.950, .990]", "0.98 [0.95, 0.99]"]
)
def test_an_interval_of_the_data_is_known(data, good):
    assert quoted.unknown_intervals(f"ahead by {good}, at last") == []


@pytest.mark.parametrize("bad", ["+4.1 [+2.1, +6.2]", "-4.2 [-6.2, -2.0]", ".980 [.950, .991]"])
def test_an_interval_that_the_data_do_not_hold_is_found(data, bad):
    assert quoted.unknown_intervals(f"ahead by {bad}, at last") == [bad]


def test_tables_and_code_are_not_prose(data):
    assert quoted.unknown_intervals("| x | .1 [.0, .2] |\n```\n.1 [.0, .2]\n```\n") == []
