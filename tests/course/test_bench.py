"""make bench: what it counts, how it takes turns, and the table it writes. Tiny networks, few steps."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import bench
import machine
import pytest
import torch
import torch.nn.functional as F
from benchmarks import cases, measure, memory, networks, table
from torch import nn

from course_utils.models.clip import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from course_utils.models.unet import UNetConfig
from course_utils.models.vae import VAEConfig
from course_utils.profiles import PROFILES, Budget

ROOT = Path(__file__).resolve().parents[2]
TWO = Budget(1, 2, 1e-3, 0.02)
TINY = replace(
    PROFILES["smoke"],
    test_scenes=32,
    vae=VAEConfig((8, 16), norm_groups=4),
    vae_budget=TWO,
    clip=CLIPConfig(CLIPTextConfig(1024, 16, 32, 1, 2), CLIPVisionConfig(64, 16, 32, 1, 2), embed_dim=16),
    clip_budget=TWO,
    unet=UNetConfig((8, 16), heads=2, context_width=12, norm_groups=4),
    unet_budget=TWO,
    sampling_steps=2,
)


# --- operations -----------------------------------------------------------------------------------------


def counted(step) -> int:
    return measure.count_operations(measure.timed(step))


def test_a_matrix_product_is_counted_forward_and_backward() -> None:
    a, b = torch.randn(3, 5, requires_grad=True), torch.randn(5, 7, requires_grad=True)
    assert counted(lambda: a @ b) == 2 * 3 * 5 * 7
    assert counted(lambda: (a @ b).sum().backward()) == 3 * 2 * 3 * 5 * 7  # the product, and one for each gradient


def test_a_convolution_is_counted_forward_and_backward() -> None:
    conv = nn.Conv2d(3, 8, 3, padding=1)
    x = torch.randn(2, 3, 6, 5, requires_grad=True)
    once = 2 * (2 * 8 * 6 * 5) * (3 * 3 * 3)  # two for each number that comes out and each weight it meets
    assert counted(lambda: conv(x)) == once
    assert counted(lambda: conv(x).sum().backward()) == 3 * once


def test_attention_is_counted_alike_whatever_computes_it() -> None:
    q, k, v = (torch.randn(2, 4, length, 8, requires_grad=True) for length in (16, 10, 10))
    once = 2 * (2 * 2 * 4 * 16 * 10 * 8)  # scores, then values
    plain = counted(lambda: ((q @ k.mT).softmax(-1) @ v).sum().backward())
    fused = counted(lambda: F.scaled_dot_product_attention(q, k, v).sum().backward())
    assert plain == fused == 3 * once


@pytest.mark.parametrize("key", networks.NETWORKS)
def test_networks_are_the_same_and_do_the_same_work(key: str) -> None:
    network = networks.NETWORKS[key](TINY)
    networks.check_same(network)
    steps = {side: networks.trainer(network, side, "float32") for side in networks.SIDES}
    work = {side: measure.count_operations(run) for side, run in steps.items()}
    same = 0.01 if key == "clip" else 0.06  # ours need fewer products for upsampling
    assert work["ours"] == pytest.approx(work["theirs"], rel=same)
    assert key == "clip" or work["ours"] < work["theirs"]
    assert work["course"] > work["ours"], "Muon's matrix products are part of the course's own step"


def test_different_networks_are_not_compared() -> None:
    network = networks.NETWORKS["unet"](TINY)

    def other() -> nn.Module:
        model = network.make_theirs()
        with torch.no_grad():
            model.conv_out.weight.mul_(1.1)
        return model

    with pytest.raises(RuntimeError, match="not the same network"):
        networks.check_same(replace(network, make_theirs=other))


# --- turns ----------------------------------------------------------------------------------------------


class Clock:
    """Two pieces of work on a machine that becomes slower with every repeat; b takes twice as long as a."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def side(self, name: str, seconds: float) -> measure.Run:
        def run(repeats: int) -> float:
            self.calls.append(name)
            slower = (len(self.calls) + 1) // 2  # the same for both turns of a round
            return repeats * seconds * slower

        return run


def test_sides_take_turns_and_their_ratio_survives_a_machine_that_slows_down() -> None:
    clock, ticks = Clock(), []
    sides = {"a": clock.side("a", 0.1), "b": clock.side("b", 0.2)}
    rates = measure.alternate(sides, rounds=4, seconds=0.5, tick=ticks.append)
    assert clock.calls[-8:] == ["a", "b"] * 4 == ticks
    assert rates["a"][0] > 1.5 * rates["a"][-1]
    faster = measure.spread(measure.ratios(rates["a"], rates["b"]))
    assert faster == pytest.approx({"median": 2, "low": 2, "high": 2}) and len(rates["b"]) == 4
    with pytest.raises(ValueError, match="rounds"):
        measure.alternate(sides, rounds=0, seconds=1)


def test_a_slow_side_still_takes_two_repeats() -> None:
    asked: list[int] = []

    def slow(repeats: int) -> float:
        asked.append(repeats)
        return 10.0 * repeats

    assert measure.alternate({"slow": slow}, rounds=2, seconds=0.1)["slow"] == [0.1, 0.1]
    assert asked[2:] == [2, 2]


