"""Text to image: tokenizer, text encoder, U-Net, sampler and VAE, put together as in Stable Diffusion."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from course_utils.diffusion.editing import inpaint_blend, strength_timesteps
from course_utils.diffusion.forward import add_noise
from course_utils.diffusion.guidance import guided
from course_utils.diffusion.samplers import ddim_step, sample
from course_utils.diffusion.schedule import NoiseSchedule
from course_utils.models.clip import CLIP, CLIPConfig, TextEncoder
from course_utils.models.tokenizer import Tokenizer
from course_utils.models.unet import UNet, UNetConfig
from course_utils.models.vae import VAE, VAEConfig


@dataclass
class Drawn:
    """What a pipeline call returns: `images`, PIL pictures, and the latents they were decoded from."""

    images: list[Image.Image]
    latents: Tensor


def to_pil(pictures: Tensor) -> list[Image.Image]:
    """Pictures [B, 3, H, W] in [-1, 1] as PIL pictures; what lies outside is cut off."""
    numbers = ((pictures.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(p.permute(1, 2, 0).cpu().numpy()) for p in numbers]


class TextToImage:
    """Draws what a text says.

        pipe = TextToImage.from_pretrained("checkpoints")
        pipe("a dog on a red background").images[0]

    Args:
        vae, unet, text_encoder, tokenizer: the trained parts.
        schedule: the noise schedule that the U-Net was trained with.
        prediction_type: what it predicts, "epsilon", "sample" or "v_prediction".
    """

    def __init__(
        self,
        vae: VAE,
        unet: UNet,
        text_encoder: TextEncoder,
        tokenizer: Tokenizer,
        schedule: NoiseSchedule,
        prediction_type: str = "v_prediction",
    ):
        self.vae, self.unet, self.text_encoder = vae.eval(), unet.eval(), text_encoder.eval()
        self.tokenizer, self.prediction_type = tokenizer, prediction_type
        self.schedule = schedule.to(self.device)

    @classmethod
    def from_pretrained(cls, folder: str | Path | None = None, device: str | torch.device = "cpu") -> TextToImage:
        """The pipeline whose parts lie in a folder; without one, your own parts, and the course's for what is missing.

        Raises:
            FileNotFoundError: a part is missing. ValueError: a file was cut short or altered.
        """
        from course_utils.training.artifacts import find_artifact, load_artifact, load_model

        vae = load_model(VAE, VAEConfig, "vae", folder).to(device)
        clip = load_model(CLIP, CLIPConfig, "clip", folder).to(device)
        unet = load_model(UNet, UNetConfig, "unet", folder).to(device)
        tokenizer = Tokenizer.load(find_artifact("clip", folder) / "tokenizer")
        _, card = load_artifact("unet", folder)
        schedule = NoiseSchedule(torch.tensor(card["betas"]))
        return cls(vae, unet, clip.text, tokenizer, schedule, card["prediction_type"])

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @torch.no_grad()
    def encode_prompt(self, prompt: str | list[str]) -> Tensor:
        """The text encoder's states, [B, L, D], that the U-Net reads; "" is the empty prompt of no condition.

        Warns of words that no training caption had (they fall into several pieces).
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts or not all(isinstance(p, str) for p in prompts):
            raise TypeError(f"a prompt is a string or a list of strings, got {prompt!r}")
        unseen = sorted({w for p in prompts for w in p.split() if len(self.tokenizer.tokenize(w)) > 1})
        if unseen:
            warnings.warn(
                f"never seen in training: {', '.join(map(repr, unseen))}; the picture will not know what is meant",
                stacklevel=2,
            )
        return self.text_encoder(self.tokenizer.encode(prompts).to(self.device))

    def denoiser(self, prompt: str | list[str], negative_prompt: str | list[str] | None, guidance_scale: float):
        """The guided U-Net for these prompts: a callable of (x_t, t) for any sampler."""
        cond = self.encode_prompt(prompt)
        uncond = self.encode_prompt(negative_prompt or "")
        if len(uncond) not in (1, len(cond)):
            raise ValueError(f"{len(cond)} prompts need one negative prompt or as many, got {len(uncond)}")
        return guided(self.unet, cond, uncond.expand_as(cond), guidance_scale)

    @torch.no_grad()
    def trajectory(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        num_inference_steps: int = 25,
        guidance_scale: float = 3.0,
        generator: torch.Generator | None = None,
        *,
        sampler: str = "ddim",
        eta: float = 0.0,
        x_T: Tensor | None = None,
        size: int = 64,
    ) -> Iterator[Tensor]:
        """Every latent x_t on the way from noise to picture, the last one x_0; arguments as in `__call__`."""
        denoiser = self.denoiser(prompt, negative_prompt, guidance_scale)
        if x_T is None:
            count = 1 if isinstance(prompt, str) else len(prompt)
            x_T = self.noise(count, generator, size)
        yield from sample(
            denoiser, self.schedule, x_T.to(self.device), num_inference_steps,
            sampler=sampler, eta=eta, prediction_type=self.prediction_type, generator=generator,
        )  # fmt: skip

    def noise(self, count: int, generator: torch.Generator | None = None, size: int = 64) -> Tensor:
        """Starting noise for `count` pictures, [count, C, size/8, size/8]."""
        side = size // self.vae.config.factor
        shape = (count, self.vae.config.latent_channels, side, side)
        where = generator.device if generator is not None else self.device
        return torch.randn(shape, generator=generator, device=where).to(self.device)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        num_inference_steps: int = 25,
        guidance_scale: float = 3.0,
        generator: torch.Generator | None = None,
        *,
        progress: bool = False,
        **options,
    ) -> Drawn:
        """Draw one picture a prompt.

        Args:
            prompt: what to draw; "" draws anything.
            negative_prompt: what to stay away from; takes the empty prompt's place in guidance.
            num_inference_steps: 1 … T; 10 to 50 is usual.
            guidance_scale: w in uncond + w (cond − uncond); 1 is the plain conditional prediction.
            generator: the source of the starting noise, for pictures that can be drawn again.
            progress: show a bar.
            options: `sampler`, `eta`, `x_T` and `size`, as in `trajectory`.

        Raises:
            ValueError: steps outside 1 … T, a negative guidance scale, an unknown sampler.
        """
        steps = self.trajectory(prompt, negative_prompt, num_inference_steps, guidance_scale, generator, **options)
        for x_t in tqdm(steps, total=num_inference_steps, disable=not progress, leave=False):
            pass
        return self._decoded(x_t)

    @torch.no_grad()
    def image_to_image(
        self,
        prompt: str | list[str],
        pictures: Tensor,
        strength: float = 0.6,
        negative_prompt: str | list[str] | None = None,
        num_inference_steps: int = 25,
        guidance_scale: float = 3.0,
        generator: torch.Generator | None = None,
        mask: Tensor | None = None,
    ) -> Drawn:
        """Redraw pictures [B, 3, H, W] in [-1, 1]: noise them part of the way, then denoise towards the prompt.

        Args:
            strength: 0 leaves them as they are, 1 forgets them; SDEdit, arXiv 2108.01073.
            mask: [B or 1, 1, H, W], 1 where something new is wanted; elsewhere the picture is kept (inpainting).
        """
        latents = self.vae.to_latents(pictures.to(self.device))
        prompts = [prompt] * len(latents) if isinstance(prompt, str) else prompt
        denoiser = self.denoiser(prompts, negative_prompt, guidance_scale)
        timesteps = strength_timesteps(self.schedule.timesteps(num_inference_steps), strength)
        if len(timesteps) == 0:
            return self._decoded(latents)
        noise = torch.randn(latents.shape, generator=generator).to(self.device)
        x_t = add_noise(self.schedule, latents, int(timesteps[0]), noise)
        if mask is not None:  # a latent is redrawn when most of its 8×8 pixels are
            keep = (F.interpolate(mask.float().to(self.device), size=latents.shape[-2:], mode="area") > 0.5).float()
        steps = timesteps.tolist()
        for t, t_prev in zip(steps, [*steps[1:], -1], strict=True):
            prediction = denoiser(x_t, torch.full((len(x_t),), t, device=self.device))
            x_t = ddim_step(self.schedule, prediction, x_t, t, t_prev, prediction_type=self.prediction_type)
            if mask is not None:
                known = latents if t_prev < 0 else add_noise(self.schedule, latents, t_prev, noise)
                x_t = inpaint_blend(x_t, known, keep)
        return self._decoded(x_t)

    def _decoded(self, latents: Tensor) -> Drawn:
        return Drawn(to_pil(self.vae.from_latents(latents)), latents)
