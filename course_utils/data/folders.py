"""A folder of one's own pictures: which files it has, and what is said of each, as Hugging Face's imagefolder reads it.

Either a table beside the pictures (metadata.csv, metadata.jsonl or metadata.parquet), or a folder for each class.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from course_utils.data.captions import with_article

TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
CAPTION_COLUMNS = ("text", "caption", "prompt", "texts", "captions", "prompts")
TEMPLATE = "a photo of a {}"
ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
SPLITS = {"train", "test", "val", "valid", "validation", "dev", "eval"}
EXAMPLE = '{"file_name": "a.png", "text": "a cat"}'


class Entry(NamedTuple):
    """One picture of a folder, what is said of it, and where that stands."""

    where: str
    path: Path
    captions: list[str]


def read_folder(
    folder: Path, caption: str | None = None, template: str = TEMPLATE, unconditional: bool = False
) -> list[Entry]:
    """The pictures of a folder with their captions, in the order of the table, or of the files' names.

    For the arguments see `CaptionedImages.from_folder`. Raises FileNotFoundError or ValueError that names the row or
    file to mend, and ModuleNotFoundError for a table in parquet without pyarrow.
    """
    check_template(template)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: make it and put your pictures into it")
    tables = [folder / name for name in TABLES if (folder / name).is_file()]
    if len(tables) > 1:
        raise ValueError(f"{folder} holds {' and '.join(t.name for t in tables)}: keep one of them")
    if tables:
        return list(_table_entries(folder, tables[0], caption, unconditional))
    return _class_entries(folder, template, unconditional)


def picture_files(folder: Path) -> list[Path]:
    """The picture files in a folder and the folders in it, by name; hidden ones are left out."""
    found = (p for p in folder.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def class_caption(template: str, name: str) -> str:
    """ "a photo of a {}" and "alpine_ibex" -> "a photo of an alpine ibex"."""
    name = " ".join(name.replace("_", " ").split())
    return re.sub(r"\b(an?) \{\}|\{\}", lambda found: with_article(name) if found[1] else name, template)


def check_template(template: str) -> None:
    """ValueError unless it says where the class goes."""
    if not isinstance(template, str) or "{}" not in template:
        raise ValueError(f"template {template!r} has no {{}} where the class goes; write one like {TEMPLATE!r}")


def caption_column(columns: Sequence[str], where: str, asked: str | None = None) -> str | None:
    """The column that holds the captions: the one asked for, else the one whose name says so, else None.

    Raises ValueError where the one asked for is missing, or several could be meant.
    """
    if asked is not None and asked not in columns:
        raise ValueError(f"{where} has no column {asked!r} to take captions from; it has {', '.join(columns)}")
    found = [name for name in CAPTION_COLUMNS if name in columns]
    if asked is None and len(found) > 1:
        raise ValueError(f"{where} has the columns {' and '.join(found)}: say which to read, as caption={found[0]!r}")
    return asked or (found[0] if found else None)


def as_captions(value: Any, where: str, unconditional: bool) -> list[str]:
    """What a cell says: a text, or several in a list. No text is refused, or with unconditional "".

    Raises ValueError that begins with `where`.
    """
    several = [value] if value is None or isinstance(value, str) else value
    if isinstance(several, Mapping) or not isinstance(several, Iterable):
        raise ValueError(f"{where}: the caption should be a text or a list of texts, got {value!r:.60}")
    texts = [text for text in several if text is not None]
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"{where}: a caption should be a text, got {text!r:.60}")
        check_characters(text, where, "text")
    texts = [text for text in texts if text.strip()]
    if not texts and not unconditional:
        raise ValueError(f"{where} has no caption; write one, or give unconditional=True to take such pictures as ''")
    return texts or [""]


def check_characters(text: str, where: str, name: str) -> None:
    """ValueError for what no file and no tokenizer can take."""
    if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in text):
        raise ValueError(f'{where}: "{name}" holds a character that is no text: {text!r:.60}')


def _table_entries(folder: Path, table: Path, caption: str | None, unconditional: bool) -> Iterator[Entry]:
    read = {".csv": _csv_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}[table.suffix]
    rows = list(read(table))
    if not rows:
        raise ValueError(f"{table} has no rows; write one for each picture")
    columns = list(dict.fromkeys(name for _, row in rows for name in row))
    column = caption_column(columns, str(table), caption)
    for where, row in rows:
        file_name = row.get("file_name")
        if not isinstance(file_name, str) or not file_name.strip():
            raise ValueError(f'{where} has no "file_name"; a row is {EXAMPLE}')
        if column is None and not unconditional:
            others = ", ".join(repr(name) for name in columns if name != "file_name")
            hint = f"say which of {others} to read, as caption=…" if others else f"a row is {EXAMPLE}"
            raise ValueError(f'{where} has no "text"; {hint}')
        check_characters(file_name, where, "file_name")
        said = row.get(column) if column else None
        if said is None and not unconditional:
            raise ValueError(f'{where} has no "{column}"; a row is {EXAMPLE}')
        texts = as_captions(said, where, unconditional)
        yield Entry(where, _inside(folder, file_name, where), texts)


def _inside(folder: Path, file_name: str, where: str) -> Path:
    """The file of that name, which may have been written on Windows; it must be there and lie in the folder."""
    try:
        path = folder / file_name
        if not path.is_file():
            path = folder / file_name.replace("\\", "/")
        inside, there = path.resolve().is_relative_to(folder.resolve()), path.is_file()
    except (OSError, ValueError) as error:  # too long a name, a loop of links
        raise ValueError(f"{where} names {file_name!r:.60}, which cannot be a file here ({error})") from error
    if not inside:
        raise ValueError(f"{where}: {file_name!r} lies outside the folder; copy it into {folder}")
    if not there:
        raise FileNotFoundError(f"{where} names {path}, which is missing; add it or take out the row")
    return path


def _class_entries(folder: Path, template: str, unconditional: bool) -> list[Entry]:
    """Pictures that say by their folder what they show: dogs/1.png."""
    missing = f"{folder / 'metadata.jsonl'} is missing; write one row {EXAMPLE} a picture into it, or name one folder"
    splits = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name.lower() in SPLITS)
    if splits:
        raise ValueError(f"{folder} holds {' and '.join(splits)}: give one of them, such as {folder / splits[0]}")
    entries = []
    for path in picture_files(folder):
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{path} is a link to a file outside the folder; copy it into {folder}")
        if path.parent == folder and not unconditional:
            raise FileNotFoundError(f"{missing} a class; {path.name} has no caption (with unconditional=True: '')")
        entries.append(Entry(str(path), path, [""] if path.parent == folder else [_class_of(path, template)]))
    if not entries:
        raise FileNotFoundError(f"{missing} a class; there are no pictures in it")
    return entries


def _class_of(path: Path, template: str) -> str:
    check_characters(path.parent.name, str(path), "class")
    return class_caption(template, path.parent.name)


def _text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")  # some editors put a mark before the first line
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason}); save it again in that encoding") from error


def _jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_text_of(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # no JSON, or a number of thousands of digits, or a deep nest
            reason = getattr(error, "msg", error)
            raise ValueError(f"{where} is not JSON ({reason}); a line is one object in braces") from error
        if not isinstance(row, dict):
            raise ValueError(f'{where} has no "file_name"; a row is {EXAMPLE}')
        yield where, row


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    text = _text_of(path)
    first = text.split("\n", 1)[0]
    named = [d for d in ",;\t" if "file_name" in (cell.strip() for cell in next(csv.reader([first], delimiter=d), []))]
    if not named:
        raise ValueError(f"{path}: its first line should name the columns, such as file_name,text; it is {first!r:.60}")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=named[0], strict=True)
    try:
        header = [cell.strip() for cell in next(reader)]
        if len(set(header)) < len(header):
            raise ValueError(f"{path}: two columns have the same name; rename one")
        begins = reader.line_num + 1
        for cells in reader:
            where, begins = f"{path}, line {begins}", reader.line_num + 1
            if len(cells) > len(header):
                raise ValueError(
                    f"{where} has {len(cells)} cells and the first line {len(header)}: put a text that holds "
                    f"{named[0]!r} in double quotes"
                )
            if any(cell.strip() for cell in cells):
                yield where, {name: cell or None for name, cell in zip(header, cells, strict=False)}
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {reader.line_num} is not CSV ({error}); mend it or save it as JSON lines"
        ) from error


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path} can only be read with pyarrow: pip install pyarrow, or save the table as metadata.csv"
        ) from error
    try:
        rows = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path} is not a parquet table ({str(error).splitlines()[0]:.80}); save it again") from error
    for number, row in enumerate(rows, start=1):
        yield f"{path}, row {number}", row