# --- the table ------------------------------------------------------------------------------------------


def test_one_run_writes_the_table_and_every_round(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(bench.PROFILES, "smoke", TINY)
    monkeypatch.setattr(cases, "QUICK", cases.Effort(rounds=2, seconds=0.01, sizes=(64, 96)))
    monkeypatch.setattr(cases, "PICTURES", 2)
    monkeypatch.setattr(cases, "PRECISIONS", ("float32", "bf16"))  # so tiny that any processor can
    assert bench.main(["--quick", "--profile", "smoke", "--output", str(tmp_path)]) == 0

    text = (tmp_path / "bench.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    lines = [line for line in text.splitlines() if line.startswith("|")]
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {len(cells) for cells in split} == {len(table.HEADER)} and set("".join(split[1])) == {"-", ":"}
    assert split[0] == list(table.HEADER) and all(all(cells) for cells in split)

    results = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    rows = {row["key"]: row for row in results["rows"]}
    assert len(rows) == len(lines) - 2 and results["how"]["rounds"] == 2
    expected = {f"{key}{own} {p}" for key in networks.NETWORKS for own in ("", " course") for p in cases.PRECISIONS}
    expected |= {f"{key} {p}" for key in ("product", "sampling") for p in cases.PRECISIONS}
    assert expected < rows.keys() and len(rows) == len(expected) + 4  # and four of the data

    for key in ("vae float32", "clip bf16", "unet float32", "sampling bf16"):
        row = rows[key]
        each = [a / b for a, b in zip(row["ours"]["rounds"], row["theirs"]["rounds"], strict=True)]
        assert row["ratio"]["rounds"] == each and len(each) == 2
        assert row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"]
    assert 0 < rows["unet float32"]["share"]["median"] < 1
    assert (
        rows["unet course bf16"]["operations"] > rows["unet bf16"]["operations"] == rows["unet float32"]["operations"]
    )


def test_shares_ratios_and_memory_of_a_row() -> None:
    row = table.Row(
        "unet bf16", "U-Net", "bf16", "steps/s", [3.0, 2.0, 1.0], [1.5, 2.0, 2.0], operations=10**9,
        product=[6e9, 8e9, 10e9], memory=("mine", "gone"),
    ).summary({"mine": {"peak": 812e6, "added": 240e6}})  # fmt: skip
    assert row["ratio"]["rounds"] == [2.0, 1.0, 0.5] and row["ratio"]["median"] == 1.0
    assert row["share"] == pytest.approx({"median": 0.25, "low": 0.1, "high": 0.5})
    cells = dict(zip(table.HEADER, table.cells(row), strict=True))
    assert cells["ours"] == "2.00 (1.00–3.00)" and cells["ours ÷ theirs"] == "**1.00** (0.50–2.00)"
    assert cells["share of matrix products"] == "25.0 % (10.0–50.0)" and cells["GFLOP a step"] == "1.00"
    assert cells["peak memory, MB: ours"] == "812 (+240)" and cells["theirs"] == table.NOTHING


def test_other_pictures_are_not_compared() -> None:
    from PIL import Image

    cases.check_same_pictures([Image.new("RGB", (8, 8), (9, 9, 9))], [Image.new("RGB", (8, 8), (9, 10, 9))])
    with pytest.raises(RuntimeError, match="different pictures"):
        cases.check_same_pictures([Image.new("RGB", (8, 8), "red")], [Image.new("RGB", (8, 8), "blue")])


# --- memory, and the command ----------------------------------------------------------------------------


def test_memory_is_that_of_the_case_alone() -> None:
    block = torch.ones(300_000_000)  # 1.2 GB, which the new process must not be charged with
    found = memory.memory_of("drawing", "smoke")
    assert 20e6 < found["peak"] < machine.peak_memory() - block.nbytes / 2
    assert 0 <= found["added"] < found["peak"] and found["seconds"] > 0
    with pytest.raises(RuntimeError, match="there is no memory case 'judge ours float32'"):
        memory.memory_of("judge ours float32", "smoke")


def test_training_needs_memory_beyond_the_weights() -> None:
    found = memory.memory_of("unet theirs float32", "smoke")
    weights = 4 * sum(p.numel() for p in networks.unet_network(PROFILES["smoke"]).make_ours().parameters())
    assert found["added"] > 3 * weights, "gradients and AdamW's two averages alone are three times the weights"


def test_every_training_and_sampling_row_has_its_memory_case() -> None:
    every = memory.memory_cases()
    wanted = {f"{key} {side} {p}" for key in networks.NETWORKS for side in networks.SIDES for p in cases.PRECISIONS}
    wanted |= {f"sampling {side} {p}" for side in ("ours", "theirs") for p in cases.PRECISIONS}
    assert set(every) == wanted | {memory.DRAWING} and len(every) == len(set(every))
    assert {case.split()[0] for case in memory.memory_cases(["unet", "memory"])} == {"unet"}


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_bench() -> None:
    def shown(*arguments: str) -> str:
        return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "make bench " in shown("-s")
    assert "experiments/bench.py --quick" in shown("-n", "bench", "QUICK=1")
    assert "--quick" not in shown("-n", "bench")
