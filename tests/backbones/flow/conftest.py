"""Each small pipeline is written once, and loaded from the disk by us and by diffusers itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from diffusers.utils import logging
from flow_pipelines import KINDS, Kind, Pair
from transformers.utils import logging as transformers_logging

from milr.backbones.flow.drawer import Drawer
from milr.backbones.flow.random_pipeline import make_pipeline


@pytest.fixture(scope="session", autouse=True)
def quiet():
    """diffusers and transformers write asides to the log that nobody reads here."""
    levels = logging.get_verbosity(), transformers_logging.get_verbosity()
    logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    yield
    logging.set_verbosity(levels[0])
    transformers_logging.set_verbosity(levels[1])


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Kind], Path]:
    @lru_cache
    def make(kind: Kind) -> Path:
        return make_pipeline(kind.family, tmp_path_factory.mktemp(str(kind)) / "flow", 3, kind.is_distilled, spread=2.0)

    return make


@pytest.fixture(scope="session")
def pair_of(folder_of: Callable[[Kind], Path]) -> Callable[..., Pair]:
    @lru_cache
    def load(kind: Kind, dtype: str = "float32") -> Pair:
        import diffusers

        directory = folder_of(kind)
        theirs = getattr(diffusers, kind.family.pipeline).from_pretrained(directory, dtype=getattr(torch, dtype))
        theirs.set_progress_bar_config(disable=True)
        return Pair(kind, Drawer.load(str(directory), device="cpu", dtype=dtype), theirs, directory)

    return load


@pytest.fixture(params=[kind for kind in KINDS if not kind.is_distilled], ids=str)
def pair(request: pytest.FixtureRequest, pair_of: Callable[..., Pair]) -> Pair:
    """One of each family."""
    return pair_of(request.param)


@pytest.fixture(params=KINDS, ids=str)
def any_pair(request: pytest.FixtureRequest, pair_of: Callable[..., Pair]) -> Pair:
    """Of each family also the distilled one."""
    return pair_of(request.param)
