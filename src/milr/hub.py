"""Where the files of a published model are, and which device and number format to use.

Files come from the Hugging Face hub's cache, are fetched there if need be, and are read as safetensors and JSON only:
no pickle, no code of a repository. A repository is named owner/name, or owner/name@REVISION (a commit, tag or branch);
without one the commit stays what it was when it was fetched first, whatever is uploaded under the name later.
"""

from __future__ import annotations

import hashlib
import os
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
    """Whether this reads like owner/name or owner/name@REVISION on the hub."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w.-]+(/[\w.-]+)*)?", name) is not None


def split_revision(name: str) -> tuple[str, str | None]:
    """owner/name and the revision after an @, None where there is none."""
    repository, _, revision = name.partition("@")
    return repository, revision or None


def cached(name: str) -> str | None:
    """The folder of a repository's snapshot in the cache if its weights are there, else None. No network."""
    repository, revision = split_revision(name)
    if revision is not None or cached_commit(name) is not None:
        commit = cached_commit(name)
        snapshots = [] if commit is None else [_cache_of(repository) / "snapshots" / commit]
    else:
        folder = _cache_of(repository) / "snapshots"
        snapshots = sorted(folder.glob("*"), key=lambda path: path.stat().st_mtime) if folder.is_dir() else []
    complete = [path for path in snapshots if any(path.glob("*.safetensors"))]
    return str(complete[-1]) if complete else None


def cached_commit(name: str) -> str | None:
    """The commit that the cache holds for a name (of `main` where it names no revision), None where it holds none."""
    repository, revision = split_revision(name)
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision if (_cache_of(repository) / "snapshots" / revision).is_dir() else None
    try:
        said = (_cache_of(repository) / "refs" / (revision or "main")).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return said if re.fullmatch(r"[0-9a-f]{40}", said) else None


def commit_of(name: str) -> str:
    """The commit that a hub id means here: the cache's, else what the hub says; '' where neither tells."""
    if (commit := cached_commit(name)) is not None:
        return commit
    repository, revision = split_revision(name)
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    try:
        from huggingface_hub import HfApi

        return HfApi().model_info(repository, revision=revision, timeout=20).sha or ""
    except Exception:  # no network, no such model, a proxy: `fetch` says so, with what to do
        return ""


def content_of(name_or_dir: str) -> str:
    """What a model's name stands for, in a word that changes with it: the commit of a hub id, a hash of a folder's
    files; '' where nobody here can tell."""
    if os.path.isdir(name_or_dir):
        return f"folder {_folder_hash(Path(name_or_dir))}"
    commit = commit_of(name_or_dir) if is_repository(name_or_dir) else ""
    return f"commit {commit}" if commit else ""


SAMPLES, SAMPLE = 64, 2**16  # of a large file: so many pieces of so many bytes, evenly spread


def _folder_hash(folder: Path) -> str:
    """Of names, sizes and contents of the files that a model is read from. Of a large file its beginning (the names and
    shapes of the tensors), its end and samples between: other weights differ nearly everywhere."""
    digest = hashlib.sha256()
    for file in sorted({file for pattern in FILES for file in folder.glob(pattern) if file.is_file()}):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as stream:
            if size <= SAMPLES * SAMPLE:
                digest.update(stream.read())
                continue
            for number in range(SAMPLES):
                stream.seek((size - SAMPLE) * number // (SAMPLES - 1))
                digest.update(stream.read(SAMPLE))
    return digest.hexdigest()[:16]


def _cache_of(repository: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def name_of(folder: str) -> str:
    """How a model's folder is called in a sentence: owner/name for a snapshot in the hub's cache, else its own name."""
    path = Path(folder)
    repository = path.parent.parent.name
    if path.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/")
    return path.resolve().name


def other_dtype(dtype: str, option: str) -> str:
    """What to do about NaN, as the end of a sentence; `option` is how a dtype is given, '--dtype ' or 'dtype='."""
    if dtype == "float16":
        return f" in float16, whose range is small; use {option}bfloat16 or {option}float32"
    if dtype == "float32":
        return " even in float32: its weights are broken; fetch them again"
    return f" in {dtype}; use {option}float32, and if that does not help, fetch its weights again"


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
