"""Where the files of a published model are, and which device and number format to use.

Files come from the Hugging Face hub's cache, are fetched there if need be, and are read as safetensors and JSON only:
no pickle, no code of a repository.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from milr.drafts import UserError

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")
FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.safetensors")  # configuration, tokenizer, weights


def fetch(repository: str, patterns: Sequence[str] = FILES, ignore: Sequence[str] = ()) -> str:
    """The local copy of a hub repository (owner/name), fetched if need be. Raises UserError where that fails."""
    from huggingface_hub import errors, snapshot_download

    try:
        return str(snapshot_download(repository, allow_patterns=list(patterns), ignore_patterns=list(ignore)))
    except errors.GatedRepoError as error:
        raise UserError(
            f"{repository} wants its licence accepted first: do so on its page, then run 'hf auth login'."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"There is no model '{repository}' on the Hugging Face hub; check the name.") from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"{repository} is not on this machine and could not be fetched from the Hugging Face hub; check "
            "the network, or give the directory of a copy."
        ) from error


def is_repository(name: str) -> bool:
    """Whether this reads like owner/name on the hub."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) is not None


def cached(repository: str) -> str | None:
    """The folder of a repository's newest snapshot in the cache if its weights are there, else None. No network."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "snapshots"
    snapshots = sorted(folder.glob("*"), key=lambda path: path.stat().st_mtime) if folder.is_dir() else []
    complete = [path for path in snapshots if any(path.glob("*.safetensors"))]
    return str(complete[-1]) if complete else None


def device_of(device: str) -> torch.device:
    """auto, cpu, cuda or cuda:N as a device that is there. Raises UserError."""
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", device)
    if not match:
        raise UserError(f"Unknown device '{device}'; use auto, cpu, cuda or cuda:N.")
    if device != "cpu":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(match[1] or 0) >= count:
            raise UserError(f"There is no device '{device}' ({count} CUDA devices are usable); use cpu.")
    return torch.device(device)


def dtype_of(dtype: str, device: torch.device) -> torch.dtype:
    """float32, bfloat16 or float16. Raises UserError."""
    import torch

    if dtype not in DTYPES:
        raise UserError(f"Unknown dtype '{dtype}'; use auto, {', '.join(DTYPES)}.")
    if dtype == "float16" and device.type == "cpu":
        raise UserError("float16 needs a GPU; on the CPU use bfloat16 or float32.")
    found = getattr(torch, dtype)
    assert isinstance(found, torch.dtype)
    return found
