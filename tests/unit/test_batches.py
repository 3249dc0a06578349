from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from course_utils.data.batches import CaptionedImages, to_float, to_uint8
from course_utils.data.scenes import OBJECTS, VALUES, parse_caption


@pytest.fixture(scope="module")
def scenes() -> CaptionedImages:
    return CaptionedImages.scenes(60, seed=4)


def test_scenes_keep_the_interface(scenes):
    assert len(scenes) == 60 and scenes.images.dtype == torch.uint8 and scenes.images.shape == (60, 3, 64, 64)
    picture, caption, attributes = scenes[7]
    assert picture.shape == (3, 64, 64) and picture.dtype == torch.float32 and picture.abs().max() <= 1
    assert attributes.shape == (4,) and attributes.dtype == torch.int64
    assert parse_caption(caption)["object"] == OBJECTS[attributes[0]]
    assert CaptionedImages.scenes(3, size=32).images.shape == (3, 3, 32, 32)


def test_scenes_follow_the_seed_and_a_shorter_set_is_the_beginning(scenes):
    again, other = CaptionedImages.scenes(20, seed=4), CaptionedImages.scenes(20, seed=5)
    assert torch.equal(again.images, scenes.images[:20]) and again.captions == scenes.captions[:20]
    assert not torch.equal(again.images, other.images)
    with pytest.raises(ValueError, match="at least 1"):
        CaptionedImages.scenes(0)


def test_corners_show_the_colour_of_the_attributes(scenes):
    from course_utils.data.scenes import COLORS

    wanted = torch.tensor([COLORS[VALUES["color"][c]] for c in scenes.attributes[:, 1]], dtype=torch.uint8)
    assert torch.equal(scenes.images[:, :, 0, 0], wanted)


def test_float_and_back():
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert to_float(every).min() == -1 and to_float(every).max() == 1
    assert torch.equal(to_uint8(to_float(every)), every)
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]
    with pytest.raises(TypeError, match="wants uint8"):
        to_float(torch.zeros(1))
    with pytest.raises(TypeError, match="wants float"):
        to_uint8(torch.zeros(1, dtype=torch.int64))


def test_batch_collects_by_index(scenes):
    images, captions, attributes = scenes.batch([5, 2])
    assert torch.equal(images, torch.stack([scenes[5][0], scenes[2][0]]))
    assert captions == [scenes.captions[5], scenes.captions[2]]
    assert torch.equal(attributes, scenes.attributes[[5, 2]])
    assert torch.equal(scenes.batch(torch.tensor([5, 2]))[0], images)


def test_constructor_refuses_what_does_not_fit(scenes):
    with pytest.raises(ValueError, match="uint8"):
        CaptionedImages(torch.zeros(2, 3, 8, 8), ["a", "b"])
    with pytest.raises(ValueError, match="got 1"):
        CaptionedImages(scenes.images[:2], ["a"])
    with pytest.raises(ValueError, match=r"got \[2, 3\]"):
        CaptionedImages(scenes.images[:2], ["a", "b"], torch.zeros(2, 3))
    assert (CaptionedImages(scenes.images[:2], ["a", "b"]).attributes == -1).all()


# A folder of one's own pictures.


def write_folder(folder, rows) -> None:
    (folder / "metadata.jsonl").write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))


