"""How files get onto a disk whole, and stay there when the power goes: for runs, results, replies that were paid for.

What must work is the write. What makes a file only nicer or safer (its permissions, the fsync of its folder, a lock) is
tried, and where a file system knows no such thing the work goes on: network and FUSE file systems, bucket mounts and
Windows each refuse another of these. This file knows nothing of what is in the files.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import socket
from pathlib import Path

from milr.drafts import UserError

# These say that data may be lost. Any other refusal to sync a folder says that it cannot be done here.
LOSSES = {errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.EMFILE, errno.ENFILE}
UNKNOWN_CALL = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
NO_RENAME = UNKNOWN_CALL | {errno.EXDEV, errno.EPERM}
LONGEST_HINT = 16  # characters of a file's name in that of its temporary one: together they must not be too long


def write_atomically(file: Path, content: bytes) -> None:
    """Write under a temporary name beside `file`, then rename: under the final name it is whole or not there. It is
    on disk, name and all, when this returns. Raises UserError where it cannot be written."""
    try:
        for folder in write_whole(file, content):
            sync_folder(folder)
    except OSError as error:
        raise UserError(
            f"Cannot write {file} ({error.strerror}); finished files are kept, nothing is half written."
        ) from error


def write_whole(file: Path, content: bytes) -> set[Path]:
    """`write_atomically`, but for the names: they survive a power cut once the folders that this returns are synced
    (many files may share that). Raises OSError."""
    changed = {file.parent, *make_folder(file.parent)}
    temporary = file.with_name(f".{file.name[:LONGEST_HINT]}.{secrets.token_hex(6)}.tmp")
    # Not tempfile: its files are for their owner alone, and a chmod is refused by some mounts.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as stream:
            _fill(stream.fileno(), content)
        try:
            os.replace(temporary, file)
        except OSError as error:
            if error.errno not in NO_RENAME:
                raise
            _write_in_place(file, content)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
    return changed


def make_folder(folder: Path) -> set[Path]:
    """Make a folder, and those above it that are missing. Returns the folders that hold new names now, to be synced."""
    missing = []
    for path in (folder, *folder.parents):
        if path.exists():
            break
        missing.append(path)
    folder.mkdir(parents=True, exist_ok=True)
    return {path.parent for path in missing}


def sync(descriptor: int) -> None:
    """What was written to this file is on disk when this returns, where its file system can promise that."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNKNOWN_CALL:
            raise


def sync_folder(folder: Path) -> None:
    """The names in this folder are on disk when this returns, where its file system can promise that."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno in LOSSES:
            raise
        return  # Windows, or a folder that one may write to and not list
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in LOSSES:
            raise
    finally:
        os.close(descriptor)


class Lock:
    """One writer at a time, by the system's lock on a file that is open. The system lets go of it when the process
    ends, however it ends.

    Where a file system has no locks (NFS without lockd, Lustre without flock, some FUSE), `note_file` says who writes.
    That keeps others of this machine out as long as the process lives; of another machine nobody here can know.
    """

    def __init__(self, note_file: Path) -> None:
        self.note_file = note_file
        self._is_ours = False

    def take(self, descriptor: int) -> str:
        """Take the lock. Returns what the user should know ('' as a rule). Raises BlockingIOError where another process
        holds it."""
        try:
            import fcntl
        except ImportError:  # Windows
            return ""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # EWOULDBLOCK, the one answer that speaks of another process
            raise
        except OSError as error:
            return self._take_by_note(error.strerror or str(error))
        return ""

    def release(self) -> None:
        """Let go of what `take` left behind; a lock of the system's goes when its file is closed."""
        if self._is_ours:
            with contextlib.suppress(OSError):
                self.note_file.unlink()

    def _take_by_note(self, why: str) -> str:
        other = self._read()
        here, pid = socket.gethostname(), os.getpid()
        if other.get("host") == here and other.get("process") != pid and _is_running(other):
            raise BlockingIOError(errno.EWOULDBLOCK, "another process writes")
        mine = {"host": here, "process": pid, "began": _beginning(pid)}
        with contextlib.suppress(OSError):
            self.note_file.write_text(json.dumps(mine) + "\n", encoding="utf-8")
            self._is_ours = True
        last = f" (the last one here was process {other.get('process')} on {other['host']})" if "host" in other else ""
        return (
            f"The file system of {self.note_file.parent} has no locks ({why}), so see to it yourself that no other run "
            f"writes there{last}."
        )

    def _read(self) -> dict[str, object]:
        try:
            found = json.loads(self.note_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def _fill(descriptor: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]
    sync(descriptor)


def _write_in_place(file: Path, content: bytes) -> None:
    """For file systems without renames. What could not be written whole is removed again."""
    try:
        with open(file, "wb") as stream:
            _fill(stream.fileno(), content)
    except OSError:
        with contextlib.suppress(OSError):
            file.unlink()
        raise


def _is_running(other: dict[str, object]) -> bool:
    """Whether the process of a note still runs: one with its number that began at another time is not it."""
    pid = other.get("process")
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's, but there
        pass
    began = _beginning(pid)
    return began != "over" and (began == "" or began == other.get("began"))


def _beginning(pid: int) -> str:
    """When a process began, in the system's own count; 'over' for one that has ended and was not waited for, '' where
    the system does not say."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "over" if after_name[0] == "Z" else after_name[19]
