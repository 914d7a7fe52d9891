"""docs/performance.md says what its data say, and tells measured from reckoned."""

import importlib.util
import json

import pytest

from command import ROOT


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("performance", ROOT / "tools" / "performance.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_says_what_its_data_say(tool):
    assert tool.main(["--check"]) == 0


def test_a_page_that_says_something_else_is_noticed(tool, tmp_path, monkeypatch, capsys):
    page = tmp_path / "performance.md"
    page.write_text(tool.PAGE.read_text().replace("naive loop | drafts", "naive loop | draughts"))
    monkeypatch.setattr(tool, "PAGE", page)
    assert tool.main(["--check"]) == 1
    assert "run python tools/performance.py" in capsys.readouterr().err
    assert tool.main([]) == 0
    assert tool.main(["--check"]) == 0


def test_what_no_gpu_measured_is_said_to_be_not_measured(tool):
    page = "<!-- performance gpu -->\n<!-- end -->\n<!-- performance large -->\n<!-- end -->\n"
    assert tool.filled(page, {}, []).count("not measured") == 2
    gpu = [
        {"size": "7B", "what": "whole pictures", "images": 1, "image_token_ms": 5.0, "share": 0.85},
        {"size": "7B", "what": "whole pictures", "images": 64, "image_token_ms": 16.0},
        {"size": "7B", "what": "transformers generate", "images": 64, "image_token_ms": 1.0},
        {"size": "1b", "what": "whole pictures", "images": 1, "image_token_ms": 2.0},
        {"size": "1b", "what": "memory", "images": 1, "peak_gb": 5.0},
    ]
    found = tool.filled(page, {}, gpu)
    assert "| 7B | 1 | 5 ms, share .85 | not measured |" in found
    assert "| 1B | 1 | 2 ms | not measured |" in found
    assert "| 7B | 64 | 16 ms | 1 ms |" in found
    # By hand: 676 tokens x 16 ms / 64 + 6.6 ms = 0.1756 s; 11,060 of them are 32 minutes, 20 million 40.6 days.
    assert "= 0.176 s | reckoned" in found
    assert "| 553 prompts x 20 calls | 32 minutes on one GPU | reckoned" in found
    assert "| 1,000,000 prompts x 20 calls | 41 GPU days | reckoned" in found
    assert "16 ms, 64 images at once (whole pictures) | measured |" in found


def test_a_name_that_is_no_table_is_an_error(tool):
    with pytest.raises(KeyError):
        tool.filled("<!-- performance nothing -->\n<!-- end -->", json.loads(tool.DATA.read_text()), [])
