"""Nothing is lost, and nothing put together that does not belong together, when training or saving stops anywhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from course_utils.data.batches import CaptionedImages
from course_utils.files import only_run
from course_utils.models.clip import CLIP, CLIPConfig
from course_utils.models.tokenizer import Tokenizer
from course_utils.training import loop
from course_utils.training import parts as parts_module
from course_utils.training.finetuning import finetune_parts
from course_utils.training.loop import train
from course_utils.training.parts import train_parts
from course_utils.weights.artifacts import load_model, read_card
from tests.unit import tiny
from tests.unit.test_training import net, regression
from tests.unit.tiny import STEPS, scenes

PROFILE = replace(tiny.PROFILE, vocab_size=1024)  # captions grow in a test, and are to fit all the same
EXACT = {"precision": "float32", "report": lambda line: None}


class Stopped(BaseException):
    """As sudden as a killed process: nothing is done on the way out that a caller could rely on."""


def stop(*_args, **_options):
    raise Stopped


@pytest.fixture(scope="module")
def data() -> CaptionedImages:
    return scenes(32)


def other_captions(data: CaptionedImages) -> CaptionedImages:
    return CaptionedImages(data.images, [f"lo, {text}" for text in data.captions], data.attributes)


def test_a_full_disk_leaves_the_old_tokenizer_whole(tmp_path, monkeypatch):
    old = Tokenizer.train(["a dog and a cat"], 600)
    old.save(tmp_path)
    write, calls = Path.write_bytes, []

    def full(path, content):
        calls.append(path)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        Tokenizer.train(["a zebra on a bus"], 600).save(tmp_path)
    assert Tokenizer.load(tmp_path).sha256 == old.sha256 and len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("when", ["before the tokenizer", "behind it"])
def test_clip_and_tokenizer_stay_a_pair(tmp_path, data, monkeypatch, when):
    options = {"folder": tmp_path, "which": ("clip",), **EXACT}
    train_parts(PROFILE, data, **options)
    first, newer = read_card("clip", tmp_path), other_captions(data)
    where = (Tokenizer, "save") if when == "before the tokenizer" else (parts_module, "save_artifact")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(*where, stop)
        train_parts(PROFILE, newer, **options)
    if when == "before the tokenizer":
        load_model(CLIP, CLIPConfig, "clip", tmp_path)  # all is as it was
    else:
        with pytest.raises(ValueError, match="is not the one that clip.safetensors was trained with"):
            load_model(CLIP, CLIPConfig, "clip", tmp_path)
    trained = train_parts(PROFILE, newer, **options)
    card = read_card("clip", tmp_path)
    assert card["tokenizer"] == Tokenizer.load(tmp_path / "tokenizer").sha256 == trained.tokenizer.sha256
    assert card["tokenizer"] != first["tokenizer"]


@pytest.mark.parametrize("damage", ["tokenizer cut", "tokenizer gone", "tokenizer of another", "weights", "card"])
def test_what_is_damaged_counts_as_unfinished(tmp_path, data, capsys, damage):
    options = {"folder": tmp_path, "which": ("clip",), **EXACT}
    weights = train_parts(PROFILE, data, **options).clip.state_dict()
    path = tmp_path / {"weights": "clip.safetensors", "card": "clip.json"}.get(damage, "tokenizer/vocab.json")
    if damage == "tokenizer gone":
        path.unlink()
    elif damage == "tokenizer of another":
        Tokenizer.train(["a dog"], 600, PROFILE.clip.text.max_length).save(path.parent)
    else:
        path.write_bytes(path.read_bytes()[:-100])
    capsys.readouterr()
    again = train_parts(PROFILE, data, **options)
    assert "clip: trained again. " in capsys.readouterr().out and len(again.losses["clip"]) == STEPS
    load_model(CLIP, CLIPConfig, "clip", tmp_path)
    for name, value in again.clip.state_dict().items():
        assert torch.equal(value, weights[name]), name


@pytest.mark.parametrize("where", ["latent_scale", "save_artifact"])
def test_a_stop_behind_the_last_step_loses_no_training(tmp_path, data, monkeypatch, capsys, where):
    options = {"folder": tmp_path, "which": ("vae",), **EXACT}
    whole = train_parts(PROFILE, data, which=("vae",), **EXACT)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(parts_module, where, stop)
        train_parts(PROFILE, data, **options)
    capsys.readouterr()
    again = train_parts(PROFILE, data, **options)
    assert f"going on from step {STEPS}" in capsys.readouterr().out
    assert again.losses["vae"] == whole.losses["vae"]
    for name, value in again.vae.state_dict().items():
        assert torch.equal(value, whole.vae.state_dict()[name]), name
    assert not list((tmp_path / "training").iterdir())  # now that the part is safe


def test_a_finished_state_gives_its_result_at_once(tmp_path):
    options = {"steps": 5, "lr": 1e-2, "folder": tmp_path, "name": "x", "precision": "float32"}
    model, again = net(), net()
    whole = train(model, regression(model), keep_state=True, **options)
    assert train(again, stop, **options).losses == whole.losses
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not list(tmp_path.iterdir())


def test_a_save_that_fails_does_not_end_the_training(tmp_path, monkeypatch, capsys):
    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loop, "save_state", full)
    model = net()
    history = train(model, regression(model), steps=5, lr=1e-2, folder=tmp_path, name="x", save_seconds=0)
    assert len(history.losses) == 5
    assert "x: step 1 could not be saved. [Errno 28] No space left on device" in capsys.readouterr().out


def test_where_nothing_can_be_saved_no_step_is_taken(tmp_path, data):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file cannot be written to"):
        train(net(), stop, steps=5, lr=1e-2, folder=tmp_path / "file", name="x")
    with pytest.raises(OSError, match="file cannot be written to"):
        train_parts(PROFILE, data, folder=tmp_path / "file", which=("vae",), **EXACT)


def test_a_second_run_does_not_write_where_one_is_writing(tmp_path, data):
    given = train_parts(PROFILE, data, **EXACT)
    with only_run(tmp_path / ".lock"):
        for run in (lambda: train_parts(PROFILE, data, folder=tmp_path, **EXACT),
                    lambda: finetune_parts(PROFILE, data, given, tmp_path, **EXACT)):  # fmt: skip
            with pytest.raises(BlockingIOError, match="another run is writing to"):
                run()
    with only_run(tmp_path / "x.lock"), pytest.raises(BlockingIOError, match="another run is writing to"):
        train(net(), stop, steps=5, lr=1e-2, folder=tmp_path, name="x")
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]
