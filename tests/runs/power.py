"""A disk that loses, when its power goes, whatever was not synced: the content of files and the names in folders.

A killed process loses nothing that it has written, so kills alone never miss an fsync. Here every fsync is noted (by
inode, as a disk would), and `survivors` builds what a disk would still hold.
"""

import contextlib
import os
import stat
import threading
from pathlib import Path


class PowerCut(BaseException):
    """The power goes: nothing catches this."""


class Disk:
    """Notes what is synced below a folder, and cuts the power before sync number `cut_at` (None: never)."""

    def __init__(self, patch, cut_at=None):
        self.cut_at, self.syncs = cut_at, 0
        self.one_at_a_time = threading.RLock()  # a journal's writers sync, too
        self.contents = {}  # of files, by inode
        self.names = {}  # of folders, by inode: name -> (inode, whether it is a folder)
        patch.setattr(os, "fsync", self._sync)

    def _sync(self, descriptor):
        with self.one_at_a_time:
            if self.syncs == self.cut_at:
                raise PowerCut
            self.syncs += 1
            found = os.fstat(descriptor)
            if stat.S_ISDIR(found.st_mode):
                self.names[found.st_ino] = dict(self._inside(descriptor))
            else:
                self.contents[found.st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()

    def _inside(self, descriptor):
        for name in os.listdir(descriptor):
            with contextlib.suppress(FileNotFoundError):  # a temporary name that another thread has changed meanwhile
                one = os.stat(name, dir_fd=descriptor)
                yield name, (one.st_ino, stat.S_ISDIR(one.st_mode))

    def survivors(self, folder, to, written_early=()):
        """Build in `to` what is left of `folder`. `written_early`: names of files whose content the system happened to
        write before it was asked to."""
        self._build(folder.stat().st_ino, folder, to, written_early)
        return to

    def _build(self, inode, folder, to, written_early):
        to.mkdir()
        for name, (inner, is_folder) in self.names.get(inode, {}).items():
            if is_folder:
                self._build(inner, folder / name, to / name, written_early)
            elif name in written_early:
                (to / name).write_bytes((folder / name).read_bytes())
            else:
                (to / name).write_bytes(self.contents.get(inner, b""))
