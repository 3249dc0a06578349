"""The loop, its saved state, Muon, profiles and artifacts."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from course_utils.models.vae import VAE, VAEConfig
from course_utils.profiles import PROFILES, get_profile
from course_utils.training import loop, progress
from course_utils.training.interrupt import held_interrupts
from course_utils.training.loop import History, TrainingDiverged, learning_rate, train
from course_utils.training.muon import orthogonalise, split_parameters
from course_utils.weights import artifacts

TINY = VAEConfig((8, 8), norm_groups=4)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 1))


def regression(model: nn.Module):
    def loss(generator: torch.Generator) -> torch.Tensor:
        x = torch.randn(32, 3, generator=generator)
        return (model(x)[:, 0] - x.sum(1)).pow(2).mean()

    return loss


@pytest.mark.parametrize("muon_lr", [None, 0.02])
def test_training_learns_and_returns_the_average(muon_lr, capsys):
    model = net()
    history = train(model, regression(model), steps=200, lr=1e-2, muon_lr=muon_lr, precision="float32")
    assert len(history.losses) == 200
    assert history.smoothed(20)[-1] < 0.1 * history.losses[0]
    assert regression(model)(torch.Generator().manual_seed(5)).item() < 0.1
    assert "loss" in capsys.readouterr().out


@pytest.mark.parametrize("muon_lr", [None, 0.02])
def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path, muon_lr):
    def run(model, stop_at=None, folder=None):
        inner, calls = regression(model), [0]

        def loss(generator):
            calls[0] += 1
            if calls[0] == stop_at:
                os.kill(os.getpid(), signal.SIGINT)
            return inner(generator)

        return train(model, loss, steps=40, lr=1e-2, muon_lr=muon_lr, folder=folder, name="x", precision="float32")

    whole = net()
    expected = run(whole)
    stopped = net()
    with pytest.raises(KeyboardInterrupt):
        run(stopped, stop_at=18, folder=tmp_path)
    assert (tmp_path / "x.safetensors").exists()
    resumed = net()  # a new kernel knows nothing but the file
    history = run(resumed, folder=tmp_path)
    assert history.losses == pytest.approx(expected.losses, rel=1e-5)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert not (tmp_path / "x.safetensors").exists()


def test_a_network_of_matrices_only_is_trained_by_muon_alone():
    model = nn.Linear(3, 3, bias=False)
    before = model.weight.detach().clone()
    train(model, lambda g: model(torch.randn(8, 3, generator=g)).square().mean(), steps=3, lr=1e-2, muon_lr=0.02)
    assert not torch.equal(model.weight, before)


@pytest.mark.parametrize("step", [5, 12])  # 12 is the last one
def test_an_interrupt_waits_until_the_step_is_done(tmp_path, step):
    """Ctrl-C after the batch was drawn: a state saved there and then would have lost it."""
    expected, model = net(), net()
    whole = train(expected, regression(expected), steps=12, lr=1e-2, muon_lr=0.02, precision="float32")
    inner, calls = regression(model), []

    def loss(generator):
        calls.append(inner(generator))
        if len(calls) == step:
            os.kill(os.getpid(), signal.SIGINT)
        return calls[-1]

    options = {"steps": 12, "lr": 1e-2, "muon_lr": 0.02, "folder": tmp_path, "name": "x", "precision": "float32"}
    with pytest.raises(KeyboardInterrupt):
        train(model, loss, **options)
    assert len(calls) == step and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again = net()
    assert train(again, regression(again), **options).losses == whole.losses
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), expected.parameters(), strict=True))


def test_the_second_interrupt_is_not_held_back():
    with pytest.raises(KeyboardInterrupt), held_interrupts() as interrupted:
        assert not interrupted()
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted()
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second one was held back")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_in_another_thread_training_works_without_signals():
    model, losses = net(), []
    thread = threading.Thread(target=lambda: losses.extend(train(model, regression(model), steps=3, lr=1e-2).losses))
    thread.start()
    thread.join()
    assert len(losses) == 3


def test_no_weight_moves_in_a_step_whose_gradient_overflows():
    """In fp16 that happens now and then; Muon must not step with what AdamW's part of the gradient has spoilt."""
    model = net()
    inner, seen = regression(model), []

    def loss(generator):
        seen.append([p.detach().clone() for p in model.parameters()])
        value = inner(generator) / 1000  # small enough for the first scale, 2¹⁶
        if len(seen) == 4:  # 0 · ∞: the gradient of one bias, which is AdamW's, is not a number
            value = value + (0 * model[0].bias).abs().sqrt().sum()
        return value

    history = train(model, loss, steps=8, lr=1e-2, muon_lr=0.02, precision="fp16")
    moved = [
        any(not torch.equal(a, b) for a, b in zip(x, y, strict=True)) for x, y in zip(seen, seen[1:], strict=False)
    ]
    assert moved == [True, True, True, False, True, True, True]
    assert len(history.losses) == 8 and all(p.isfinite().all() for p in model.parameters())


