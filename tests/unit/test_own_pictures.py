"""The files and objects that people bring: every pixel and every caption is compared, not only how many there are."""

from __future__ import annotations

import csv
import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset
from torchvision.datasets import CIFAR10, FakeData
from torchvision.transforms import ToTensor

from course_utils.data.batches import CaptionedImages
from course_utils.data.folders import class_caption
from course_utils.data.squares import eight_bits, square

SIDE = 16
TEXTS = {"a.png": "a red cat", "b.png": "two dogs, one of them blue", "c.png": 'a "green" boat'}


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


PICTURES = {name: picture(i) for i, name in enumerate(TEXTS)}


def save(folder, names=None) -> None:
    """The three pictures, under these names."""
    for name, pixels in zip(names or TEXTS, PICTURES.values(), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)


def check(data: CaptionedImages, expected: list[tuple[np.ndarray, str]]) -> None:
    assert data.captions == [text for _, text in expected]
    assert data.images.dtype == torch.uint8 and (data.attributes == -1).all()
    assert np.array_equal(data.images.permute(0, 2, 3, 1).numpy(), np.stack([pixels for pixels, _ in expected]))


ALL = [(PICTURES[name], text) for name, text in TEXTS.items()]


# --- eight kinds of folders -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["text", "caption", "prompt"])
def test_json_lines(tmp_path, column):
    save(tmp_path)
    rows = [json.dumps({"file_name": name, column: text, "id": 7}) for name, text in TEXTS.items()]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    check(CaptionedImages.from_folder(tmp_path, SIDE), ALL)


@pytest.mark.parametrize(("delimiter", "mark", "end"), [(",", "", "\n"), (";", "\ufeff", "\r\n"), ("\t", "", "\n")])
def test_csv_as_programs_for_tables_write_it(tmp_path, delimiter, mark, end):
    save(tmp_path)
    table = io.StringIO()
    rows = [("file_name", "id", "caption"), *((name, "7", text) for name, text in TEXTS.items())]
    csv.writer(table, delimiter=delimiter, lineterminator=end).writerows(rows)
    (tmp_path / "metadata.csv").write_bytes((mark + table.getvalue()).encode())
    check(CaptionedImages.from_folder(tmp_path, SIDE), ALL)


def test_parquet(tmp_path, monkeypatch):
    save(tmp_path)
    (tmp_path / "metadata.parquet").write_bytes(b"no table")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(ModuleNotFoundError, match="metadata.parquet can only be read with pyarrow: pip install"):
            CaptionedImages.from_folder(tmp_path, SIDE)
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    with pytest.raises(ValueError, match="metadata.parquet is not a parquet table"):
        CaptionedImages.from_folder(tmp_path, SIDE)
    captions = [[text, text.upper()] for text in TEXTS.values()]
    parquet.write_table(pyarrow.table({"file_name": list(TEXTS), "captions": captions}), tmp_path / "metadata.parquet")
    expected = [(pixels, said) for pixels, text in ALL for said in (text, text.upper())]
    check(CaptionedImages.from_folder(tmp_path, SIDE), expected)


