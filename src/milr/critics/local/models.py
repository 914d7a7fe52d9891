"""What all critics with a model of their own share: loading it safely, batches that fit, and what it weighs.

Such a critic's file has a literal `MODELS` (repository -> bytes of its weights), so that `milr doctor --critic NAME`
can say what would be fetched. Its settings class inherits `ModelSettings`. Nothing heavy is imported at module level.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from milr import hub, threads
from milr.drafts import UserError
from milr.registry import shorten
from milr.settings import check, setting

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass(frozen=True)
class ModelSettings:
    """Settings of every critic that runs a model here."""

    device: str = setting("auto", hub.DEVICE_HELP)
    dtype: str = setting("auto", "float32, bfloat16 or float16; auto: float32 on a CPU, bfloat16 on a GPU")
    batch: int = setting(8, "pictures at once; halved when memory runs out", low=1, high=1024)

    def __post_init__(self) -> None:
        check(self)
        hub.check_device_name(self.device)
        if self.dtype not in ("auto", *hub.DTYPES):
            raise UserError(f"Unknown dtype '{shorten(self.dtype)}'; use auto, {', '.join(hub.DTYPES)}.")

    def models(self, published: Mapping[str, int]) -> Sequence[str]:
        """Hub ids and folders of the models that these settings load: a critic's MODELS, or what a user put in their
        place."""
        return [str(getattr(self, item.name)) for item in fields(self) if item.default in published]

    def loads(self, published: Mapping[str, int]) -> Mapping[str, int]:
        """Those of them that come from the hub, with the bytes of their weights."""
        return downloads(self.models(published), published)

    def target(self) -> tuple[torch.device, torch.dtype]:
        """Device and number format that these settings mean here. Raises UserError; ask before anything is fetched."""
        device = hub.device_of(self.device)
        auto = hub.auto_dtype(device, is_small=device.type == "cpu")
        return device, hub.dtype_of(auto if self.dtype == "auto" else self.dtype, device)


def downloads(models: Sequence[str], published: Mapping[str, int]) -> dict[str, int]:
    """Those that are hub repositories, not folders, with the bytes of their weights (0: nobody here knows)."""
    return {
        name: published.get(hub.split_revision(name)[0], 0)
        for name in models
        if hub.is_repository(name) and not os.path.isdir(name)
    }


def folder_of(name_or_dir: str, weights: bool = True) -> str:
    """The local folder of a model: a directory itself, or a hub repository's copy, whole. Raises UserError."""
    if os.path.isdir(name_or_dir):
        if not (Path(name_or_dir) / "config.json").is_file():
            raise UserError(f"{name_or_dir} is no checkpoint (it has no config.json); give the folder of one.")
        hub.check_files(name_or_dir, weights)
        return name_or_dir
    if not hub.is_repository(name_or_dir):
        raise UserError(f"'{name_or_dir}' is neither a folder nor a hub id (owner/name).")
    folder = hub.fetch(name_or_dir)
    hub.check_files(folder, weights)
    return folder


def load_model(kind: Any, folder: str, device: torch.device, dtype: torch.dtype) -> Any:
    """A frozen transformers model of class `kind`, from safetensors alone and without remote code. Raises UserError.

    Weights that the file lacks would be random and silently spoil every score, so they are refused.
    """
    name = hub.name_of(folder)
    wanted, found = getattr(getattr(kind, "config_class", None), "model_type", None), _model_type(folder)
    if None not in (wanted, found) and wanted != found:
        raise UserError(f"{name} is a model of the type '{found}', and '{wanted}' is needed; name another one.")
    try:
        with _quietly():
            model, info = kind.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True,
                trust_remote_code=False,
            )  # fmt: skip
    except OSError as error:
        raise UserError(f"{name} has no weights as safetensors; convert them, or choose another model.") from error
    except Exception as error:  # whatever a broken file makes of it
        raise UserError(
            f"{name} cannot be loaded as a {kind.__name__} ({shorten(str(error), 200)}); fetch it again or name "
            "another one."
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(f"{name} is no complete {kind.__name__}: {missing[0]} and {len(missing) - 1} more are missing.")
    threads.fit(threads.parameters_of(model), device.type)
    return model.to(device).eval().requires_grad_(False)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' progress bar, which would tear up milr's own, and its reports: what they say of missing
    weights is an error here."""
    from transformers.utils import logging as reports

    shown, verbosity = reports.is_progress_bar_enabled(), reports.get_verbosity()
    reports.disable_progress_bar()
    reports.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        reports.set_verbosity(verbosity)
        if shown:
            reports.enable_progress_bar()


def _model_type(folder: str) -> str | None:
    """What a checkpoint's config.json calls its architecture, if it says so."""
    try:
        said = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    found = said.get("model_type") if isinstance(said, dict) else None
    return found if isinstance(found, str) else None


def unit_vectors(features: Any, name: str) -> torch.Tensor:
    """[B, D] float32 of length 1 from the features of the CLIP of this name: transformers 5 gives an object with the
    projection in it. Raises UserError where they are no numbers."""
    projected = getattr(features, "pooler_output", features)
    dtype = str(projected.dtype)
    projected = projected.float()
    length: torch.Tensor = projected.norm(dim=-1, keepdim=True)
    return sound(projected / length, name, dtype)


def sound(numbers: torch.Tensor, name: str, dtype: str = "") -> torch.Tensor:
    """What the model of this name computed, as it is. Raises UserError where it holds NaN or an overflow: a score made
    of that would say that nothing was found, or that the picture is worth nothing. (-inf is a mask, and sound.)

    Looks at the numbers, which on a GPU waits for them: ask once a batch.
    """
    if not bool((numbers < math.inf).all()):  # False for NaN
        kind = (dtype or str(numbers.dtype)).removeprefix("torch.")
        raise UserError(f"The critic's model {name} computes NaN{hub.other_dtype(kind, 'dtype=')}.")
    return numbers


class Frozen:
    """A model that is loaded once, with what its runs need: device, number format, batch, its folder and name."""

    def __init__(self, kind: Any, name_or_dir: str, settings: ModelSettings) -> None:
        """`kind` is a class of transformers. Raises UserError."""
        self._device, self._dtype = settings.target()
        self._folder = folder_of(name_or_dir)
        self._name = hub.name_of(self._folder)
        self._batch = settings.batch
        self._model = load_model(kind, self._folder, self._device, self._dtype)

    def _sound(self, numbers: torch.Tensor) -> torch.Tensor:
        """See `sound`."""
        return sound(numbers, self._name, str(self._dtype))


def in_batches(run: Callable[[Sequence[Item]], Sequence[Found]], items: Sequence[Item], batch: int) -> list[Found]:
    """`run` over items in batches of at most `batch`, halved for good whenever memory runs out."""
    import torch

    found: list[Found] = []
    while len(found) < len(items):
        some = items[len(found) : len(found) + batch]
        try:
            found += run(some)
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
            batch = max(1, min(batch, len(some)) // 2)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    return found
