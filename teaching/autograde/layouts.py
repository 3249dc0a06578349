"""Folders as learning platforms hand them over: whose a file is, in Moodle's, Canvas' and Gradescope's zips or in none.

<student>/…                                         a folder a student, as nbgrader has it
<Name>_<number>_assignsubmission_file/…             Moodle
<name>_<number>_<number>_<file>, or with _LATE_     Canvas
submission_<number>/… and submission_metadata.yml   Gradescope
"""

from __future__ import annotations

import os
import re
import time
import zipfile
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

MOODLE = re.compile(r"(.+?)_(\d+)_assignsubmission_\w+")
CANVAS = re.compile(r"([^_]+)_(?:(LATE)_)?(\d+)_\d+_(.+)", re.S)
GRADESCOPE = re.compile(r"submission_(\d+)")
METADATA = "submission_metadata.yml"
SYSTEM = re.compile(r"\..*|__MACOSX|__pycache__|Thumbs\.db|desktop\.ini|Icon\r", re.I)
LARGEST = 500_000_000  # bytes in a zip, unpacked


@dataclass
class Student:
    """A student's files: the path of each and the name that it was handed in under, folders and all."""

    name: str
    number: str = ""  # the platform's
    id: str = ""  # the roster's, and what else that says
    email: str = ""
    when: dict[str, datetime] = field(default_factory=dict)  # notebook -> when it was handed in
    files: dict[Path, str] = field(default_factory=dict)
    late: bool = False


def students_in(folder: Path, scratch: Path) -> tuple[list[Student], list[str]]:
    """The students of a folder or a zip, zips in it unpacked into `scratch`, and a line for each file of nobody."""
    strays: list[str] = []
    packed = folder.is_file()
    if packed:
        folder = _unpack(folder, scratch / "all", strays) or scratch
        folder.mkdir(parents=True, exist_ok=True)
    entries = _entries(folder)
    if len(entries) == 1 and entries[0].is_dir():  # a folder around all of them
        inside = _entries(entries[0])
        students = inside and all(path.is_dir() or CANVAS.fullmatch(path.name) for path in inside)
        if (entries[0] / METADATA).is_file() or packed and students:
            return students_in(entries[0], scratch)
    metadata = folder / METADATA
    people = _gradescope(metadata.read_text(encoding="utf-8", errors="replace")) if metadata.is_file() else {}
    found: dict[tuple[str, str], Student] = {}
    for path in entries:
        if path.is_dir():
            moodle, gradescope = MOODLE.fullmatch(path.name), GRADESCOPE.fullmatch(path.name)
            name, number = moodle.groups() if moodle else (path.name, "")
            if gradescope:
                name, number = people.get(path.name, (path.name, gradescope[1]))
            student = found.setdefault((name, number), Student(name, number))
            student.files |= _files(path, path, scratch / path.name, strays)
        elif canvas := CANVAS.fullmatch(path.name):
            student = found.setdefault((canvas[1], canvas[3]), Student(canvas[1], canvas[3]))
            student.late |= bool(canvas[2])
            student.files |= _unzipped(path, canvas[4], scratch / path.name, strays)
        elif path != metadata:
            strays.append(f"{path.name} lies in no student's folder: not graded")
    names = [name for name, _ in found]
    for (name, number), student in found.items():
        if names.count(name) > 1:  # two people
            student.name = f"{name} ({number})"
    return [found[key] for key in sorted(found)], strays


def _entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not SYSTEM.fullmatch(path.name))


def _files(folder: Path, root: Path, scratch: Path, strays: list[str]) -> dict[Path, str]:
    """All files in a student's folder, those in its zips too, but not those that systems leave."""
    found: dict[Path, str] = {}
    for path in _entries(folder):
        if path.is_dir() and not path.is_symlink():
            found |= _files(path, root, scratch / path.name, strays)
        elif not path.is_dir():
            found |= _unzipped(path, path.relative_to(root).as_posix(), scratch / path.name, strays)
    return found


def _unzipped(path: Path, name: str, scratch: Path, strays: list[str]) -> dict[Path, str]:
    if path.suffix.lower() != ".zip":
        return {path: name}
    inside = _unpack(path, scratch, strays)
    return _files(inside, inside, scratch / "more", strays) if inside else {}


def _unpack(path: Path, into: Path, strays: list[str]) -> Path | None:
    """Unpack a zip, with the times of its files, for the newest of two counts."""
    try:
        with zipfile.ZipFile(path) as packed:
            if sum(one.file_size for one in packed.infolist()) > LARGEST:
                raise ValueError(f"more than {LARGEST / 1e6:.0f} MB")
            packed.extractall(into / "unpacked")
            for one in packed.infolist():
                there = into / "unpacked" / one.filename
                if there.is_file():
                    _set_time(there, one.date_time)
    except (zipfile.BadZipFile, ValueError, OSError, RuntimeError, NotImplementedError) as error:
        strays.append(f"{path.name} cannot be unpacked ({error}): not graded")
        return None
    return into / "unpacked"


def _set_time(path: Path, date: tuple[int, int, int, int, int, int]) -> None:
    try:
        moment = time.mktime((*date, 0, 0, -1))
        os.utime(path, (moment, moment))
    except (ValueError, OverflowError):
        pass


def _gradescope(text: str) -> dict[str, tuple[str, str]]:
    """folder -> (name, number) from Gradescope's own file, a YAML of a plain form."""
    found = {}
    for part in re.split(r"^(?=\S)", text, flags=re.M):
        folder = re.match(r"(submission_\d+):", part)
        name = re.search(r":name: *['\"]?(.+?)['\"]? *$", part, re.M)
        number = re.search(r":sid: *['\"]?(.+?)['\"]? *$", part, re.M)
        if folder and name:
            found[folder[1]] = name[1], number[1] if number else folder[1].removeprefix("submission_")
    return found