def test_the_scale_of_fp16_losses_is_resumed(tmp_path):
    def run(folder, stop_at):
        model, calls = net(), []
        inner = regression(model)

        def loss(generator):
            calls.append(1)
            if len(calls) == stop_at:
                os.kill(os.getpid(), signal.SIGINT)
            value = inner(generator) / 1000
            return value if len(calls) != 2 else value + (0 * model[0].bias).abs().sqrt().sum()

        train(model, loss, steps=8, lr=1e-2, folder=folder, name="x", precision="fp16")

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop_at=4)
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert json.loads(file.metadata()["scaler"])["scale"] == 2.0**15  # 2¹⁶ at first, halved once
    model = net()
    inner, scales = regression(model), []

    def loss(generator):
        value = inner(generator) / 1000
        value.register_hook(lambda gradient: scales.append(gradient.item()))
        return value

    train(model, loss, steps=8, lr=1e-2, folder=tmp_path, name="x", precision="fp16")
    assert scales == [2.0**15] * 4


@pytest.mark.parametrize("save_seconds", [0, 1000])  # with the second nothing has been saved before
def test_a_second_interrupt_leaves_no_half_step(tmp_path, capsys, save_seconds):
    """The generator is ahead of the weights where it comes: a state saved there would skip a batch."""
    expected, model = net(), net()
    whole = train(expected, regression(expected), steps=12, lr=1e-2, muon_lr=0.02, precision="float32")
    inner, calls = regression(model), []

    def loss(generator):
        calls.append(inner(generator))
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return calls[-1]

    options = {"steps": 12, "lr": 1e-2, "muon_lr": 0.02, "folder": tmp_path, "name": "x", "precision": "float32"}
    with pytest.raises(KeyboardInterrupt):
        train(model, loss, save_seconds=save_seconds, **options)
    assert "goes on from what was saved before" in capsys.readouterr().out
    assert (tmp_path / "x.safetensors").exists() == (save_seconds == 0)
    again = net()
    assert train(again, regression(again), **options).losses == whole.losses
    assert ("going on from step 4" in capsys.readouterr().out) == (save_seconds == 0)


def test_a_killed_run_resumes_from_its_last_save(tmp_path, capsys):
    expected, model = net(), net()
    whole = train(expected, regression(expected), steps=30, lr=1e-2, precision="float32")

    def dies(generator, calls=[0]):  # noqa: B006
        calls[0] += 1
        if calls[0] == 12:
            raise SystemExit  # as sudden as a killed kernel: nothing is saved on the way out
        return regression(model)(generator)

    with pytest.raises(SystemExit):
        train(model, dies, steps=30, lr=1e-2, folder=tmp_path, name="x", save_seconds=0, precision="float32")
    again = net()
    history = train(again, regression(again), steps=30, lr=1e-2, folder=tmp_path, name="x", precision="float32")
    assert "going on from step 11" in capsys.readouterr().out
    assert history.losses == whole.losses


def test_a_broken_or_foreign_state_is_named_and_not_used(tmp_path, capsys):
    (tmp_path / "x.safetensors").write_bytes(b"not a safetensors file")
    model = net()
    train(model, regression(model), steps=3, lr=1e-2, folder=tmp_path, name="x")
    assert "cannot be read" in capsys.readouterr().out
    for metadata in (None, {"format": "pt"}):  # weights from elsewhere
        save_file(model.state_dict(), tmp_path / "x.safetensors", metadata)
        train(model, regression(model), steps=3, lr=1e-2, folder=tmp_path, name="x")
        assert "saved with other settings or another network" in capsys.readouterr().out


@pytest.mark.parametrize("change", [{"lr": 2e-2}, {"clip_norm": 0.5}, {"betas": (0.9, 0.95)}, {"made_from": "b"}])
def test_a_state_of_another_run_is_not_taken_up(tmp_path, capsys, change):
    options = {"steps": 6, "lr": 1e-2, "folder": tmp_path, "name": "x", "precision": "float32", "made_from": "a"}

    def run(calls, **options):
        def loss(generator):
            calls.append(1)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGINT)
            return inner(generator)

        model = net()
        inner = regression(model)
        return train(model, loss, **options)

    with pytest.raises(KeyboardInterrupt):
        run([], **options)
    assert len(run([1] * 3, **{**options, **change}).losses) == 6
    assert "saved with other settings" in capsys.readouterr().out


def test_nan_stops_with_advice():
    model = net()
    with pytest.raises(TrainingDiverged, match=r"became nan at step 0.*lower learning rate"):
        train(model, lambda g: model(torch.full((1, 3), float("nan"))).sum(), steps=5, lr=1e-2)


def test_previews_come_as_often_as_asked():
    model, seen = net(), []
    train(model, regression(model), steps=20, lr=1e-2, preview=lambda step, m, losses: seen.append(step), previews=4)
    assert seen == [5, 10, 15, 20]


