"""A folder that keeps what critics said of pictures, so that `milr score` and `milr critic calibrate` can be killed.

    run.json         what was asked: the folder goes on only with the same
    verdicts.jsonl   one line a verdict, or a few that came together
    replies/         of judges over HTTP (they write there themselves, see `Place`)

What `add` was given is on disk (fsync) when it returns; what a kill can tear is the last line, which is dropped and
asked for again. One writer at a time. Knows neither critics nor pictures: a line is whatever its user wrote.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from milr.disk import Lock, make_folder, sync, sync_folder, write_atomically
from milr.drafts import UserError

ROOT = Path("out")


class Verdicts:
    """Use it in a `with`. `lines` are those on record, in order."""

    def __init__(self, folder: Path, head: Mapping[str, Any]) -> None:
        """`head` is JSON values: what must be the same for the folder to go on."""
        self.folder, self.head = folder, json.loads(json.dumps(dict(head)))
        self.lines: list[dict[str, Any]] = []
        self._file = folder / "verdicts.jsonl"
        self._stream: FileIO
        self._lock = Lock(folder / "verdicts.lock")
        self.note = ""  # what a user should know of the folder

    def __enter__(self) -> Verdicts:
        try:
            for changed in make_folder(self.folder):
                sync_folder(changed)
            self._stream = open(self._file, "a+b", buffering=0)
        except OSError as error:
            raise UserError(f"Cannot write {self._file} ({error.strerror}); name another with --out.") from error
        try:
            try:
                self.note = self._lock.take(self._stream.fileno())
            except BlockingIOError as error:
                raise UserError(
                    f"Another run is writing {self._file}; wait for it, or name another with --out."
                ) from error
            self._claim()
            self._read()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        self._stream.close()

    def add(self, *lines: Mapping[str, Any]) -> None:
        """Keep these lines: on disk when this returns."""
        content = bytearray().join(json.dumps(line, allow_nan=False).encode() + b"\n" for line in lines)
        try:
            while content:
                del content[: self._stream.write(content)]
            sync(self._stream.fileno())
        except OSError as error:
            raise UserError(
                f"Cannot write to {self.folder} ({error.strerror}); make room and run the same command again, it goes "
                "on where it stopped."
            ) from error
        self.lines += [dict(line) for line in lines]

    def _claim(self) -> None:
        file = self.folder / "run.json"
        try:
            there = json.loads(file.read_bytes())
        except FileNotFoundError:
            if self._stream.seek(0, os.SEEK_END) > 0:
                raise UserError(f"{self.folder} holds verdicts without run.json; name another with --out.") from None
            write_atomically(file, (json.dumps(self.head, indent=2) + "\n").encode())
            sync_folder(self.folder)
            return
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{file} cannot be read ({error}); name another folder with --out.") from error
        there = there if isinstance(there, dict) else {}
        differs = next((key for key in self.head if there.get(key) != self.head[key]), None)
        if differs is not None:
            was, is_now = (json.dumps(head.get(differs))[:60] for head in (there, self.head))
            raise UserError(
                f"{self.folder} belongs to a run with another {differs.replace('_', ' ')} ({was}, not {is_now}); name "
                "another with --out, or add --force-new to put that run aside."
            )

    def _read(self) -> None:
        self._stream.seek(0)
        content = self._stream.readall()
        end = content.rfind(b"\n") + 1
        for number, raw in enumerate(content[:end].splitlines(), 1):  # of bytes: at \n and \r alone
            try:
                line = json.loads(raw)
            except (ValueError, RecursionError):
                line = None
            if not isinstance(line, dict):
                raise UserError(
                    f"Line {number} of {self._file} is damaged; delete it: what it said is then asked for again."
                )
            self.lines.append(line)
        self._stream.truncate(end)


def folder_for(out: Path | None, kind: str, head: Mapping[str, Any]) -> tuple[Path, Path | None]:
    """Where a run's verdicts lie, and the JSON file of its result.

    `--out DIR` is the folder, with DIR/<kind>.json; for `--out FILE.json` (or a file that is there) it stands beside
    the file. Without --out it is named by what was asked, so the same command finds it again; there is no file then.
    """
    if out is None:
        asked = hashlib.sha256(json.dumps(dict(head), sort_keys=True).encode()).hexdigest()[:12]
        return ROOT / f"{kind}-{asked}", None
    if out.suffix.lower() == ".json" or out.is_file():
        if out.is_dir():
            raise UserError(f"{out} is a folder; name a file, or a folder that does not end in .json.")
        return out.with_name(f"{out.name}.journal"), out
    return out, out / f"{kind}.json"
