"""Where the files of a published model are, and which device and number format to use.

Files come from the Hugging Face hub's cache, are fetched there if need be, and are read as safetensors and JSON only:
no pickle, no code of a repository. A repository is named owner/name, or owner/name@REVISION (a commit, tag or branch);
without one the commit stays what it was when it was fetched first, whatever is uploaded under the name later.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from milr import network
from milr.drafts import UserError

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")
FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.safetensors")  # configuration, tokenizer, weights


def fetch(name: str, patterns: Sequence[str] = FILES, ignore: Sequence[str] = ()) -> str:
    """The local copy of a hub repository, fetched if need be: of the revision after an @, else of the commit that the
    cache holds for its name. Raises UserError where that fails, or where the copy is not whole."""
    from huggingface_hub import errors, snapshot_download

    repository, revision = split_revision(name)
    wanted = cached_commit(name) or revision
    try:
        folder = str(
            snapshot_download(repository, revision=wanted, allow_patterns=list(patterns), ignore_patterns=list(ignore))
        )
    except errors.GatedRepoError as error:
        raise UserError(
            f"{repository} wants its licence accepted first: do so on its page, then run 'hf auth login'."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"There is no revision '{wanted}' of {repository} on the Hugging Face hub.") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"There is no model '{repository}' on the Hugging Face hub; check the name.") from error
    except Exception as error:  # the net, and whatever a variable that cannot be read makes of the hub's client
        there = _from_cache(name)
        if there is None:
            raise _unreachable(repository, error) from error
        folder = there
    check_files(folder)
    return folder


def _from_cache(name: str) -> str | None:
    """The cache's folder for a name, whole or not; None where there is none."""
    commit = cached_commit(name)
    folder = _cache_of(split_revision(name)[0]) / "snapshots" / str(commit)
    return str(folder) if commit is not None and folder.is_dir() else None


def _unreachable(repository: str, error: Exception) -> UserError:
    """Why the hub could not be reached: a variable, a certificate, else the network."""
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).netloc
    if not constants.HF_HUB_OFFLINE:
        try:
            network.check(constants.ENDPOINT)
        except UserError as complaint:
            return complaint
        if (said := network.certificate_complaint(error, host)) is not None:
            return UserError(said)
        if (variable := network.unreadable_exemption()) is not None:
            return UserError(
                f"{repository} could not be fetched: the hub's client cannot read the variable {variable} "
                f"({type(error).__name__}); take addresses with colons out of it."
            )
    return UserError(
        f"{repository} is not on this machine and could not be fetched from the Hugging Face hub; check "
        "the network, or give the directory of a copy."
    )


def again(folder: str) -> str:
    """How to get the files of a model's folder anew, as the end of a sentence."""
    path = _whole(Path(folder))
    if _is_snapshot(path):
        return f"fetch it again: hf download {name_of(str(path))} --revision {path.name} --force-download"
    return "copy or convert it again"


def check_files(folder: str, weights: bool = False) -> None:
    """Raise UserError where a model's files are not whole: a download that was broken off, a git-LFS pointer, an empty
    file, a shard that is missing, a table of shards that is wrong; with `weights`, also where there are none at all.

    Reads no weights, only the headers of their files: transformers would fill what is missing with random numbers.
    """
    path, name = Path(folder), name_of(folder)
    files = sorted({file for pattern in FILES for file in path.glob(pattern)})
    for file in files:
        if not file.exists():  # a link into the hub's cache whose file is not there
            raise _incomplete(folder, f"{file.name} is missing")
        with file.open("rb") as stream:
            begins = stream.read(len(POINTER))
        if begins == POINTER:
            mend = "run 'git lfs pull' there" if (path / ".git").exists() else again(folder)
            raise UserError(f"{file.name} of {name} is a git-LFS pointer and not the file itself; {mend}.")
        if not begins and (file.suffix in NEVER_EMPTY or file.name in TOKENIZERS):
            raise UserError(f"{file.name} of {name} is empty; {again(folder)}.")
    for index in path.glob("*.safetensors.index.json"):
        _check_shards(path, index, name)
    for file in path.glob("*.safetensors"):
        _tensors(file, name)
    if weights and not any(file.suffix == ".safetensors" for file in files):
        whole = _whole(path)
        if _is_snapshot(whole) and ".safetensors" in _listed(whole):
            raise _incomplete(folder, "its weights are missing")
        other = next((file.name for end in ("*.bin", "*.pt", "*.pth", "*.gguf") for file in path.glob(end)), None)
        found = f" but as {other}, from which nothing is read" if other else ""
        raise UserError(f"{name} has no weights as safetensors{found}; convert them, or choose another model.")


def _whole(path: Path) -> Path:
    """The model's folder that holds this one, where this is a part of a pipeline (diffusers' model_index.json)."""
    return path.parent if (path.parent / PIPELINE).is_file() else path


PIPELINE = "model_index.json"  # stands where a model is a folder of folders, one a part
TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")
POINTER = b"version https://git-lfs"
NEVER_EMPTY = (".json", ".safetensors", ".model")


def check_tokenizer(folder: str) -> None:
    """Raise UserError where a tokenizer's words are missing: transformers would make one without words, and every score
    would be noise."""
    if not any((Path(folder) / file).is_file() for file in TOKENIZERS):
        raise UserError(
            f"transformers cannot read the files of {name_of(folder)} (no tokenizer is among them: tokenizer.json is "
            f"missing); {again(folder)}, or name a complete checkpoint."
        )


def _is_snapshot(path: Path) -> bool:
    """Whether a folder is one of the hub's cache."""
    return path.parent.name == "snapshots"


