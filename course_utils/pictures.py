"""Pictures and masks as people bring them, PIL's and numpy's too, made ready for the networks; and back to PIL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

FARTHEST = 2.0  # a decoded picture goes beyond [-1, 1] a little; numbers beyond this are of another scale


@dataclass
class Drawn:
    """What a pipeline call returns: PIL pictures, the latents they were decoded from, and the decoded numbers."""

    images: list[Image.Image]
    latents: Tensor  # [B, C, h, w], scaled
    pictures: Tensor  # [B, 3, H, W] float, about in [-1, 1]

    @classmethod
    def of(cls, latents: Tensor, pictures: Tensor) -> Drawn:
        """Made of what was sampled and what was decoded from it. ValueError if a number is not finite."""
        if not bool(latents.isfinite().all() and pictures.isfinite().all()):
            raise ValueError(
                f"the picture became NaN or infinite in {latents.dtype}: use a lower guidance_scale, or weights in "
                "float32 or bfloat16"
            )
        return cls(to_pil(pictures), latents, pictures)


def to_pil(pictures: Tensor) -> list[Image.Image]:
    """Pictures [B, 3, H, W] in [-1, 1] as PIL pictures; what lies outside is cut off."""
    numbers = ((pictures.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(p.permute(1, 2, 0).cpu().numpy()) for p in numbers]


def as_pictures(pictures: Any, unit: int = 1) -> Tensor:
    """Pictures as floats [B, 3, H, W] in [-1, 1].

    Args:
        pictures: a tensor [B, 3, H, W], of floats in [-1, 1] (it is returned as it is) or of uint8 in 0 … 255; one or
            several PIL pictures, or numpy's uint8 [H, W, 3], of one size.
        unit: the sides must be multiples of it.

    Raises:
        TypeError: something else. ValueError: another shape, or numbers of another scale, such as floats in 0 … 255.
    """
    if not isinstance(pictures, Tensor):
        pictures = _stacked([_picture(p) for p in _several(pictures, ndim=3)])
    if pictures.dtype == torch.uint8:
        pictures = pictures.float() / 127.5 - 1
    if not pictures.is_floating_point():
        raise TypeError(f"pictures must be floating point in [-1, 1] or uint8 in 0 … 255, got {pictures.dtype}")
    if pictures.ndim != 4 or 0 in pictures.shape or pictures.shape[1] != 3 or any(s % unit for s in pictures.shape[2:]):
        raise ValueError(f"pictures must be [B, 3, H, W], sides multiples of {unit}, got {list(pictures.shape)}")
    low, high = pictures.min().item(), pictures.max().item()
    if not -FARTHEST <= low <= high <= FARTHEST:  # written so that NaN fails, too
        raise ValueError(
            f"pictures must lie in [-1, 1], these run from {low:g} to {high:g}: of floats in 0 … 255 make x / 127.5 - 1"
        )
    return pictures


def as_mask(mask: Any, pictures: Tensor) -> Tensor:
    """A mask as float32 [1 or B, 1, H, W] of 0 and 1 on the device of its pictures [B, 3, H, W].

    Args:
        mask: a tensor of that shape; one or several black and white PIL pictures, or numpy's [H, W], of that size. It
            holds 0 and 1, or False and True, or, in uint8, 0 and 255.

    Raises:
        TypeError: something else. ValueError: another shape, or values between.
    """
    if not isinstance(mask, Tensor):
        mask = _stacked([_mask(m) for m in _several(mask, ndim=2)])
    if mask.ndim != 4 or mask.shape[0] not in (1, len(pictures)) or mask.shape[1:] != pictures[:, :1].shape[1:]:
        wanted = f"[1 or {len(pictures)}, 1, {pictures.shape[2]}, {pictures.shape[3]}]"
        raise ValueError(f"the mask must be {wanted}, as its pictures, got {list(mask.shape)}")
    full = 255 if mask.dtype == torch.uint8 and bool((mask == 255).any()) else 1
    mask = mask.to(pictures.device, torch.float32) / full
    if bool(((mask != 0) & (mask != 1)).any()):
        raise ValueError("the mask must hold 0 (keep) and 1 (draw anew) only")
    return mask


def _several(given: Any, ndim: int) -> list[Any]:
    """One picture or several as a list of them."""
    if isinstance(given, Image.Image) or (isinstance(given, np.ndarray) and given.ndim == ndim):
        return [given]
    if not isinstance(given, (list, tuple, np.ndarray)):
        raise TypeError(f"a tensor, PIL pictures or numpy arrays are wanted, got {type(given).__name__}")
    if not len(given):
        raise ValueError("there is no picture in the list")
    return list(given)


def _picture(given: Any) -> Tensor:
    """One picture as [3, H, W], as yet in its own numbers."""
    if isinstance(given, Image.Image):
        if given.mode == "F" or given.mode.startswith("I"):  # converted, they would become white or black
            raise ValueError(f"a PIL picture of mode {given.mode!r} has more than 8 bits a channel; 8 are wanted")
        clear = given.convert("RGBA")
        given = np.array(Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB"))
    if isinstance(given, np.ndarray):
        if given.dtype != np.uint8 or given.ndim != 3 or given.shape[2] != 3:
            shape = f"{given.dtype} {list(given.shape)}"
            raise TypeError(f"a numpy picture must be uint8 [H, W, 3] in 0 … 255, got {shape}")
        given = torch.from_numpy(given.copy()).permute(2, 0, 1)
    return _tensor(given)


def _mask(given: Any) -> Tensor:
    """One mask as [1, H, W]."""
    if isinstance(given, Image.Image):
        given = np.array(given.convert("L"))
    if isinstance(given, np.ndarray):
        if given.dtype.kind not in "bfiu":
            raise TypeError(f"a numpy mask must hold numbers, got {given.dtype}")
        given = torch.from_numpy(given.copy())[None]
    return _tensor(given)


def _tensor(given: Any) -> Tensor:
    if not isinstance(given, Tensor):
        raise TypeError(f"a picture is a tensor, a PIL picture or a numpy array, got {type(given).__name__}")
    return given


def _stacked(tensors: list[Tensor]) -> Tensor:
    kinds = {f"{list(t.shape)} {t.dtype}".replace("torch.", "") for t in tensors}
    if len(kinds) > 1:
        raise ValueError(f"pictures drawn together must be of one size and kind, got {', '.join(sorted(kinds))}")
    return torch.stack(tensors)
