"""Checkpoints that differ in what can go wrong: grouped queries, odd vocabularies, whose prompts are used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import JanusForConditionalGeneration

from milr.backbones.janus import JanusBackbone, load_janus
from milr.backbones.random_checkpoint import make_checkpoint, tiny

VARIANTS = {
    "templates": (tiny(), True),
    "grouped": (tiny(heads=6, kv_heads=2, vocabulary=401, codes=97, grid=3, layers=3), True),
    "single-kv-head, Janus-Pro's prompts": (tiny(heads=3, kv_heads=1, vocabulary=521, codes=53), False),
}


@dataclass(frozen=True)
class Pair:
    """Our backbone beside transformers' own model, from the same directory."""

    directory: Path
    ours: JanusBackbone
    theirs: Any


@pytest.fixture(scope="session", params=VARIANTS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    config, templates = VARIANTS[request.param]
    directory = make_checkpoint(
        config,
        tmp_path_factory.mktemp("variants") / "model",
        seed=3,
        dtype=torch.float32,
        spread=0.25,
        templates=templates,
        guidance=2.0,
        max_text_tokens=24,
    )
    theirs = JanusForConditionalGeneration.from_pretrained(directory, attn_implementation="eager")
    return Pair(directory, load_janus(str(directory), device="cpu", dtype="float32"), theirs.eval())
