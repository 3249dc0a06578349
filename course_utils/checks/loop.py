"""Check of notebook 03, fourth part: the sampling loop, from pure noise to the clean end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from course_utils.checks.base import Mistake, check_for, close, random_tensor
from course_utils.checks.oracles import SHAPE, short_schedule
from course_utils.diffusion.reverse import Denoiser
from course_utils.diffusion.samplers import ddim_step, ddpm_step, noise_like
from course_utils.diffusion.schedule import NoiseSchedule

STEPS = 4  # of 20: the times 19, 14, 9, 4


@torch.no_grad()
def _draw(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x: Tensor,
    steps: int,
    sampler: str = "ddim",
    eta: float = 0.0,
    prediction_type: str = "epsilon",
    generator: torch.Generator | None = None,
    variance_type: str = "fixed_small",
    slip: str = "",
) -> list[Tensor]:
    """Reference; `slip` names a mistake to make, for the messages below."""
    path, start, frozen = [x], x, generator.get_state() if generator else None
    times = schedule.timesteps(steps).tolist()
    end = 0 if slip == "end" else -1
    for t, t_prev in zip(times, [*times[1:], end], strict=True):
        t_prev = t - 1 if slip == "stride" else t_prev
        x = start if slip == "start" else x
        if generator is not None and frozen is not None and slip == "same":
            generator.set_state(frozen)
        asked = max(t_prev, 0) if slip == "asked" else t
        prediction = denoiser(x, torch.full((len(x),), asked, device=x.device))
        fresh = noise_like(x, generator) if generator is not None and (sampler == "ddpm" or eta > 0) else None
        if sampler == "ddpm":
            x = ddpm_step(schedule, prediction, x, t, t_prev, fresh, prediction_type, variance_type)
        else:
            x = ddim_step(schedule, prediction, x, t, t_prev, eta, fresh, prediction_type)
        path.append(x)
    return path


_draw.__name__ = "draw"

SLIPS = {
    "stride": "t_prev is the next time of the list, not t − 1: the steps are long ones",
    "end": "the last step goes to t_prev = −1, the clean end; at t = 0 there is still noise in x",
    "start": "each step has to start from the x that the step before gave, not from the noise again",
    "asked": "the denoiser is asked about x at t, so it must be told t, not t_prev",
    "same": "each step wants fresh noise: draw it inside the loop",
}


class _Recorder:
    """A denoiser whose answer depends on x and on t, and that remembers the times it was asked about."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        self.asked.append(t)
        column = torch.as_tensor(t, dtype=x_t.dtype).reshape(-1, *[1] * (x_t.ndim - 1))
        return 0.4 * x_t + 0.03 * column


def _run(
    function: Callable[..., Any], x: Tensor, settings: dict[str, Any], steps: int = STEPS, **more: Any
) -> tuple[Any, _Recorder]:
    model = _Recorder()
    draws = settings["sampler"] == "ddpm" or settings["eta"] > 0
    generator = torch.Generator().manual_seed(7) if draws else None
    return function(model, short_schedule(), x, steps, **settings, generator=generator, **more), model


@check_for(_draw)
def draw(candidate: Callable[..., Any]) -> None:
    """Length and ends of the path, what the denoiser is asked, and every point, for both samplers."""
    runs: list[dict[str, Any]] = [
        {"sampler": "ddim", "eta": 0.0, "prediction_type": "epsilon"},
        {"sampler": "ddim", "eta": 0.0, "prediction_type": "v_prediction"},
        {"sampler": "ddpm", "eta": 0.0, "prediction_type": "v_prediction"},
        {"sampler": "ddim", "eta": 0.8, "prediction_type": "sample"},
        {"sampler": "ddpm", "eta": 0.0, "prediction_type": "epsilon", "variance_type": "fixed_large"},
    ]
    for settings in runs:
        x = random_tensor(*SHAPE)
        before = x.clone()
        path, model = _run(candidate, x, settings)
        if not torch.equal(x, before):
            raise Mistake("it changes the noise it was given in place: x = step(…), not x.copy_(…) or x += …")
        right, _ = _run(_draw, x, settings)
        _expect_path(path, right, x)
        _expect_times(model, len(x))
        if all(close(a.double(), b.double(), 1e-3) for a, b in zip(path, right, strict=True)):
            continue
        again, _ = _run(candidate, x, settings)
        if not close(again[-1].double(), path[-1].double()):
            raise Mistake("two runs with the same generator differ: draw the fresh noise with noise_like(x, generator)")
        raise Mistake(_why(path, x, settings))
    for steps in (1, 20):
        x = random_tensor(1, 6)
        path, _ = _run(candidate, x, runs[2], steps)
        right, _ = _run(_draw, x, runs[2], steps)
        if len(path) != len(right) or not all(close(a, b, 1e-3) for a, b in zip(path, right, strict=True)):
            raise Mistake(
                f"with x of shape [1, 6] and {steps} of 20 steps the path is wrong: a single step goes from T − 1 "
                "straight to −1, and as many steps as the schedule has go through each of its times"
            )


def _expect_path(path: Any, right: list[Tensor], x: Tensor) -> None:
    if not isinstance(path, list | tuple) or not all(isinstance(point, Tensor) for point in path):
        what = "the last x alone" if isinstance(path, Tensor) else f"{type(path).__name__} (is a return missing?)"
        raise Mistake(f"return the list of all points on the way, the noise first and the clean one last; got {what}")
    if len(path) == len(right) - 1:
        if not path or not close(path[0], x):
            raise Mistake("the path begins with the noise itself: path = [x] before the loop")
        raise Mistake("a step is missing: n times make n steps, and the last goes from the last of the times to −1")
    if len(path) != len(right):
        raise Mistake(f"{STEPS} steps give a path of {len(right)} points, the noise among them; got {len(path)}")
    if not close(path[0], x):
        order = "the path is back to front" if close(path[-1], x) else "the path begins with the noise itself"
        raise Mistake(f"{order}: path = [x] before the loop, then append each new x")


def _expect_times(model: _Recorder, batch: int) -> None:
    if not all(isinstance(t, Tensor) and t.shape == (batch,) and t.dtype == torch.int64 for t in model.asked):
        raise Mistake("the denoiser wants t as a LongTensor [B]: torch.full((len(x),), t, device=x.device)")
    if len(model.asked) != STEPS:
        raise Mistake(f"the denoiser is asked once a step, {STEPS} times here; it was asked {len(model.asked)} times")
    times = [int(t[0]) for t in model.asked]
    if times == sorted(times):
        raise Mistake(f"the times must fall, from the noisiest to the cleanest; the denoiser was asked about {times}")


def _why(path: list[Tensor], x: Tensor, settings: dict[str, Any]) -> str:
    for slip, message in SLIPS.items():
        wrong, _ = _run(_draw, x, settings, slip=slip)
        if close(path[-1].double(), wrong[-1].double(), 1e-3):
            return message
    other = {"sampler": "ddim" if settings["sampler"] == "ddpm" else "ddpm"}
    for name, value in {"prediction_type": "epsilon", "eta": 0.0, "variance_type": "fixed_small", **other}.items():
        if settings.get(name, value) == value:
            continue
        changed = settings | {name: value}
        wrong, _ = _run(_draw, x, changed)
        if close(path[-1].double(), wrong[-1].double(), 1e-3):
            return f"{name} is not passed on: it was {settings[name]!r}, and the result is that of {value!r}"
    return (
        f"wrong points for {settings}: predict at t, step from t to t_prev, append; t_prev is the next time of the "
        "list, and −1 at the end"
    )
