"""The class as a table: whose folder is whose, who has not handed in, and when each notebook was handed in.

    id,name,email,02_forward_process
    20261,Jane Doe,jane.doe@uni.example,2026-12-08 17:40

A column that has a notebook's name is optional: the time there counts instead of the file's.
"""

from __future__ import annotations

import csv
import itertools
import re
import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime, time
from pathlib import Path

from autograde.layouts import Student


class RosterError(Exception):
    """A table or a time that cannot be used; the message says which and why."""


@dataclass
class Person:
    """A line of the table."""

    id: str
    name: str
    email: str = ""
    handed_in: dict[str, datetime] = field(default_factory=dict)  # notebook -> when


def moment(text: str, day_ends: bool = False) -> datetime:
    """A time as 2026-12-08 18:00, in this computer's zone unless it names one; with `day_ends` a day's last second.

    Raises:
        RosterError: it is no such time.
    """
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        raise RosterError(f"{text.strip()!r} is no time: write it as 2026-12-08 or 2026-12-08 18:00") from None
    if day_ends and re.fullmatch(r"[\d-]+", text.strip()):
        found = datetime.combine(found, time(23, 59, 59))
    return found.astimezone()


def read(path: Path, notebooks: Collection[str]) -> list[Person]:
    """The people in a CSV file with a line of heads: id, name, email, and notebooks. Commas, semicolons or tabs.

    Raises:
        RosterError: it cannot be read, lacks a column, or an id is missing or there twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines(keepends=True) or [""]
        table = csv.DictReader(lines, delimiter=max(",;\t", key=lines[0].count))
        heads = {re.sub(r"[^\w]", "", head).lower(): head for head in table.fieldnames or []}
        rows = list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RosterError(f"{path} cannot be read as a table in UTF-8: {error}") from None
    if not {"id", "name"} <= heads.keys():
        raise RosterError(f"{path} needs the columns id, name and, if you like, email; it has {', '.join(heads)}")
    people: dict[str, Person] = {}
    for number, row in enumerate(rows, start=2):
        told = {key: (row[head] or "").strip() for key, head in heads.items()}
        if not told["id"] or told["id"] in people:
            raise RosterError(f"{path}, line {number}: the id {told['id']!r} is missing or there twice")
        try:
            when = {name: moment(told[name.lower()]) for name in notebooks if told.get(name.lower())}
        except RosterError as error:
            raise RosterError(f"{path}, line {number}: {error}") from None
        people[told["id"]] = Person(told["id"], told["name"], told.get("email", ""), when)
    return list(people.values())


def enrolled(students: list[Student], people: list[Person], strays: list[str]) -> list[Student]:
    """The students of the roster, in its order, each with the files of all folders that are theirs; then the others.

    A folder is someone's if its name or the platform's number is their id, e-mail address (or what stands before its @)
    or name, in any order and with any signs between; or if the id is one of the words of its name. Where these point to
    different people, it is nobody's.
    """
    twice = {name for name in (p.name for p in people) if sum(p.name == name for p in people) > 1}
    found = {
        p.id: Student(f"{p.name} ({p.id})" if p.name in twice else p.name, id=p.id, email=p.email, when=p.handed_in)
        for p in people
    }
    others = []
    for student in students:
        owners = _owners(student, people)
        if len(owners) == 1:
            one = found[owners[0].id]
            one.files |= student.files
            one.number, one.late = one.number or student.number, one.late or student.late
        else:
            why = f"could be each of {', '.join(p.id for p in owners)} on" if owners else "is not on"
            strays.append(f"{student.name} {why} the roster: graded under the name of the folder")
            taken = {one.name for one in found.values()}
            student.name += " (not on the roster)" if student.name in taken else ""
            others.append(student)
    return [*found.values(), *others]


def _owners(student: Student, people: list[Person]) -> list[Person]:
    words = _words(student.name)
    given = {"".join(words), "".join(_words(student.number))} - {""}
    by_id = [p for p in people if "".join(_words(p.id)) in {*given, *words}]
    by_email = [p for p in people if given & {"".join(_words(p.email)), "".join(_words(p.email.split("@")[0]))}]
    by_name = [p for p in people if given & set(_orders(_words(p.name)))]
    hits = [hit for hit in (by_id, by_email, by_name) if hit]
    agreed = [p for p in people if hits and all(p in hit for hit in hits)]
    return agreed or [p for p in people if any(p in hit for hit in hits)]


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFC", text).casefold())


def _orders(words: list[str]) -> Iterable[str]:
    """Jane Doe is janedoe, and doejane to Canvas."""
    return map("".join, itertools.permutations(words)) if len(words) <= 5 else ["".join(words)]
