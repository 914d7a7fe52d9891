"""What all critics with a model of their own share: loading it safely, batches that fit, and what it weighs.

Such a critic's file has a literal `MODELS` (repository -> bytes of its weights), so that `milr doctor --critic NAME`
can say what would be fetched. Its settings class inherits `ModelSettings`. Nothing heavy is imported at module level.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from milr import hub
from milr.drafts import UserError
from milr.settings import check, setting

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass(frozen=True)
class ModelSettings:
    """Settings of every critic that runs a model here."""

    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    dtype: str = setting("auto", "float32, bfloat16 or float16; auto: float32 on a CPU, bfloat16 on a GPU")
    batch: int = setting(8, "pictures at once; halved when memory runs out", low=1, high=1024)

    def __post_init__(self) -> None:
        check(self)

    def target(self) -> tuple[torch.device, torch.dtype]:
        """Device and number format that these settings mean here. Raises UserError."""
        device = hub.device_of(self.device)
        auto = "float32" if device.type == "cpu" else "bfloat16"
        return device, hub.dtype_of(auto if self.dtype == "auto" else self.dtype, device)


def folder_of(name_or_dir: str) -> str:
    """The local folder of a model: a directory itself, or a hub repository's copy. Raises UserError."""
    if os.path.isdir(name_or_dir):
        if not (Path(name_or_dir) / "config.json").is_file():
            raise UserError(f"{name_or_dir} is no checkpoint (it has no config.json); give the folder of one.")
        return name_or_dir
    if not hub.is_repository(name_or_dir):
        raise UserError(f"'{name_or_dir}' is neither a folder nor a hub id (owner/name).")
    return hub.fetch(name_or_dir)


def load_model(kind: Any, folder: str, device: torch.device, dtype: torch.dtype) -> Any:
    """A frozen transformers model of class `kind`, from safetensors alone and without remote code. Raises UserError.

    Weights that the file lacks would be random and silently spoil every score, so they are refused.
    """
    name = Path(folder).name
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
            f"{name} cannot be loaded as a {kind.__name__} ({str(error).strip().splitlines()[0][:200]})."
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(f"{name} is no complete {kind.__name__}: {missing[0]} and {len(missing) - 1} more are missing.")
    return model.to(device).eval().requires_grad_(False)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' progress bar, which would tear up milr's own."""
    from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            enable_progress_bar()


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