def test_several_captions_in_a_list_and_in_several_rows(tmp_path):
    save(tmp_path)
    rows = [
        {"file_name": "a.png", "text": ["a cat", "a red animal"]},
        {"file_name": "b.png", "text": "dogs"},
        {"file_name": "a.png", "text": "once more"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    a, b = PICTURES["a.png"], PICTURES["b.png"]
    expected = [(a, "a cat"), (a, "a red animal"), (b, "dogs"), (a, "once more")]
    check(CaptionedImages.from_folder(tmp_path, SIDE), expected)


def test_file_names_written_on_windows(tmp_path):
    save(tmp_path, ["one/a.png", "one/two/b.png", "c.png"])
    names = ["one\\a.png", "one\\two\\b.png", ".\\c.png"]
    rows = [json.dumps({"file_name": name, "text": text}) for name, text in zip(names, TEXTS.values(), strict=True)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    check(CaptionedImages.from_folder(tmp_path, SIDE), ALL)
    inner = tmp_path / "one"
    (inner / "metadata.jsonl").write_text(json.dumps({"file_name": "..\\c.png", "text": "a cat"}))
    with pytest.raises(ValueError, match="lies outside the folder"):
        CaptionedImages.from_folder(inner, SIDE)


def test_pictures_without_a_caption(tmp_path):
    save(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,a cat\nb.png,\nc.png\n")
    with pytest.raises(ValueError, match='metadata.csv, line 3 has no "text"'):
        CaptionedImages.from_folder(tmp_path, SIDE)
    expected = list(zip(PICTURES.values(), ["a cat", "", ""], strict=True))
    check(CaptionedImages.from_folder(tmp_path, SIDE, unconditional=True), expected)
    (tmp_path / "metadata.csv").unlink()
    with pytest.raises(FileNotFoundError, match="a.png has no caption"):
        CaptionedImages.from_folder(tmp_path, SIDE)
    check(CaptionedImages.from_folder(tmp_path, SIDE, unconditional=True), [(p, "") for p in PICTURES.values()])


def test_a_folder_for_each_class(tmp_path):
    save(tmp_path, ["alpine_ibex/1.png", "dogs/x/1.PNG", "dogs/2.png"])
    (tmp_path / "dogs" / "notes.txt").write_text("no picture")
    (tmp_path / "dogs" / ".thumbnail.png").write_bytes(b"no picture")
    a, b, c = PICTURES.values()
    said = ["a photo of an alpine ibex", "a photo of a dogs", "a photo of a x"]
    check(CaptionedImages.from_folder(tmp_path, SIDE), list(zip([a, c, b], said, strict=True)))
    said = ["alpine ibex, drawn", "dogs, drawn", "x, drawn"]
    check(CaptionedImages.from_folder(tmp_path, SIDE, template="{}, drawn"), list(zip([a, c, b], said, strict=True)))
    with pytest.raises(ValueError, match=r"has no \{\} where the class goes"):
        CaptionedImages.from_folder(tmp_path, SIDE, template="a dog")
    (tmp_path / "alpine_ibex").rename(tmp_path / "train")
    with pytest.raises(ValueError, match="holds train: give one of them"):
        CaptionedImages.from_folder(tmp_path, SIDE)


def test_formats_transparency_and_turned_photographs(tmp_path):
    pixels = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    pixels[:8] = (200, 30, 30)  # red above, black below
    turned = Image.fromarray(np.rot90(pixels).copy())
    exif = turned.getexif()
    exif[0x0112] = 6  # to be shown a quarter turn clockwise
    turned.save(tmp_path / "1.webp", lossless=True, exif=exif)
    clear = np.dstack([pixels, np.where(pixels[:, :, 0] > 0, 255, 0).astype(np.uint8)])
    Image.fromarray(clear).save(tmp_path / "2.tiff")
    Image.fromarray(pixels).quantize(4).save(tmp_path / "3.gif")
    Image.fromarray(pixels).save(tmp_path / "4.bmp")
    on_white = np.where(clear[:, :, 3:] > 0, pixels, 255).astype(np.uint8)
    expected = [(p, "") for p in (pixels, on_white, pixels, pixels)]
    check(CaptionedImages.from_folder(tmp_path, SIDE, unconditional=True), expected)


@pytest.mark.parametrize(
    ("table", "content", "message"),
    [
        ("metadata.csv", "name,text\na.png,a cat\n", "first line should name the columns, such as file_name,text"),
        (
            "metadata.csv",
            "file_name,text\na.png,a cat, asleep\n",
            "line 2 has 3 cells and the first line 2: put a text",
        ),
        ("metadata.csv", 'file_name,text\na.png,"a cat\n', "metadata.csv, line 2 is not CSV"),
        ("metadata.csv", 'file_name,text\na.png,"a\ncat"\ngone.png,x\n', "metadata.csv, line 4 names .*gone.png"),
        ("metadata.csv", "file_name,text,text\na.png,a,b\n", "two columns have the same name"),
        ("metadata.csv", "file_name,text\n", "has no rows"),
        ("metadata.csv", "file_name,prompt,text\na.png,a,b\n", "has the columns text and prompt: say which"),
        ("metadata.csv", "file_name,title\na.png,a\n", "line 2 has no \"text\"; say which of 'title' to read"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": 5}', "line 1: the caption should be a text or a list"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": ["x", 5]}', "line 1: a caption should be a text, got 5"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": []}', "line 1 has no caption; write one"),
    ],
)
def test_a_table_that_cannot_be_read_is_explained(tmp_path, table, content, message):
    save(tmp_path)
    (tmp_path / table).write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        CaptionedImages.from_folder(tmp_path, SIDE)


def test_the_caption_column_can_be_named(tmp_path):
    save(tmp_path)
    rows = [
        "file_name,prompt,text,title",
        *(f'{n},x,y,"{t}"'.replace('"green"', '""green""') for n, t in TEXTS.items()),
    ]
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    check(CaptionedImages.from_folder(tmp_path, SIDE, caption="title"), ALL)
    with pytest.raises(ValueError, match="no column 'titel' .* it has file_name, prompt, text, title"):
        CaptionedImages.from_folder(tmp_path, SIDE, caption="titel")
    (tmp_path / "metadata.jsonl").write_text("{}")
    with pytest.raises(ValueError, match="holds metadata.csv and metadata.jsonl: keep one"):
        CaptionedImages.from_folder(tmp_path, SIDE)


@pytest.mark.parametrize(("name", "said"), [("dog", "a photo of a dog"), ("ankle boot", "a photo of an ankle boot")])
def test_a_class_gets_its_article(name, said):
    assert class_caption("a photo of a {}", name) == said
    assert class_caption("{} {0.__class__}", "x") == "x {0.__class__}", "a template is filled in, not evaluated"


# --- more than 8 bits -------------------------------------------------------------------------------------------------

GRAY = np.arange(256, dtype=np.uint8).reshape(SIDE, SIDE)
DEEP = {
    "16.png": GRAY.astype(np.uint16) * 257,
    "16-big-endian.tiff": GRAY.astype(">u2") * 257,
    "32.tiff": GRAY.astype(np.int32) * 257,
    "0-to-1.tiff": GRAY.astype(np.float32) / 255,
    "0-to-255.tiff": GRAY.astype(np.float32),
    "0-to-65535.tiff": GRAY.astype(np.float32) * 257,
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_pictures_are_scaled(tmp_path, name):
    expected = np.repeat(GRAY[:, :, None], 3, axis=2)
    assert np.array_equal(square(DEEP[name], SIDE), expected)
    Image.fromarray(DEEP[name]).save(tmp_path / name)
    with Image.open(tmp_path / name) as saved:
        assert saved.mode == "F" or saved.mode.startswith("I")
    check(CaptionedImages.from_folder(tmp_path, SIDE, unconditional=True), [(expected, "")])


@pytest.mark.parametrize(
    "numbers",
    [
        GRAY.astype(np.uint16) * 16,  # 12 bits
        GRAY.astype(np.uint16),
        GRAY.astype(np.int32) * 70_000,
        GRAY.astype(np.float32) / 127.5 - 1,
        GRAY.astype(np.float32) / 255 * 1.5,
        GRAY.astype(np.float32) * 16,
        np.where(GRAY == 7, np.nan, GRAY).astype(np.float32),
        np.where(GRAY == 7, np.inf, GRAY).astype(np.float32),
    ],
)
def test_a_range_that_is_not_plain_is_refused(tmp_path, numbers):
    with pytest.raises(ValueError, match="which number is white is not plain: say .* white=4095|NaN or infinite"):
        square(numbers, SIDE)
    Image.fromarray(numbers).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match="a.tiff: .*a.tiff .*(not plain|NaN)"):
        CaptionedImages.from_folder(tmp_path, SIDE, unconditional=True)


def test_white_can_be_said(tmp_path):
    twelve = (GRAY.astype(int) * 4095 // 255).astype(np.uint16)
    assert np.array_equal(eight_bits(twelve, white=4095), GRAY)
    Image.fromarray(twelve).save(tmp_path / "a.png")
    data = CaptionedImages.from_folder(tmp_path, SIDE, unconditional=True, white=4095)
    assert np.array_equal(data.images[0, 1].numpy(), GRAY)
    with pytest.raises(ValueError, match="run from 0 to 4095, and white is 1000"):
        CaptionedImages.from_folder(tmp_path, SIDE, unconditional=True, white=1000)
    with pytest.raises(ValueError, match="white is the number that means white"):
        CaptionedImages.from_folder(tmp_path, SIDE, white=0)
    assert (eight_bits(np.zeros((2, 2), np.uint16)) == 0).all() and (eight_bits(np.ones((2, 2))) == 255).all()


# --- other people's objects -------------------------------------------------------------------------------------------


class Rows(list):
    """What is used of a `datasets.Dataset`: rows by name, the columns, and the names of a ClassLabel."""

    def __init__(self, rows, **names):
        super().__init__(rows)
        self.column_names = list(rows[0])
        self.features = {column: SimpleNamespace(names=names.get(column)) for column in self.column_names}


def encoded(pixels: np.ndarray) -> dict:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


@pytest.mark.parametrize("as_stored", [Image.fromarray, np.asarray, encoded])
def test_rows_of_a_dataset(as_stored):
    rows = Rows([{"image": as_stored(pixels), "text": text} for pixels, text in ALL])
    check(CaptionedImages.from_rows(rows, SIDE), ALL)
    several = Rows([{"img": as_stored(pixels), "captions": [text, "x"]} for pixels, text in ALL])
    check(CaptionedImages.from_rows(several, SIDE), [(p, said) for p, text in ALL for said in (text, "x")])
    named = Rows([{"photo": as_stored(pixels), "title": text} for pixels, text in ALL])
    check(CaptionedImages.from_rows(named, SIDE, image="photo", caption="title"), ALL)


def test_rows_with_a_class(tmp_path):
    rows = [{"image": pixels, "label": i} for i, (pixels, _) in zip([1, 0, -1], ALL, strict=True)]
    labelled = Rows(rows, label=["dog", "owl"])
    with pytest.raises(ValueError, match="row 2 has the label -1, and there are 2 classes"):
        CaptionedImages.from_rows(labelled, SIDE)
    said = ["a photo of an owl", "a photo of a dog", ""]
    expected = list(zip(PICTURES.values(), said, strict=True))
    check(CaptionedImages.from_rows(labelled, SIDE, unconditional=True), expected)


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ({"train": [], "test": []}, ValueError, "not one set, but train, test: give one of them"),
        ([(PICTURES["a.png"], "a cat")], TypeError, "row 0 should have named columns, got tuple"),
        ([{"x": 1, "text": "a"}], ValueError, "no column of x, text holds pictures"),
        ([{"image": PICTURES["a.png"], "x": "a"}], ValueError, "no column of image, x is known to hold captions"),
        ([{"image": PICTURES["a.png"], "text": None}], ValueError, "row 0 has no caption"),
        ([{"image": "a.png", "text": "a"}], TypeError, "row 0: a picture is a PIL picture, .* got str"),
        ([{"image": {"path": "a.png", "bytes": None}, "text": "a"}], ValueError, "row 0: the picture is only named"),
        ([{"image": {"bytes": b"%!PS-Adobe-3.0"}, "text": "a"}], ValueError, "row 0: cannot be read as a picture"),
        (
            [{"image": np.zeros((4, 4, 2), np.uint8), "text": "a"}],
            ValueError,
            r"row 0: a picture is .* got \[4, 4, 2\]",
        ),
        ([], ValueError, "no picture in it"),
    ],
)
def test_rows_that_cannot_be_used_are_named(rows, error, message):
    with pytest.raises(error, match=message):
        CaptionedImages.from_rows(rows, SIDE)


def cifar(folder) -> CIFAR10:
    """torchvision's own class over pictures made up here, as after its files were read."""
    data = CIFAR10.__new__(CIFAR10)
    data.data, data.targets = np.stack(list(PICTURES.values())), [8, 0, 1]
    data.classes, data.transform, data.target_transform = ["airplane", "automobile", *"cdefgh", "ship"], None, None
    return data


def test_pairs_of_torchvision(tmp_path):
    said = ["a photo of a ship", "a photo of an airplane", "a photo of an automobile"]
    expected = list(zip(PICTURES.values(), said, strict=True))
    check(CaptionedImages.from_pairs(cifar(tmp_path), SIDE), expected)
    check(CaptionedImages.from_pairs(Subset(cifar(tmp_path), [2, 0]), SIDE), [expected[2], expected[0]])
    as_tensors = cifar(tmp_path)
    as_tensors.transform = ToTensor()  # floats [3, H, W] in 0 … 1
    check(CaptionedImages.from_pairs(as_tensors, SIDE), expected)
    fake = FakeData(3, (3, SIDE, SIDE), 2)
    with pytest.raises(ValueError, match="pair 0 has the label .*give from_pairs classes"):
        CaptionedImages.from_pairs(fake, SIDE)
    expected = [(np.asarray(image), f"a {'cat' if int(label) == 0 else 'dog'}") for image, label in fake]
    check(CaptionedImages.from_pairs(fake, SIDE, classes=["cat", "dog"], template="a {}"), expected)


def test_pairs_of_picture_and_caption():
    check(CaptionedImages.from_pairs(ALL, SIDE), ALL)
    check(CaptionedImages.from_pairs(iter(ALL), SIDE), ALL)
    coco = [(Image.fromarray(pixels), [text, "x"]) for pixels, text in ALL]
    check(CaptionedImages.from_pairs(coco, SIDE), [(p, said) for p, text in ALL for said in (text, "x")])
    gray = torch.from_numpy(GRAY)[None]
    check(CaptionedImages.from_pairs([(gray, "gray")], SIDE), [(np.repeat(GRAY[:, :, None], 3, axis=2), "gray")])
    with pytest.raises(TypeError, match="pair 0 should be"):
        CaptionedImages.from_pairs([PICTURES["a.png"]], SIDE)
