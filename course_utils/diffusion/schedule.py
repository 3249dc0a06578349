"""Noise schedules: how much of the picture is left, and how much noise has come in, after each step.

Time runs t = 0 … T−1, as in diffusers. The papers count 1 … T, so their step t is our t − 1: their β_1 is
our ``betas[0]``, their ᾱ_T is our ``alphas_cumprod[T - 1]``, and the clean picture, their x_0 at t = 0, is
ours at t = −1, where ᾱ is 1 (it keeps the name x_0). Our x_t has been through betas 0 to t, both included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

SPACINGS = ("trailing", "leading", "linspace")


def linear_betas(T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """Noise variances [T] that grow linearly (Ho et al. 2020, section 4).

    The end points belong to T = 1000 and are not rescaled for another T (nor does diffusers): with a few
    dozen steps much of the picture survives to the end.
    """
    check_count("T", T)
    return torch.linspace(beta_start, beta_end, T)  # [T]


def scaled_linear_betas(T: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> Tensor:
    """Noise variances [T] whose square roots grow linearly (Stable Diffusion, Rombach et al. 2022)."""
    check_count("T", T)
    return torch.linspace(beta_start**0.5, beta_end**0.5, T) ** 2  # [T]


def cosine_betas(T: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> Tensor:
    """Noise variances [T] that make ᾱ fall as a squared cosine (Nichol & Dhariwal 2021, equation 17).

    With f(u) = cos²((u + s) / (1 + s) · π/2) and u = step / T:  β = 1 − f(u after the step) / f(u before
    it), at most ``max_beta``. The small offset s keeps the first β from being too close to 0.
    """
    check_count("T", T)
    f = [math.cos((step / T + s) / (1 + s) * math.pi / 2) ** 2 for step in range(T + 1)]
    return torch.tensor([min(1 - f[step + 1] / f[step], max_beta) for step in range(T)])  # [T]


def snr(alpha_bar: Tensor) -> Tensor:
    """Signal-to-noise ratio ᾱ / (1 − ᾱ): variance of the picture part over variance of the noise part.

    Any shape, no unit (Kingma et al. 2021, equation 2; data of unit variance). Infinite where ᾱ is 1.
    """
    return alpha_bar / (1 - alpha_bar)


def logit_normal_timesteps(n: int, generator: torch.Generator, T: int = 1000) -> Tensor:
    """Random timesteps 0 … T−1, int64 [n], most of them in the middle: T / (1 + e⁻ᶻ) with z standard normal.

    Half of them lie between 0.34 T and 0.66 T, one in a hundred below 0.09 T and one above 0.91 T.
    Source: Esser et al. 2024 (arXiv 2403.03206), section 3.1, "logit-normal sampling", with m = 0 and s = 1.
    """
    return (T * torch.sigmoid(torch.randn(n, generator=generator))).long().clamp(max=T - 1)


def shift_timesteps(t: Tensor, shift: float, T: int = 1000) -> Tensor:
    """Timesteps 0 … T−1 [B] moved towards noise: u → shift · u / (1 + (shift − 1) · u), u the middle of a step over T.

    Of evenly drawn timesteps, shift / (1 + shift) are in the noisier half afterwards; 1 leaves all where they are.
    Source: Esser et al. 2024 (arXiv 2403.03206), equation 23, there for larger pictures and with noise in the
    ratio u : 1 − u, which it multiplies by just `shift`; with a cosine schedule by about that. ValueError: shift <= 0.
    """
    if not shift > 0:
        raise ValueError(f"shift must be greater than 0, got {shift}")
    u = (t + 0.5) / T
    return (T * shift * u / (1 + (shift - 1) * u)).long().clamp(max=T - 1)


class NoiseSchedule:
    """The β of every step, and what follows from them: α = 1 − β and ᾱ_t = α_0 · α_1 · … · α_t.

    Args:
        betas: T noise variances, one a step, each in (0, 1]; only the last may be 1 (no signal left).

    Attributes: ``betas``, ``alphas``, ``alphas_cumprod``, all float32 [T], and ``num_train_timesteps`` (T).
    A lookup takes t as an int, or as a LongTensor [B] with one step a sample. With ``like=x`` it answers
    in a shape that multiplies x ([B, 1, 1, 1] for pictures), on x's device, in float32: 1 − ᾱ would drown
    in half precision.

    Raises:
        ValueError: betas are not 1-D, empty, out of (0, 1], or leave ᾱ indistinguishable from 1 or 0 in
            float32.
    """

    def __init__(self, betas: Tensor | Sequence[float]) -> None:
        betas = torch.as_tensor(betas).detach().to(torch.float32)
        if betas.ndim != 1 or len(betas) == 0:
            raise ValueError(f"betas must be 1-D with one value a step, got shape {list(betas.shape)}")
        if not bool(((betas > 0) & (betas <= 1)).all()):  # written so that NaN fails, too
            low, high = betas.min().item(), betas.max().item()
            raise ValueError(f"betas must lie in (0, 1], got values from {low:g} to {high:g}")
        self.betas = betas
        self.alphas = 1.0 - betas
        self.alphas_cumprod = torch.cumprod(self.alphas, dim=0)
        if self.alphas_cumprod[0] == 1:
            raise ValueError(f"betas[0] = {betas[0].item():g} is too small: in float32 it adds no noise")
        if bool((self.alphas_cumprod[:-1] == 0).any()):
            raise ValueError(
                "alphas_cumprod is 0 before the last step: only the last beta may take all signal"
            )
        self.num_train_timesteps = len(betas)
        self._alpha_bar = torch.cat([torch.ones_like(betas[:1]), self.alphas_cumprod])  # [T + 1], index t + 1
        self._ends_in_pure_noise = bool(self.alphas_cumprod[-1] == 0)

    @classmethod
    def linear(cls, T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
        """DDPM's schedule, see `linear_betas`."""
        return cls(linear_betas(T, beta_start, beta_end))

    @classmethod
    def scaled_linear(
        cls, T: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
    ) -> NoiseSchedule:
        """Stable Diffusion's schedule, see `scaled_linear_betas`."""
        return cls(scaled_linear_betas(T, beta_start, beta_end))

    @classmethod
    def cosine(cls, T: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> NoiseSchedule:
        """Improved DDPM's schedule, see `cosine_betas` (diffusers calls it squaredcos_cap_v2)."""
        return cls(cosine_betas(T, s, max_beta))

    def beta(self, t: int | Tensor, like: Tensor | None = None) -> Tensor:
        """β_t, the variance of the noise that step t adds, for t in 0 … T−1."""
        return extract(self.betas, self.check_t(t, 0, like), like)

    def alpha_bar(self, t: int | Tensor, like: Tensor | None = None) -> Tensor:
        """ᾱ_t, the share of x_0's variance that is left in x_t, for t in −1 … T−1; at −1 it is 1."""
        return extract(self._alpha_bar, self.check_t(t, -1, like) + 1, like)

    def snr(self, t: int | Tensor, like: Tensor | None = None) -> Tensor:
        """Signal-to-noise ratio at t, see the function `snr`."""
        return snr(self.alpha_bar(t, like))

    def timesteps(self, n: int, spacing: str = "trailing", steps_offset: int = 0) -> Tensor:
        """The n of T steps that a sampler visits, falling, LongTensor [n] (Lin et al. 2023, table 2).

        "trailing" starts at T−1, where training saw pure noise. "leading" (old default of many samplers)
        ends at ``steps_offset`` and leaves out the noisiest steps; "linspace" has both ends. All
        three agree for n = T.

        Raises:
            ValueError: n is not in 1 … T, the spacing is unknown, or the offset leads out of range.
        """
        T = self.num_train_timesteps
        check_count("n (the number of inference steps)", n, T)
        if spacing == "trailing":
            steps = np.arange(T, 0, -T / n)[:n].round() - 1  # rounding can make arange one value too long
        elif spacing == "leading":
            steps = np.arange(n)[::-1] * (T // n) + steps_offset
        elif spacing == "linspace":
            steps = np.linspace(0, T - 1, n).round()[::-1]
        else:
            raise ValueError(f"spacing must be one of {SPACINGS}, got {spacing!r}")
        return self.check_t(torch.tensor(steps.astype(np.int64), device=self.betas.device))  # [n]

    def to(self, device: torch.device | str) -> NoiseSchedule:
        """A copy with its tables on `device`. Only speed depends on it: lookups answer where ``like`` is."""
        moved = object.__new__(type(self))
        for name, value in self.__dict__.items():
            setattr(moved, name, value.to(device) if isinstance(value, Tensor) else value)
        return moved

    def check_t(self, t: int | Tensor, lowest: int = 0, like: Tensor | None = None) -> Tensor:
        """t as a LongTensor, [] or [B], or the reason why it cannot be a time: TypeError or ValueError.

        A tensor on a CUDA GPU is looked at there, later: one out of range ends the process, as any bad index would.
        """
        if isinstance(t, bool) or not isinstance(t, (int, np.integer, Tensor)):
            raise TypeError(f"t must be an int or a LongTensor [B], got {type(t).__name__}")
        t = torch.as_tensor(t)
        if t.is_floating_point() or t.is_complex() or t.dtype == torch.bool:
            raise TypeError(f"t must hold whole steps (a LongTensor), got dtype {t.dtype}")
        if t.ndim > 1:
            raise ValueError(f"t must be an int or have shape [B], got shape {list(t.shape)}")
        if like is not None and t.ndim == 1 and len(t) != like.shape[0]:
            raise ValueError(f"t has {len(t)} values, but the batch has {like.shape[0]} samples")
        highest = self.num_train_timesteps - 1
        if t.is_cuda:  # to look at it would be to wait for the GPU, several times in each step of training
            torch._assert_async(((t >= lowest) & (t <= highest)).all(), f"t must lie in {lowest} … {highest}")
        elif t.numel():
            first, last = int(t.min()), int(t.max())
            if first < lowest or last > highest:
                given = first if first < lowest else last
                raise ValueError(f"t must lie in {lowest} … {highest} (T = {highest + 1} steps), got {given}")
        return t.long()

    def check_signal(self, t: int | Tensor) -> None:
        """ValueError where ᾱ_t is 0: there x_t is all noise, so knowing the noise says nothing about x_0."""
        if self._ends_in_pure_noise and bool((self.alpha_bar(t) == 0).any()):
            raise ValueError(
                "x_0 cannot be found from predicted noise where alpha_bar is 0 (nothing but noise is left): "
                "use prediction_type 'v_prediction' or 'sample', or start at an earlier t"
            )

    def __repr__(self) -> str:
        first, last, left = self.betas[0].item(), self.betas[-1].item(), self.alphas_cumprod[-1].item()
        T = self.num_train_timesteps
        return f"NoiseSchedule(T={T}, beta {first:.3g} to {last:.3g}, last alpha_bar {left:.3g})"


def extract(table: Tensor, index: Tensor, like: Tensor | None = None) -> Tensor:
    """table[index] for index [] or [B]; with ``like``, shaped [B, 1, …, 1] on its device, to multiply it."""
    values = table[index.to(table.device)]
    if like is None:
        return values
    ones = [1] * (like.ndim - 1)
    return values.to(like.device).reshape(-1, *ones)  # [B, 1, 1, 1], or [1, 1, 1, 1] for one t


def check_inputs(schedule: NoiseSchedule, t: int | Tensor, **tensors: Tensor) -> Tensor:
    """Check that the named tensors share one shape [B, …] and that t is a time in 0 … T−1 for each sample.

    Returns t as a LongTensor [B] on the tensors' device. Raises TypeError or ValueError, naming the one
    at fault.
    """
    first, x = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be a float tensor, got dtype {tensor.dtype}")
        if tensor.ndim == 0 or tensor.shape != x.shape:
            wanted = f"{first}'s, {list(x.shape)}" if x.ndim else "[B, …]"
            raise ValueError(f"{name} has shape {list(tensor.shape)}, wanted {wanted}")
    return schedule.check_t(t, 0, x).to(x.device).expand(x.shape[0])  # [B]


def check_number(name: str, value: float, low: float, high: float, meaning: str = "") -> None:
    """TypeError unless value is one number, ValueError unless it lies in low … high; `meaning` goes behind these."""
    one = isinstance(value, (int, float, np.number)) or (isinstance(value, Tensor) and value.ndim == 0)
    if not one:
        raise TypeError(f"{name} must be one number, got {type(value).__name__}")
    if not low <= value <= high:  # written so that NaN fails, too
        raise ValueError(f"{name} must lie in {low:g} … {high:g}{meaning}, got {value}")


def check_count(name: str, value: int, most: int | None = None) -> None:
    """ValueError unless value is a whole number from 1 to `most`."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < 1 or (most is not None and value > most):
        wanted = "at least 1" if most is None else f"1 … {most}"
        raise ValueError(f"{name} must be a whole number, {wanted}, got {value!r}")
