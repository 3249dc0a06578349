"""What a finished run becomes: the course's own weights, in half precision, under cards that name these files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import publish
import pytest
import torch
from safetensors.torch import load_file

from course_utils.weights.artifacts import checkpoints_folder, sha256, write_safely


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run's folder: the course's weights, in single precision again."""
    folder = Path(shutil.copytree(checkpoints_folder(), tmp_path / "run"))
    checksums = {}
    for part in publish.PARTS:
        path = folder / f"{part}.safetensors"
        before = sha256(path)
        write_safely(path, {name: v.float() for name, v in load_file(path).items()}, {})
        checksums[before] = sha256(path)
    for card in folder.glob("*.json"):
        text = card.read_text(encoding="utf-8")
        for before, after in checksums.items():
            text = text.replace(before, after)
        card.write_text(text, encoding="utf-8")
    return folder


def test_weights_cards_and_tokenizer_are_put_in_place_of_the_old_ones(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "checkpoints"
    target.mkdir()
    (target / "old.safetensors").write_text("of the run before")
    publish.copy_weights(run, target)
    assert not (target / "old.safetensors").exists() and not target.with_name("checkpoints.new").exists()
    assert (target / "tokenizer" / "merges.txt").is_file()
    for part in publish.PARTS:
        card = json.loads((target / f"{part}.json").read_text(encoding="utf-8"))
        assert card["sha256"] == sha256(target / f"{part}.safetensors")
        tensors = load_file(target / f"{part}.safetensors").values()
        assert {v.dtype for v in tensors if v.is_floating_point() and v.numel() > 1000} == {torch.float16}
    scores = json.loads((target / "scores.json").read_text(encoding="utf-8"))
    for part, checksum in scores["trained_with"].items():
        assert checksum == sha256(target / f"{part}.safetensors")


def test_an_unfinished_run_replaces_nothing(run: Path, tmp_path: Path) -> None:
    (run / "judge.json").unlink()
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(SystemExit, match="judge.json missing"):
        publish.copy_weights(run, tmp_path / "checkpoints")
    assert not list((tmp_path / "checkpoints").iterdir())


def test_the_table_sets_an_hour_beside_a_night(run: Path, tmp_path: Path) -> None:
    hour = tmp_path / "hour"
    hour.mkdir()
    scores = json.loads((run / "scores.json").read_text(encoding="utf-8"))
    scores["metrics"]["nearest_true_scene"] = 12.25
    (hour / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
    (hour / "times.json").write_text('{"01_vae": 60, "02_forward_process": 30}')
    table = publish.score_table(run, hour)
    night = json.loads((run / "scores.json").read_text(encoding="utf-8"))["metrics"]["nearest_true_scene"]
    assert f"| 12.25 dB | {night:.2f} dB |" in table and "2 minutes (01: 1.0, 02: 0.5)" in table
    del scores["metrics"]["frechet"]
    (hour / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
    with pytest.raises(SystemExit, match="frechet"):
        publish.score_table(run, hour)
