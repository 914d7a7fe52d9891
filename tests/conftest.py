"""Small models of the true architecture, made once a session: no mocks, no network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from milr.backbones.janus import JanusBackbone, load_janus
from milr.backbones.random_checkpoint import make_checkpoint, tiny


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "real_weights: needs the weights of Janus-Pro-1B on this machine")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Janus with its own chat templates: 16 image tokens of 16 pixels, at most 24 text tokens."""
    directory = tmp_path_factory.mktemp("checkpoints") / "tiny"
    return make_checkpoint(
        tiny(), directory, dtype=torch.float32, spread=0.25, templates=True, guidance=2.0, max_text_tokens=24
    )


@pytest.fixture(scope="session")
def tiny_backbone(tiny_checkpoint: Path) -> JanusBackbone:
    return load_janus(str(tiny_checkpoint), device="cpu", dtype="float32")
