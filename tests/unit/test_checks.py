"""What the checks do with a version that passes, fails, stops or is missing. Their mutants live in tests/mutation."""

from __future__ import annotations

import importlib
import inspect
import sys

import pytest
import torch

from course_utils.checks import base, forward, reverse, vae
from course_utils.checks.base import Mistake
from course_utils.diffusion import NoiseSchedule, snr
from course_utils.diffusion import forward as package


def test_a_right_version_comes_back(capsys: pytest.CaptureFixture[str]) -> None:
    def mine(alpha_bar):
        return 1 / (1 / alpha_bar - 1)

    assert forward.snr(mine) is mine
    assert capsys.readouterr().out == "snr: correct\n"


def not_solved(*arguments):
    raise NotImplementedError


def gives_up(*arguments):
    sys.exit(1)


def divides(*arguments):
    return 1 / 0


def asks(*arguments):
    raise NotImplementedError("this frontend does not support input requests")  # what input() comes to


@pytest.mark.parametrize(
    ("candidate", "words"),
    [
        (lambda a: a, "that is the signal's share"),
        (not_solved, "not solved yet"),
        (gives_up, "stops with SystemExit: 1 (in the line sys.exit(1))"),
        (divides, "stops with ZeroDivisionError: division by zero (in the line return 1 / 0)"),
        (asks, "stops with NotImplementedError: this frontend"),
        (snr, "this is the course's own version, not yours"),
        (None, "snr is not a function"),
        (3, "snr is not a function"),
    ],
)
def test_any_other_gives_way_to_the_course_s(candidate, words: str, capsys, monkeypatch) -> None:
    assert forward.snr(candidate) is snr
    said = capsys.readouterr().out
    assert words in said and "goes on with the course's version of snr" in said
    monkeypatch.setenv("COURSE_GRADING", "1")
    with pytest.raises(Mistake) as refused:
        forward.snr(candidate)
    assert words in str(refused.value)
    assert refused.value.__context__ is None  # feedback shows the reason alone, no error that led to it


def test_an_interrupt_is_the_learner_s_own() -> None:
    def interrupted(alpha_bar):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        forward.snr(interrupted)


def test_checks_are_named_and_documented_after_the_exercise() -> None:
    assert forward.add_noise.__name__ == "add_noise" and "√ᾱ" in (forward.add_noise.__doc__ or "")
    assert vae.reparameterise(lambda *_: None).__module__ == "course_utils.models.vae"


def test_checks_leave_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    forward.add_noise(package.add_noise)
    reverse.denoising_loss(lambda *_: None)
    assert torch.equal(torch.get_rng_state(), before)


def test_numbers_are_others_on_each_call_and_the_same_in_each_run() -> None:
    assert not torch.equal(base.random_tensor(4), base.random_tensor(4))
    runs: list[list[torch.Tensor]] = [[], []]
    for seen in runs:
        forward.snr(lambda a, seen=seen: seen.append(a.clone()) or a / (1 - a))
    assert len(runs[0]) > 3 and all(torch.equal(a, b) for a, b in zip(*runs, strict=True)), "a grade by luck"


def test_half_noise_is_counted_one_by_one() -> None:
    left, steps = 1.0, 0
    while left > 0.5:
        left, steps = left * (1 - NoiseSchedule.linear().betas[steps].item()), steps + 1
    assert forward._half_noise() == steps == 260


@pytest.mark.parametrize("module", ["vae", "forward", "reverse", "clip", "unet", "pipeline"])
def test_what_notebooks_call_check_offers_nothing_but_checks(module: str) -> None:
    """A public helper there, such as one that counts half_noise's steps, would be an answer to call."""
    check = importlib.import_module(f"course_utils.checks.{module}")
    own = {name: value for name, value in vars(check).items() if getattr(value, "__module__", "") == check.__name__}
    public = {name: value for name, value in own.items() if inspect.isfunction(value) and not name.startswith("_")}
    assert [name for name, value in public.items() if not hasattr(value, "reference")] == []


def test_name_it_says_that_numbers_are_not_finite() -> None:
    slips = {"it is one": torch.ones(2), "it is nan": torch.full((2,), float("nan"))}
    assert str(base.name_it(torch.ones(2), slips, "else")) == "it is one"
    assert str(base.name_it(torch.zeros(2), slips, "else")) == "else"
    assert "nan or infinite" in str(base.name_it(torch.full((2,), float("nan")), slips, "else"))


@pytest.mark.parametrize("value", [3, 3.0, torch.tensor(3.0), torch.tensor([3])])
def test_one_number(value) -> None:
    assert base.one_number(value, "it") == 3.0


@pytest.mark.parametrize("value", [True, "3", None, [3], torch.zeros(2)])
def test_not_one_number(value) -> None:
    with pytest.raises(Mistake, match="it must be one number"):
        base.one_number(value, "it")