def test_from_folder_cuts_squares_and_lays_transparency_on_white(tmp_path):
    wide = np.zeros((20, 60, 3), dtype=np.uint8)
    wide[:, 20:40] = (200, 30, 30)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.new("RGBA", (10, 10), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    write_folder(
        tmp_path,
        [
            {"file_name": "wide.png", "text": "a red square"},
            "",
            {"file_name": "clear.png", "text": "nothing"},
        ],
    )
    dataset = CaptionedImages.from_folder(tmp_path, size=16)
    assert dataset.images.shape == (2, 3, 16, 16) and dataset.captions == ["a red square", "nothing"]
    assert (dataset.attributes == -1).all() and (dataset.images[1] == 255).all()
    assert (dataset.images[0, :, 2:-2, 2:-2] == torch.tensor([200, 30, 30])[:, None, None]).all()


@pytest.mark.parametrize(
    "rows, error, message",
    [
        ([], ValueError, "has no rows"),
        (["{"], ValueError, "line 1 is not JSON"),
        ([{"text": "a cat"}], ValueError, 'line 1 has no "file_name"'),
        (
            [{"file_name": "ok.png", "text": "a cat"}, {"file_name": "ok.png"}],
            ValueError,
            'line 2 has no "text"',
        ),
        (["[1]"], ValueError, 'line 1 has no "file_name"'),
        (
            [{"file_name": "gone.png", "text": "a cat"}],
            FileNotFoundError,
            "gone.png, which is missing; add it",
        ),
        (
            [{"file_name": "broken.png", "text": "a cat"}],
            ValueError,
            "broken.png cannot be read .* save it again",
        ),
        ([{"file_name": "cut.png", "text": "a cat"}], ValueError, "cut.png cannot be read .* save it again"),
        ([{"file_name": "../x.png", "text": "a cat"}], ValueError, "outside the folder"),
        ([{"file_name": "deep.png", "text": "a cat"}], ValueError, "deep.png .* run from .* to 4080, .* white=4095"),
        ([{"file_name": "float.tiff", "text": "a cat"}], ValueError, "float.tiff .* run from -1 to .* 8-bit PNG"),
    ],
)
def test_from_folder_names_what_is_wrong(tmp_path, rows, error, message):
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "ok.png")
    Image.fromarray(noise[:, :, 0].astype(np.uint16) // 16 * 272).save(tmp_path / "deep.png")
    Image.fromarray(noise[:, :, 0].astype(np.float32) / 127.5 - 1).save(tmp_path / "float.tiff")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "cut.png").write_bytes((tmp_path / "ok.png").read_bytes()[:900])
    write_folder(tmp_path, rows)
    with pytest.raises(error, match=message):
        CaptionedImages.from_folder(tmp_path)


def test_metadata_may_begin_with_a_mark_and_hold_odd_line_ends(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    caption = "a cat\u2028and\u0085more"
    row = json.dumps({"file_name": "a.png", "text": caption}, ensure_ascii=False)
    (tmp_path / "metadata.jsonl").write_bytes(f"\ufeff{row}\r\n{row}\r\n".encode())
    assert CaptionedImages.from_folder(tmp_path, size=16).captions == [caption, caption]
    (tmp_path / "metadata.jsonl").write_bytes(row.encode("utf-16"))
    with pytest.raises(ValueError, match=r"metadata.jsonl is not UTF-8 .* save it again"):
        CaptionedImages.from_folder(tmp_path, size=16)


def test_from_folder_without_metadata(tmp_path):
    with pytest.raises(FileNotFoundError, match="metadata.jsonl is missing; write one row"):
        CaptionedImages.from_folder(tmp_path)


# Fashion-MNIST: torchvision's file format, with a few made-up pictures.


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


def test_fashion_mnist_reads_local_files(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    pictures = np.stack([np.full((28, 28), 10 * i) for i in range(10)])
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(pictures))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(10)))
    dataset = CaptionedImages.fashion_mnist(tmp_path)
    assert dataset.images.shape == (10, 3, 64, 64) and (dataset.images[3] == 30).all()
    assert dataset.captions[7] == "a sneaker" and dataset.captions[9] == "an ankle boot"
    assert (dataset.attributes == -1).all() and dataset.batch([1, 2])[0].shape == (2, 3, 64, 64)


def test_fashion_mnist_fetches_nothing_unasked(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="download=True"):
        CaptionedImages.fashion_mnist(tmp_path)

    def offline(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr("torchvision.datasets.FashionMNIST.download", offline)
    with pytest.raises(RuntimeError, match="are you online"):
        CaptionedImages.fashion_mnist(tmp_path, download=True)
