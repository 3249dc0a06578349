"""Every size and budget of the course in one table: `PROFILES["smoke" | "cpu" | "long" | "gpu"]`.

`smoke` takes seconds a notebook and proves that everything runs; its pictures are noise. `cpu` is for two cores: an
hour for all six notebooks, half as much again on slow ones; `long` is the same for some hours (the weights in
`checkpoints/` are its); `gpu` is for a free Colab session.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace

import torch

from course_utils.models.clip import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from course_utils.models.unet import UNetConfig
from course_utils.models.vae import VAEConfig


@dataclass(frozen=True)
class Budget:
    """How long one network is trained, and how fast: AdamW's learning rate, and Muon's where Muon is used."""

    steps: int
    batch_size: int
    lr: float
    muon_lr: float | None = None

    def part(self, steps: float, rate: float = 1.0) -> Budget:
        """These parts of the steps, at least one, and of the learning rates."""
        muon_lr = None if self.muon_lr is None else rate * self.muon_lr
        return replace(self, steps=max(1, round(steps * self.steps)), lr=rate * self.lr, muon_lr=muon_lr)


@dataclass(frozen=True)
class Profile:
    """The sizes of the networks, the amount of data and the budgets that belong together."""

    name: str
    minutes: dict[str, float]  # about how long each notebook takes

    scenes: int = 16384  # training pictures, drawn once and kept in memory
    test_scenes: int = 512
    evaluation_pictures: int = 512  # drawn from prompts for each score of notebook 06

    vae: VAEConfig = field(default_factory=lambda: VAEConfig((16, 32, 64, 128)))
    vae_beta: float = 5e-3
    vae_budget: Budget = Budget(900, 16, 3e-3, 0.02)
    autoencoder_budget: Budget = Budget(100, 16, 3e-3, 0.02)  # the plain autoencoder and the other β of notebook 01

    noise_reader_budget: Budget = Budget(800, 128, 2e-3, 0.02)
    toy_budget: Budget = Budget(2000, 512, 5e-3, 0.03)
    unconditional_width: int = 96
    unconditional_budget: Budget = Budget(400, 128, 2e-3, 0.02)

    vocab_size: int = 1024
    clip: CLIPConfig = field(
        default_factory=lambda: CLIPConfig(
            text=CLIPTextConfig(vocab_size=1024, max_length=16, width=128, layers=3, heads=4),
            vision=CLIPVisionConfig(image_size=64, patch_size=8, width=128, layers=4, heads=4),
            embed_dim=128,
        )
    )
    clip_budget: Budget = Budget(500, 64, 1e-3, 0.02)

    unet: UNetConfig = field(default_factory=UNetConfig)
    unet_budget: Budget = Budget(600, 128, 1e-3, 0.02)
    condition_dropout: float = 0.1
    timestep_shift: float = 1.0  # more than 1: the U-Net meets noisy latents more often (`shift_timesteps`)

    sampling_steps: int = 25  # in notebook 06
    finetune_budget: Budget = Budget(60, 32, 5e-4)  # notebook 06, on eight pictures of one's own

    judge_budget: Budget = Budget(400, 128, 2e-3, 0.02)

    def going_on(self, vae: float, unet: float, timestep_shift: float = 1.0) -> Profile:
        """For networks that can do something already: these parts of the steps, at a third and a half of the rates."""
        return replace(
            self,
            vae_budget=self.vae_budget.part(vae, 1 / 3),
            unet_budget=self.unet_budget.part(unet, 1 / 2),
            timestep_shift=timestep_shift,
        )


_CPU = Profile(name="cpu", minutes={"01": 9, "02": 2, "03": 4, "04": 5, "05": 12, "06": 4})

_SMOKE = replace(
    _CPU,
    name="smoke",
    minutes=dict.fromkeys(("01", "02", "03", "04", "05", "06"), 0.5),
    scenes=512,
    test_scenes=64,
    evaluation_pictures=32,
    vae_budget=Budget(8, 8, 3e-3, 0.02),
    autoencoder_budget=Budget(4, 8, 3e-3, 0.02),
    noise_reader_budget=Budget(8, 32, 2e-3, 0.02),
    toy_budget=Budget(30, 256, 5e-3, 0.03),
    unconditional_budget=Budget(6, 32, 2e-3, 0.02),
    clip_budget=Budget(6, 32, 1e-3, 0.02),
    unet_budget=Budget(6, 32, 1e-3, 0.02),
    sampling_steps=5,
    finetune_budget=Budget(3, 8, 5e-4),
    judge_budget=Budget(6, 32, 2e-3, 0.02),
)

_LONG = replace(
    _CPU,
    name="long",
    minutes={"01": 70, "02": 3, "03": 5, "04": 8, "05": 80, "06": 8},
    scenes=32768,
    vae_budget=Budget(3000, 16, 3e-3, 0.02),
    autoencoder_budget=Budget(150, 16, 3e-3, 0.02),
    unconditional_budget=Budget(600, 128, 2e-3, 0.02),
    clip_budget=Budget(900, 64, 1e-3, 0.02),
    unet_budget=Budget(2000, 128, 1e-3, 0.02),
)

_GPU = replace(
    _CPU,
    name="gpu",
    minutes={"01": 5, "02": 1, "03": 2, "04": 3, "05": 8, "06": 2},
    scenes=32768,
    evaluation_pictures=2048,
    vae=VAEConfig((32, 64, 128, 128), layers_per_block=2, norm_groups=16),
    vae_budget=Budget(8000, 64, 2e-3, 0.02),
    autoencoder_budget=Budget(800, 64, 2e-3, 0.02),
    noise_reader_budget=Budget(1500, 256, 2e-3, 0.02),
    unconditional_width=192,
    unconditional_budget=Budget(3000, 256, 1e-3, 0.02),
    clip_budget=Budget(2500, 256, 1e-3, 0.02),
    unet=UNetConfig(channels=(128, 256), attention=(True, True), layers_per_block=2, heads=8),
    unet_budget=Budget(8000, 256, 6e-4, 0.02),
    finetune_budget=Budget(200, 64, 2e-4),
    judge_budget=Budget(800, 256, 2e-3, 0.02),
)

PROFILES: dict[str, Profile] = {p.name: p for p in (_SMOKE, _CPU, _LONG, _GPU)}


def get_profile(name: str | None = None) -> Profile:
    """The profile called `name`; by default the environment's COURSE_PROFILE, else `gpu` with a GPU and `cpu` without.

    Raises:
        ValueError: there is no profile of that name.
    """
    name = name or os.environ.get("COURSE_PROFILE") or ("gpu" if torch.cuda.is_available() else "cpu")
    if name not in PROFILES:
        raise ValueError(
            f"there is no profile {name!r}: COURSE_PROFILE (or get_profile's argument) is one of {', '.join(PROFILES)}"
        )
    return PROFILES[name]
