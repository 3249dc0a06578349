"""Dropping the condition, and guidance."""

import pytest
import torch

from course_utils.diffusion import drop_condition, guided, in_interval


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


CONTEXT = torch.arange(4 * 3 * 2, dtype=torch.float32).reshape(4, 3, 2) + 1
UNCOND = -torch.ones(1, 3, 2)


class Recorder:
    """A denoiser that can be worked out by hand, and remembers what it was called with."""

    def __init__(self):
        self.calls = []

    def __call__(self, x_t, t, context):
        self.calls.append((x_t, t, context))
        return x_t * 2 + t[:, None] + context.sum(dim=(1, 2))[:, None]


def test_drop_nothing_and_all():
    assert torch.equal(drop_condition(CONTEXT, UNCOND, 0, generator()), CONTEXT)
    assert torch.equal(drop_condition(CONTEXT, UNCOND, 1, generator()), UNCOND.expand(4, -1, -1))
    assert torch.equal(drop_condition(CONTEXT, CONTEXT + 1, 1.0, generator()), CONTEXT + 1)


def test_drop_takes_whole_samples_at_the_right_rate():
    n = 20_000
    out = drop_condition(torch.ones(n, 3, 2), torch.zeros(1, 3, 2), 0.1, generator())
    per_sample = out.flatten(1)
    assert ((per_sample == 0).all(dim=1) | (per_sample == 1).all(dim=1)).all()
    assert (per_sample[:, 0] == 0).float().mean().item() == pytest.approx(0.1, abs=5 * (0.09 / n) ** 0.5)


def test_drop_is_reproducible_and_leaves_its_input_and_global_state():
    state, before = torch.get_rng_state(), CONTEXT.clone()
    one = drop_condition(CONTEXT, UNCOND, 0.5, generator(3))
    two = drop_condition(CONTEXT, UNCOND, 0.5, generator(3))
    assert torch.equal(one, two) and torch.equal(CONTEXT, before)
    assert torch.equal(torch.get_rng_state(), state)
    outcomes = {tuple(drop_condition(CONTEXT, UNCOND, 0.5, generator(s))[:, 0, 0].tolist()) for s in range(9)}
    assert len(outcomes) > 2


def test_drop_keeps_dtype_and_lets_gradients_through():
    assert drop_condition(CONTEXT.half(), UNCOND, 0.5, generator()).dtype == torch.float16
    uncond = UNCOND.clone().requires_grad_()  # a learned empty context
    drop_condition(CONTEXT, uncond, 1.0, generator()).sum().backward()
    assert torch.equal(uncond.grad, torch.full((1, 3, 2), 4.0))


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_drop_refuses_p(p):
    with pytest.raises(ValueError, match="p is a probability"):
        drop_condition(CONTEXT, UNCOND, p, generator())


def test_drop_refuses_the_rest():
    with pytest.raises(TypeError, match="torch.Generator"):
        drop_condition(CONTEXT, UNCOND, 0.1, None)
    with pytest.raises(ValueError, match="does not fit"):
        drop_condition(CONTEXT, torch.zeros(1, 3, 5), 0.1, generator())
    with pytest.raises(ValueError, match=r"uncond must have shape \[B, L, D\]"):
        drop_condition(CONTEXT, torch.zeros(3, 2), 0.1, generator())
    with pytest.raises(ValueError, match="for 4 samples, but the batch has 1"):
        drop_condition(UNCOND, CONTEXT, 0.1, generator())


@pytest.mark.parametrize("w", [0, 0.5, 2, 7.5])
@pytest.mark.parametrize("shared", [True, False])
def test_guided_is_the_formula(w, shared):
    cond = CONTEXT[:1] if shared else CONTEXT
    x_t, t = torch.randn(4, 5, generator=generator()), torch.tensor([0, 1, 2, 3])
    denoiser = Recorder()
    out = guided(denoiser, cond, UNCOND, w)(x_t, t)
    assert len(denoiser.calls) == 1  # both passes in one batch
    assert denoiser.calls[0][0].shape == (8, 5) and denoiser.calls[0][2].shape == (8, 3, 2)
    alone = Recorder()
    with_prompt = alone(x_t, t, cond.expand(4, -1, -1))
    without = alone(x_t, t, UNCOND.expand(4, -1, -1))
    torch.testing.assert_close(out, without + w * (with_prompt - without))
    assert not torch.allclose(with_prompt, without)


def test_scale_one_runs_the_condition_only():
    x_t, t = torch.ones(4, 5), torch.tensor([0, 1, 2, 3])
    denoiser = Recorder()
    out = guided(denoiser, CONTEXT, UNCOND, 1)(x_t, t)
    assert len(denoiser.calls) == 1
    assert denoiser.calls[0][0].shape == (4, 5) and torch.equal(denoiser.calls[0][2], CONTEXT)
    assert torch.equal(out, Recorder()(x_t, t, CONTEXT))


def test_guidance_does_nothing_where_the_conditions_agree():
    x_t, t = torch.ones(4, 5), torch.tensor([0, 1, 2, 3])
    out = guided(Recorder(), CONTEXT, CONTEXT, 9)(x_t, t)
    torch.testing.assert_close(out, guided(Recorder(), CONTEXT, CONTEXT, 1)(x_t, t))


@pytest.mark.parametrize("w", [-1, -0.01, float("nan")])
def test_guided_refuses_negative_scales_and_points_to_negative_prompts(w):
    with pytest.raises(ValueError, match="guidance_scale must be 0 or above.*negative prompt"):
        guided(Recorder(), CONTEXT, UNCOND, w)


def test_guided_refuses_shapes():
    with pytest.raises(ValueError, match="does not fit"):
        guided(Recorder(), CONTEXT, torch.zeros(1, 4, 2), 2)
    with pytest.raises(ValueError, match="does not fit"):
        guided(Recorder(), CONTEXT, torch.zeros(3, 3, 2), 2)
    with pytest.raises(ValueError, match=r"\[B, L, D\]"):
        guided(Recorder(), CONTEXT[0], UNCOND, 2)
    with pytest.raises(ValueError, match="for 4 samples, but the batch has 2"):
        guided(Recorder(), CONTEXT, UNCOND, 2)(torch.ones(2, 5), torch.tensor([0, 1]))


def test_an_interval_has_both_its_ends_and_nothing_else():
    asked = []

    def note(name):
        return lambda x_t, t: asked.append((name, int(t[0]))) or x_t

    denoiser = in_interval(note("inside"), note("outside"), 20, 40)
    for t in (41, 40, 30, 20, 19):
        denoiser(torch.ones(2, 5), torch.full((2,), t))
    assert asked == [("outside", 41), ("inside", 40), ("inside", 30), ("inside", 20), ("outside", 19)]


def test_an_interval_of_all_times_is_guidance_and_one_of_none_is_the_condition():
    x_t, t = torch.randn(4, 5, generator=generator()), torch.full((4,), 7)
    strong, plain = guided(Recorder(), CONTEXT, UNCOND, 3), guided(Recorder(), CONTEXT, UNCOND, 1)
    assert torch.equal(in_interval(strong, plain, 0, 999)(x_t, t), strong(x_t, t))
    assert torch.equal(in_interval(strong, plain, 8, 999)(x_t, t), plain(x_t, t))
    assert not torch.equal(strong(x_t, t), plain(x_t, t))


def test_an_interval_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match="got 5 and 4"):
        in_interval(Recorder(), Recorder(), 5, 4)
    with pytest.raises(ValueError, match="one time for the whole batch"):
        in_interval(Recorder(), Recorder(), 0, 9)(torch.ones(2, 5), torch.tensor([1, 2]))