def _listed(snapshot: Path) -> str:
    """What the hub says that a snapshot holds, as text; where nobody asked it, or a file is on its way, weights."""
    tree = snapshot.parent.parent / "trees" / f"{snapshot.name}.json"
    if any((snapshot.parent.parent / "blobs").glob("*.incomplete")) or not tree.is_file():
        return "model.safetensors"
    return tree.read_text(encoding="utf-8", errors="replace")


def _incomplete(folder: str, what: str) -> UserError:
    """A download that was broken off goes on where it stopped."""
    whole = _whole(Path(folder))
    if not _is_snapshot(whole):
        return UserError(f"{name_of(folder)} is not complete ({what}); copy it again.")
    command = f"hf download {name_of(str(whole))} --revision {whole.name}"
    return UserError(f"The download of {name_of(folder)} is not complete ({what}); fetch it again: {command}")


def _check_shards(path: Path, index: Path, name: str) -> None:
    """Raise UserError where a table of shards names files that are not there, or tensors that they do not hold."""
    folder = str(path)
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = {str(file) for file in places.values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index.name} of {name} is no table of shards; {again(folder)}.") from error
    for shard in sorted(shards):
        if Path(shard).name != shard or not (path / shard).is_file():
            raise _incomplete(folder, f"{Path(shard).name} is missing")
        held = _tensors(path / shard, name)
        lost = sorted(tensor for tensor, file in places.items() if file == shard and tensor not in held)
        if lost:
            raise UserError(
                f"{index.name} of {name} says that {shard} holds {lost[0]}, which it does not; {again(folder)}."
            )


def _tensors(file: Path, name: str) -> set[str]:
    """The names of the tensors in a file of weights, by its header. Raises UserError where it is cut or none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as tensors:
            return set(tensors.keys())
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"The weights of {name} cannot be read ({file.name} is cut or broken: {str(error).strip()[:100]}); "
            f"{again(str(file.parent))}."
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
    complete = [path for path in snapshots if any(path.glob("*/" * (path / PIPELINE).is_file() + "*.safetensors"))]
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
    places = ("", "*/") if (folder / PIPELINE).is_file() else ("",)
    patterns = [place + pattern for place in places for pattern in FILES]
    for file in sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder).as_posix()} {size}\n".encode())
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
    """How a model's folder is called in a sentence: owner/name for a snapshot in the hub's cache, else its own name; a
    part of a pipeline after the pipeline."""
    path = Path(folder)
    if _whole(path) != path:
        return f"{name_of(str(path.parent))}/{path.name}"
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


TESTED = ("cpu", "cuda")  # kinds of devices on which milr's own tests were run; others draw with the plain path
KINDS = (*TESTED, "mps", "xpu", "hpu", "mtia", "maia", "npu", "mlu", "musa", "xla", "privateuseone")  # torch's words
DEVICE_HELP = "auto, cpu, or what torch has here: cuda, cuda:N, mps, xpu or another"


def check_device_name(device: str) -> None:
    """Raise UserError for what is no device's name on any machine; needs no torch to say so."""
    kind, colon, index = device.partition(":")
    if device != "auto" and (kind not in KINDS or (colon and not re.fullmatch(r"[0-9]{1,3}", index))):
        raise UserError(f"Unknown device {device[:60]!r}; give {DEVICE_HELP}.")


def devices() -> tuple[str, ...]:
    """The devices that torch reports on this machine, the processor first."""
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    found = ["cpu"]
    for kind in dict.fromkeys(("cuda", "xpu", "mps", *([accelerator.type] if accelerator is not None else ()))):
        module = getattr(torch, kind, None)
        if module is not None and module.is_available():
            found += [kind] if kind == "mps" else [f"{kind}:{index}" for index in range(module.device_count())]
    return tuple(found)


def device_of(device: str) -> torch.device:
    """'auto' (a CUDA device if there is one, else the processor), or a device that torch reports. Raises UserError."""
    import torch

    check_device_name(device)
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    there = devices()
    if device in there or f"{device}:0" in there or (device == "mps:0" and "mps" in there):
        return torch.device(device)
    raise UserError(f"There is no device {device!r} on this machine; torch reports {', '.join(there)}.")


def _holds(device: torch.device, dtype: str) -> bool:
    """Whether a device computes in a number format."""
    import torch

    try:
        torch.ones(1, dtype=getattr(torch, dtype), device=device).add(1)
    except (TypeError, RuntimeError):  # either, by the kind of device
        return False
    return True


def auto_dtype(device: torch.device, is_small: bool) -> str:
    """float32 for small models; for others bfloat16, or float16 on a device that lacks that (macOS before 14)."""
    if is_small:
        return "float32"
    return "bfloat16" if device.type in TESTED or _holds(device, "bfloat16") else "float16"


def dtype_of(dtype: str, device: torch.device) -> torch.dtype:
    """float32, bfloat16 or float16. Raises UserError."""
    import torch

    if dtype not in DTYPES:
        raise UserError(f"Unknown dtype '{dtype}'; use auto, {', '.join(DTYPES)}.")
    if dtype == "float16" and device.type == "cpu":
        raise UserError("float16 needs a GPU; on the CPU use bfloat16 or float32.")
    if device.type not in TESTED and not _holds(device, dtype):
        raise UserError(
            f"{device} does not compute in {dtype}; use {' or '.join(kind for kind in DTYPES if kind != dtype)}."
        )
    found = getattr(torch, dtype)
    assert isinstance(found, torch.dtype)
    return found
