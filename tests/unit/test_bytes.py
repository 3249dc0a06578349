"""A byte of a stored file, changed at random: refused with the file's name and what to do, or no picture differs."""

import random
import re
import shutil
import warnings

import pytest
import torch

from course_utils.pipeline import TextToImage
from course_utils.weights import artifacts

FILES = {  # file -> what a refusal must name
    "unet.json": "unet.json",
    "vae.json": "vae.json",
    "clip.json": "clip.json",
    "tokenizer/vocab.json": "vocab.json",
    "tokenizer/merges.txt": "merges.txt",
    "tokenizer/tokenizer_config.json": "tokenizer_config.json",
    "unet.safetensors": "unet.safetensors",
    "vae.safetensors": "vae.safetensors",
    "clip.safetensors": "clip.safetensors",
}
REMEDY = re.compile(r"restore|train .*again", re.I)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copy") / "checkpoints"
    shutil.copytree(artifacts.checkpoints_folder(), folder)
    return folder


@pytest.fixture(scope="module")
def sound(copy):
    return what_draws(copy)


def what_draws(folder) -> list:
    """All that a picture depends on beside the arguments of the call."""
    pipe = TextToImage.from_pretrained(folder)
    networks = (pipe.vae, pipe.unet, pipe.text_encoder)
    return [
        *(network.config for network in networks),
        *(value for network in networks for value in network.state_dict().values()),
        pipe.schedule.betas,
        [pipe.tokenizer.sha256, pipe.prediction_type, pipe.size, pipe.spacing, pipe.steps_offset, pipe.last_t],
    ]


def same(a: list, b: list) -> bool:
    equal = (torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(a, b, strict=True))
    return all(equal)


def byte_changes(content: bytes, count: int, seed: int):
    """(place, new byte): half of them any byte, half a sign that could stand there, as a digit for a digit."""
    draw = random.Random(seed)
    for number in range(count):
        place = draw.randrange(len(content))
        alike = b"0123456789" if chr(content[place]).isdigit() else bytes(range(32, 127))
        yield place, draw.choice([b for b in (alike if number % 2 else range(256)) if b != content[place]])


@pytest.mark.parametrize("count", [12, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FILES)
def test_no_byte_changes_a_picture_without_a_word(copy, sound, name, count):
    path, refused, taken = copy / name, 0, 0
    content = path.read_bytes()
    try:
        for place, byte in byte_changes(content, count, seed=len(name)):
            path.write_bytes(content[:place] + bytes([byte]) + content[place + 1 :])
            where = f"{name}: byte {place}, {content[place : place + 1]!r} to {bytes([byte])!r}"
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    found = what_draws(copy)
            except ValueError as error:
                assert FILES[name] in str(error) and REMEDY.search(str(error)), f"{where}: {error}"
                refused += 1
            else:
                assert same(found, sound), f"{where}: another picture, without a word"
                taken += 1
    finally:
        path.write_bytes(content)
    print(f"{name}: {count} changes, {refused} refused, {taken} without effect")
    assert refused > count / 4
