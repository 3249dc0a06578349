"""What a training step does without waiting for a GPU, tried with numbers on the CPU."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from course_utils.training.compiling import compiled, parts_to_compile
from course_utils.training.loop import History
from course_utils.training.moving import kept_near, moved
from course_utils.training.muon import Muon, make_optimizers
from course_utils.training.steps import LossReader, step_unless, update_ema


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 1))


def with_gradients(model: nn.Module, seed: int) -> None:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed))
    model.zero_grad()
    model(x).square().mean().backward()


def optimizers_of(model: nn.Module) -> list[torch.optim.Optimizer]:
    return make_optimizers(model, 1e-2, 0.02, (0.9, 0.99), 0.01)


def everything(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> list[torch.Tensor]:
    held = [v for o in optimizers for entry in o.state.values() for v in entry.values()]
    return [torch.as_tensor(t).detach().clone() for t in [*model.parameters(), *held]]


@pytest.mark.parametrize("poison", [math.inf, math.nan])
def test_what_overflows_moves_nothing_and_no_momentum(poison):
    model = net()
    optimizers = optimizers_of(model)
    with_gradients(model, 1)
    step_unless(torch.tensor(False), optimizers)
    before = everything(model, optimizers)
    with_gradients(model, 2)
    for p in model.parameters():
        p.grad[..., 0] = poison
    step_unless(torch.tensor(True), optimizers)
    after = everything(model, optimizers)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not any(hasattr(o, "found_inf") for o in optimizers)


def test_what_does_not_overflow_steps_as_ever():
    one, two = net(), net()
    first, second = optimizers_of(one), optimizers_of(two)
    for seed in range(3):
        with_gradients(one, seed)
        with_gradients(two, seed)
        step_unless(torch.tensor(False), first)
        for optimizer in second:
            optimizer.step()
    for a, b in zip(everything(one, first), everything(two, second), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_muon_steps_in_fp16_where_gradients_are_next_to_its_least_number():
    """A T4's tensor cores have float16 and no bfloat16; momenta of 1e-7 are next to nothing there."""
    exact, coarse = nn.Parameter(torch.zeros(8, 32)), nn.Parameter(torch.zeros(8, 32))
    gradient = 1e-6 * torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    for p, dtype, scale in ((exact, torch.float32, 1e4), (coarse, torch.float16, 1.0)):
        p.grad = scale * gradient  # only the direction counts, and in float32 the smallest length that is divided by
        Muon([p], lr=0.1, dtype=dtype).step()
    assert coarse.detach().norm() > 0.1
    assert torch.cosine_similarity(exact.flatten(), coarse.flatten(), dim=0) > 0.999


def test_losses_are_read_a_few_at_a_time_and_in_order():
    history = History()
    reader = LossReader(history, 3, lambda step, value: ValueError(f"{step}: {value}"))
    seen = []
    for i in range(7):
        reader.add(torch.tensor(float(i)))
        seen.append(len(history.losses))
    assert seen == [0, 0, 3, 3, 3, 6, 6]
    reader.read()
    reader.read()
    assert history.losses == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_a_bad_loss_is_named_with_its_own_step_however_late():
    history = History([9.0])  # a run that goes on
    reader = LossReader(history, 4, lambda step, value: ValueError(f"{value} at {step}"))
    for value in (1.0, math.inf, math.nan):
        reader.add(torch.tensor(value))
    with pytest.raises(ValueError, match="inf at 2"):
        reader.add(torch.tensor(2.0))
    assert history.losses == [9.0, 1.0]


def test_the_average_is_the_sum_of_the_formula():
    model = net()
    average = copy.deepcopy(model)
    before = [p.detach().clone() for p in average.parameters()]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    update_ema(average, model, 0.9)
    for old, a in zip(before, average.parameters(), strict=True):
        torch.testing.assert_close(a.detach(), old + 0.1)


def test_on_a_processor_nothing_is_copied():
    x, cpu = torch.arange(3), torch.device("cpu")
    assert moved(x, cpu) is x and kept_near(x, cpu) is x


def test_a_picture_set_too_large_for_the_gpu_stays_where_it_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    x = torch.zeros(251, dtype=torch.uint8)
    assert kept_near(x, torch.device("cuda")) is x


def test_compiled_parts_are_what_they_were_afterwards():
    model = net()
    x = torch.randn(4, 3)
    expected, names = model(x), list(model.state_dict())
    with compiled(model, backend="eager"):
        assert model._compiled_call_impl is not None
        assert copy.deepcopy(model)._compiled_call_impl is None
        assert list(model.state_dict()) == names
        torch.testing.assert_close(model(x), expected)
    assert model._compiled_call_impl is None
    with compiled(model, enabled=False):
        assert model._compiled_call_impl is None


def test_what_is_called_in_training_is_what_is_compiled():
    from tests.unit.tiny import PROFILE, recipe, scenes

    vae = recipe("vae", scenes(32), PROFILE).network
    assert parts_to_compile(vae) == [vae.encoder, vae.decoder]
    plain = net()
    assert parts_to_compile(plain) == [plain]
