"""The measuring is measured: that its numbers are there and hang together, not how fast this machine is."""

from __future__ import annotations

from pathlib import Path

import pytest

from milr.backbones.janus import JanusBackbone
from milr.backbones.speed import main, measure


def test_measure(tiny_backbone: JanusBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milr.backbones.speed.read_bandwidth", lambda device: 1e9)
    speed = measure(tiny_backbone, images=3, tokens=8)
    assert tiny_backbone.max_text_tokens == 24, "put back"
    assert speed.images == 3
    layers = 2 * (4 * 64 * 64 + 3 * 64 * 136 + 2 * 64)
    assert speed.text_token_bytes == 4 * (layers + 333 * 64)
    assert speed.image_share == pytest.approx(speed.image_token_bytes / speed.image_token_seconds / 1e9)
    assert speed.image_seconds == pytest.approx(16 * speed.image_token_seconds + speed.pixel_seconds)
    assert speed.peak_bytes > 10**7


def test_the_command(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tiny_checkpoint), "--device", "cpu", "--tokens", "2"]) == 0
    assert "image_token_seconds" in capsys.readouterr().out
    assert main(["janus-pro"]) == 2
    assert "did you mean 'janus-pro-" in capsys.readouterr().err
