"""Classifier-free guidance: one network learns with and without its condition; sampling widens the gap.

Context is what the network is conditioned on, [B, L, D]: one vector a token.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from course_utils.diffusion.forward import add_noise
from course_utils.diffusion.reverse import target
from course_utils.diffusion.schedule import NoiseSchedule, check_number, logit_normal_timesteps

MAX_GUIDANCE = 1000  # pictures are flat long before, and far beyond it numbers overflow


def drop_condition(context: Tensor, uncond: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """Replace each sample's context by `uncond` with probability p (Ho & Salimans 2022, algorithm 1).

    Args:
        context: [B, L, D].
        uncond: context of the empty prompt, [1, L, D] or [B, L, D].
        p: in 0 … 1; about 0.1 is usual.

    Returns [B, L, D]; a sample keeps all its tokens or none. Raises ValueError for a bad p or shapes that
    do not fit, TypeError without a generator.
    """
    check_contexts(context, uncond)
    check_probability(p, generator)
    uncond = batch_context(uncond, context).to(context)  # [B, L, D], dtype and device as well
    draws = torch.rand(context.shape[0], generator=generator, device=generator.device)  # [B], in [0, 1)
    drop = (draws < p).to(context.device)[:, None, None]  # [B, 1, 1]
    return torch.where(drop, uncond, context)


def conditional_loss(
    denoiser: Callable[[Tensor, Tensor, Tensor], Tensor],
    schedule: NoiseSchedule,
    x_0: Tensor,
    context: Tensor,
    uncond: Tensor,
    p: float,
    generator: torch.Generator,
) -> Tensor:
    """One training step of a denoiser that reads, up to the loss: the mean squared error of v, a scalar.

    Args:
        denoiser: (x_t, t, context) -> prediction of v, shaped as x_t.
        x_0: [B, C, h, w] clean latents.
        context: [B, L, D], the states of each picture's caption.
        uncond: [1, L, D], the states of the empty prompt; p: how often it replaces a caption.
        generator: timesteps (logit-normal), noise and what is dropped are drawn from it, in this order.

    Source: Ho & Salimans 2022 (arXiv 2207.12598), algorithm 1; v from Salimans & Ho 2022 (arXiv 2202.00512), section 4.
    """
    t = logit_normal_timesteps(len(x_0), generator, schedule.num_train_timesteps).to(x_0.device)  # [B]
    noise = torch.randn(x_0.shape, generator=generator).to(x_0)
    context = drop_condition(context, uncond, p, generator)
    x_t = add_noise(schedule, x_0, t, noise)
    v = target(schedule, x_0, t, noise, "v_prediction")
    error = denoiser(x_t, t, context) - v
    return (error**2).flatten(1).mean(dim=1).mean()


def guided(
    denoiser: Callable[[Tensor, Tensor, Tensor], Tensor], cond: Tensor, uncond: Tensor, guidance_scale: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """A denoiser (x_t, t) that follows `cond` more than the network by itself: uncond + w · (cond − uncond).

    Ho & Salimans 2022, equation 6, with w = their w + 1: w = 1 is the plain conditional prediction and
    needs one pass, w = 0 the unconditional one. Both predictions come from one batch of twice the size.
    It holds for every prediction type, since all are linear in the noise. A negative prompt is its
    context in the place of `uncond`.

    Args:
        denoiser: (x_t, t, context) -> prediction.
        cond, uncond: [1, L, D] for the whole batch, or [B, L, D].
        guidance_scale: w ≥ 0.
    """
    check_contexts(cond, uncond)
    check_guidance_scale(guidance_scale)

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        conditional = batch_context(cond, x_t)  # [B, L, D]
        if guidance_scale == 1:
            return denoiser(x_t, t, conditional)
        contexts = torch.cat([batch_context(uncond, x_t), conditional])  # [2B, L, D]
        both = denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), contexts)
        without, with_condition = both.chunk(2)  # [B, …] each
        return without + guidance_scale * (with_condition - without)

    return denoise


def in_interval(
    inside: Callable[[Tensor, Tensor], Tensor], outside: Callable[[Tensor, Tensor], Tensor], lowest: int, highest: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """A denoiser (x_t, t) that is `inside` at the times lowest … highest, both included, and `outside` at all others.

    Kynkäänniemi et al. 2024 (arXiv 2404.07724), section 3: guidance at some noise levels only, with
    `inside` guided and `outside` the same network at w = 1, which needs one pass instead of two.

    A batch has one time, as in `sample`. Raises ValueError if lowest is above highest, or for a batch of several times.
    """
    if not lowest <= highest:
        raise ValueError(f"the interval's lowest time must not be above its highest, got {lowest} and {highest}")

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        first = int(t[0])
        if bool((t != first).any()):
            raise ValueError(f"one time for the whole batch is wanted, got {t.tolist()}")
        return (inside if lowest <= first <= highest else outside)(x_t, t)

    return denoise


def batch_context(context: Tensor, like: Tensor) -> Tensor:
    """context [1, L, D] or [B, L, D] as [B, L, D], B being like's; ValueError if it is for another batch."""
    if context.shape[0] not in (1, like.shape[0]):
        raise ValueError(f"context is for {context.shape[0]} samples, but the batch has {like.shape[0]}")
    return context.expand(like.shape[0], -1, -1)


def check_contexts(context: Tensor, uncond: Tensor) -> None:
    """ValueError unless both are [B, L, D] with the same L and D, and B is equal or 1 on one side."""
    for name, value in (("the context", context), ("uncond", uncond)):
        if value.ndim != 3:
            raise ValueError(f"{name} must have shape [B, L, D], got {list(value.shape)}")
    sizes = {context.shape[0], uncond.shape[0]} - {1}
    if context.shape[1:] != uncond.shape[1:] or len(sizes) > 1:
        raise ValueError(
            f"the context has shape {list(context.shape)}, which does not fit uncond's {list(uncond.shape)}"
        )


def check_probability(p: float, generator: torch.Generator) -> None:
    """ValueError unless 0 ≤ p ≤ 1; TypeError without a generator."""
    check_number("p is a probability and", p, 0, 1)
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")


def check_guidance_scale(guidance_scale: float) -> None:
    """ValueError unless it lies in 0 … MAX_GUIDANCE; TypeError unless it is one number."""
    if isinstance(guidance_scale, (int, float)) and not guidance_scale >= 0:
        raise ValueError(
            f"guidance_scale must be 0 or above (0 ignores the prompt, 1 follows it, more overstates it), "
            f"got {guidance_scale}; to steer away from something, give it as the negative prompt"
        )
    check_number("guidance_scale", guidance_scale, 0, MAX_GUIDANCE)
