"""Pictures through a VAE and back: the best that a model which draws its latents could do."""

from __future__ import annotations

import torch
from torch import Tensor

from course_utils.evaluation.metrics import psnr
from course_utils.models.vae import VAE


@torch.no_grad()
def reconstruct(vae: VAE, pictures: Tensor, batch_size: int = 64) -> Tensor:
    """Copies of pictures [N, 3, H, W] in [-1, 1], decoded from the means of their latents: the same, on the CPU."""
    device = next(vae.parameters()).device
    chunks = pictures.split(batch_size)
    return torch.cat([vae.from_latents(vae.to_latents(chunk.to(device))).clamp(-1, 1).cpu() for chunk in chunks])


def reconstruction_psnr(vae: VAE, pictures: Tensor) -> float:
    """Mean PSNR of those copies, in dB."""
    return psnr(reconstruct(vae, pictures), pictures).mean().item()