def test_learning_rate_rises_and_falls_to_zero():
    rates = [learning_rate(i, 100, 1.0, 10) for i in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] < 0.001
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_orthogonalise_brings_singular_values_near_one():
    matrices = torch.randn(3, 16, 40, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_muon_leaves_first_last_and_vectors_to_adamw():
    hidden, rest = split_parameters(VAE(TINY))
    assert all(p.ndim >= 2 for p in hidden)
    assert sum(p.numel() for p in hidden) + sum(p.numel() for p in rest) == sum(
        p.numel() for p in VAE(TINY).parameters()
    )


@pytest.mark.parametrize(("gain", "wanted"), [(0.01, "float32"), (0.9, "float32"), (2.0, "bf16")])
def test_the_faster_precision_is_taken_and_a_hopeless_one_not_tried_at_length(gain, wanted, monkeypatch):
    sides = []

    def product_seconds(dtype, side):
        sides.append(side)
        return 1.0 / (gain if dtype is torch.bfloat16 else 1.0)

    monkeypatch.setattr(loop, "product_seconds", product_seconds)
    for function in (loop.lacks_bf16, loop.best_precision):
        function.cache_clear()
    assert loop.best_precision("cpu") == wanted and loop.lacks_bf16() == (gain < 0.2)
    assert max(sides) == (128 if gain < 0.2 else 768)
    for function in (loop.lacks_bf16, loop.best_precision):
        function.cache_clear()


def test_history_smooths():
    assert History([1.0, 2.0, 3.0], 1.5).smoothed(2) == pytest.approx([1.5, 2.5])
    assert History([1.0, 2.0, 3.0], 1.5).steps_per_second == pytest.approx(2.0)


def test_profiles_are_named(monkeypatch):
    for name in PROFILES:
        assert get_profile(name).name == name
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    assert get_profile().name == "smoke"
    with pytest.raises(ValueError, match="no profile 'laptop'.*smoke, cpu, long, gpu"):
        get_profile("laptop")


@pytest.fixture
def stored(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_HOME", str(tmp_path))
    monkeypatch.delenv("COURSE_ARTIFACTS", raising=False)
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    vae = VAE(TINY)
    path = artifacts.save_artifact("vae", vae, metrics={"psnr": 20.5}, steps=3)
    return vae, path


def test_artifacts_come_back_bit_for_bit(stored, capsys):
    vae, path = stored
    again = artifacts.load_model(VAE, VAEConfig, "vae")
    assert all(torch.equal(a, b) for a, b in zip(vae.state_dict().values(), again.state_dict().values(), strict=True))
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["metrics"] == {"psnr": 20.5}
    assert card["profile"] == "smoke"
    assert "OpenMoji" in card["license"]
    assert "your own training" in capsys.readouterr().out
    own = artifacts.save_artifact("own", vae, license="all rights reserved").with_suffix(".json")
    assert json.loads(own.read_text())["license"] == "all rights reserved"


def test_checkpoints_stand_in_for_what_is_not_trained_yet(stored, tmp_path, capsys):
    _, path = stored
    path.parent.rename(tmp_path / "checkpoints")
    artifacts.load_model(VAE, VAEConfig, "vae")
    assert "the course's checkpoints" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["cut", "altered"])
def test_damaged_weights_are_refused(stored, damage):
    _, path = stored
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    else:
        data[-5] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="cut short or altered"):
        artifacts.load_artifact("vae")


def test_missing_parts_say_what_to_do(stored):
    with pytest.raises(FileNotFoundError, match="run notebook 05_unet_cfg"):
        artifacts.load_artifact("unet")


def test_a_notebook_shows_one_line_of_an_interrupt(tmp_path):
    """IPython's own shell, in a process of its own: what it prints of a cell that was stopped."""
    cell = (
        "import os, signal, torch\nfrom course_utils.training.loop import train\nmodel = torch.nn.Linear(1, 1)\n"
        "def loss(g):\n    os.kill(os.getpid(), signal.SIGINT)\n    return model(torch.ones(1, 1)).sum()\n"
        f"train(model, loss, steps=9, lr=0.1, name='vae', folder={str(tmp_path)!r}, precision='float32')"
    )
    code = (
        "from IPython.core.interactiveshell import InteractiveShell as Shell\n"
        f"result = Shell.instance(colors='NoColor').run_cell({cell!r})\n"
        "assert type(result.error_in_exec) is KeyboardInterrupt"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    said = done.stdout.replace("\r", "\n").splitlines()
    assert said[-2].startswith("vae: stopped at step 1 of 9, saved to")
    assert said[-1] == "KeyboardInterrupt: vae was stopped"
    assert "Traceback" not in done.stdout + done.stderr


def test_the_time_left_is_told_once_it_is_known(monkeypatch, capsys):
    """A first step of 100 s before steps of 2 s: no estimate comes of it, and those that come are right."""
    now = [1e9]
    monkeypatch.setattr(progress.time, "time", lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    with progress.progress_bar("x", start=10, steps=40) as bar:
        for step in range(11, 41):
            now[0] += 100 if step == 11 else 2
            bar.step([1.0])
            shown = capsys.readouterr().out.split("\r")[-1]
            assert f"{step}/40 steps" in shown and "loss 1.0000" in shown
            if step <= 10 + progress.WAIT:
                assert "left" not in shown
            else:
                left = re.search(r"(\d+):(\d+) left", shown)
                assert 60 * int(left[1]) + int(left[2]) == 2 * (40 - step)
