"""Files that are written whole or not at all, by one run at a time, and that say what is wrong when they are read."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a new file beside `path` to write to; it takes the place of `path` when the block ends without an error.

    The block may put another file in its place, as safetensors does; it gets the rights of a new file all the same.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "xb") as file:
            rights = os.fstat(file.fileno()).st_mode & 0o777
        yield temporary
        temporary.chmod(rights)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path, remedy: str, name: str | None = None) -> dict[str, Any]:
    """The object that a JSON file holds. ValueError with the file's name and the remedy if it holds something else."""
    name = path.name if name is None else name
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))  # some editors put a mark at the beginning
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply: {remedy}") from None
    except ValueError as error:  # bad JSON, a number of thousands of digits, or bytes that are no text
        raise ValueError(f"{name} is not JSON ({error}): {remedy}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{name} holds a {type(values).__name__}, not an object: {remedy}")
    return values


def check_room(folder: Path, size: int) -> None:
    """OSError unless a folder, which is made where it is missing, can be written to and has room for `size` bytes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"1")
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise OSError(f"{folder} cannot be written to ({error.strerror}): choose another folder") from error
    if free < size:
        raise OSError(
            f"{folder} has room for {free / 1e6:,.1f} MB and {size / 1e6:,.1f} MB are needed: free some, or choose "
            "another folder"
        )


@contextmanager
def only_run(path: Path) -> Iterator[None]:
    """Holds the lock file `path` until the block ends or the process dies. BlockingIOError if another run holds it."""
    check_room(path.parent, 0)
    file = _locked(path)
    try:
        yield
    finally:
        with suppress(OSError):  # Windows deletes no open file
            path.unlink()
        file.close()


def _locked(path: Path) -> IO[bytes]:
    while True:
        file = open(path, "ab")
        if not _lock(file):
            file.close()
            raise BlockingIOError(
                f"another run is writing to {path.parent}: wait until it is done, stop it, or choose another folder"
            )
        try:
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        except FileNotFoundError:
            pass
        file.close()  # the run before deleted it between our opening and our locking it


def _lock(file: IO[bytes]) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # some network drives know no locks: there the reader has to see to it
        return error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
    return True
