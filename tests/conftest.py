"""Small models of the true architecture, made once a session: no mocks, no network."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported, which transformers does

from milr.backbones.janus import JanusBackbone, load_janus
from milr.backbones.random_checkpoint import make_checkpoint, tiny

# A gate is green or red for the same reasons everywhere: hypothesis tries the same examples each time, however slowly.
# `make test-slow` looks for new ones (HYPOTHESIS_PROFILE=search).
SLOW_IS_FINE = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow], "print_blob": True}
hypothesis.settings.register_profile("gate", derandomize=True, database=None, **SLOW_IS_FINE)
hypothesis.settings.register_profile("search", **SLOW_IS_FINE)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "gate"))


@pytest.fixture(scope="session", autouse=True)
def nothing_is_measured(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No result may depend on how fast this machine is, and nothing is left in the user's cache."""
    os.environ.setdefault("MILR_WIDTH", "1")
    os.environ["MILR_CACHE"] = str(tmp_path_factory.mktemp("milr-cache"))


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
