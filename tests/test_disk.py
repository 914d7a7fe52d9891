"""Files that are whole or not there, on file systems that lack this or that. Refused calls are simulated."""

import errno
import fcntl
import json
import os
import socket
import stat
import subprocess
import sys

import pytest

from milr import disk
from milr.disk import Lock, make_folder, sync_folder, write_atomically
from milr.drafts import UserError

NOT_THE_WRITE = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM, errno.EROFS)


def files_in(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def refuse(monkeypatch, call, number, when=lambda *arguments: True):
    """Let a call of the system fail with this number."""
    real = getattr(os, call)

    def refused(*arguments, **more):
        if when(*arguments):
            raise OSError(number, os.strerror(number))
        return real(*arguments, **more)

    monkeypatch.setattr(disk.os, call, refused)


def is_folder(descriptor):
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


@pytest.mark.parametrize(("call", "number"), [("fsync", errno.ENOSPC), ("fsync", errno.EIO), ("replace", errno.ENOSPC)])
def test_a_write_that_fails_leaves_no_half_file(tmp_path, monkeypatch, call, number):
    file = tmp_path / "kept.json"
    write_atomically(file, b"good")
    refuse(monkeypatch, call, number)
    with pytest.raises(UserError, match=rf"Cannot write .*kept.json \({os.strerror(number)}\)"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"good"
    assert files_in(tmp_path) == ["kept.json"]


def test_files_have_usual_permissions(tmp_path):
    file, usual = tmp_path / "a", tmp_path / "b"
    write_atomically(file, b"")
    usual.write_bytes(b"")
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)


@pytest.mark.parametrize("number", NOT_THE_WRITE)
def test_a_folder_that_cannot_be_synced_is_no_reason_to_stop(tmp_path, monkeypatch, number):
    """CIFS and some FUSE file systems answer EINVAL."""
    refuse(monkeypatch, "fsync", number, is_folder)
    write_atomically(tmp_path / "new" / "file", b"it")
    assert (tmp_path / "new" / "file").read_bytes() == b"it"


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_folder_whose_sync_says_that_names_are_lost_is_one(tmp_path, monkeypatch, number):
    refuse(monkeypatch, "fsync", number, is_folder)
    with pytest.raises(UserError, match="Cannot write"):
        write_atomically(tmp_path / "file", b"it")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_fsync_is_written_to(tmp_path, monkeypatch, number):
    refuse(monkeypatch, "fsync", number)
    write_atomically(tmp_path / "file", b"it")
    assert (tmp_path / "file").read_bytes() == b"it"


def test_a_folder_that_cannot_be_opened_is_no_reason_to_stop(tmp_path, monkeypatch):
    """One may write into a folder and not list it; Windows opens none."""
    refuse(monkeypatch, "open", errno.EACCES, lambda path, flags, *mode: flags == os.O_RDONLY)
    write_atomically(tmp_path / "file", b"it")
    sync_folder(tmp_path)
    assert (tmp_path / "file").read_bytes() == b"it"


@pytest.mark.parametrize("call", ["chmod", "fchmod", "utime", "chown", "link", "symlink"])
def test_no_call_is_made_that_mounts_of_buckets_refuse(tmp_path, monkeypatch, call):
    refuse(monkeypatch, call, errno.EPERM)
    write_atomically(tmp_path / "file", b"it")
    assert files_in(tmp_path) == ["file"]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.EXDEV, errno.EPERM])
def test_where_nothing_can_be_renamed_the_file_is_written_in_its_place(tmp_path, monkeypatch, number):
    refuse(monkeypatch, "replace", number)
    for content in (b"first", b"it"):
        write_atomically(tmp_path / "file", content)
    assert (tmp_path / "file").read_bytes() == b"it"
    assert files_in(tmp_path) == ["file"]


def test_a_name_as_long_as_names_may_be(tmp_path):
    file = tmp_path / ("ü" * 125 + ".json")  # 255 bytes
    write_atomically(file, b"it")
    assert file.read_bytes() == b"it"


def test_new_folders_are_named_to_be_synced(tmp_path):
    made = make_folder(tmp_path / "a" / "b")
    assert made == {tmp_path, tmp_path / "a"}
    assert make_folder(tmp_path / "a" / "b") == set()


# --- Locks --------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_locks(monkeypatch):
    def refused(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refused)


def take(folder):
    lock = Lock(folder / "journal.lock")
    return lock, lock.take(-1)


def test_only_the_answer_that_it_is_taken_means_another_process(tmp_path, monkeypatch):
    for number in (errno.EWOULDBLOCK, errno.EAGAIN):
        monkeypatch.setattr(fcntl, "flock", lambda *_, number=number: (_ for _ in ()).throw(OSError(number, "busy")))
        with pytest.raises(BlockingIOError):
            take(tmp_path)
    for number in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL, errno.EBADF, errno.EACCES, errno.EPERM):
        monkeypatch.setattr(fcntl, "flock", lambda *_, number=number: (_ for _ in ()).throw(OSError(number, "no")))
        lock, warning = take(tmp_path)
        assert "has no locks (no)" in warning
        lock.release()
        assert files_in(tmp_path) == []


def test_without_locks_a_process_of_this_machine_that_writes_is_found(no_locks, tmp_path):
    # It writes its note, says so, and waits until its input is closed.
    code = (
        "import sys, fcntl, pathlib; from milr.disk import Lock\n"
        "def refused(*_): raise OSError(37, 'No locks available')\n"
        "fcntl.flock = refused\n"
        "Lock(pathlib.Path(sys.argv[1])).take(-1); print('taken', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "journal.lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout.readline() == "taken\n"
        with pytest.raises(BlockingIOError):
            take(tmp_path)
        other.kill()
        other.wait()
        lock, warning = take(tmp_path)  # it is gone, and left its note
        assert f"process {other.pid}" in warning
        lock.release()
    finally:
        other.kill()
        other.communicate()
    assert files_in(tmp_path) == []


@pytest.mark.parametrize(
    "note",
    [
        "not json",
        "[]",
        "{}",
        json.dumps({"host": "elsewhere", "process": os.getppid(), "began": "1"}),
        json.dumps({"host": socket.gethostname(), "process": "7"}),
        json.dumps({"host": socket.gethostname(), "process": os.getppid(), "began": "of another process"}),
    ],
)
def test_notes_that_say_nothing_of_a_process_that_runs_stop_nobody(no_locks, tmp_path, note):
    (tmp_path / "journal.lock").write_text(note)
    lock, warning = take(tmp_path)
    assert "see to it yourself" in warning
    assert ("on elsewhere" in warning) == ("elsewhere" in note)
    lock.release()
