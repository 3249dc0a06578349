"""Text to image: tokenizer, text encoder, U-Net, sampler and VAE, put together as in Stable Diffusion."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from course_utils.diffusion.editing import inpaint_blend, strength_timesteps
from course_utils.diffusion.forward import add_noise
from course_utils.diffusion.guidance import check_guidance_scale, guided, in_interval
from course_utils.diffusion.reverse import Denoiser, check_prediction_type
from course_utils.diffusion.samplers import as_generator, check_latents, check_sampler, ddim_step, noise_like, sample
from course_utils.diffusion.schedule import NoiseSchedule, check_count, check_number
from course_utils.models.clip import CLIP, CLIPConfig, TextEncoder
from course_utils.models.fit import check_fit, check_size
from course_utils.models.tokenizer import Tokenizer, as_prompts, split_words
from course_utils.models.unet import UNet, UNetConfig
from course_utils.models.vae import VAE, VAEConfig
from course_utils.pictures import Drawn, as_mask, as_pictures
from course_utils.pictures import to_pil as to_pil
from course_utils.weights.artifacts import find_parts, load_model, read_card
from course_utils.weights.cards import sampling_facts
from course_utils.weights.export import pipeline_to_diffusers, save_pipeline
from course_utils.weights.pretrained import load_parts


class TextToImage:
    """Draws what a text says.

        pipe = TextToImage.from_pretrained("checkpoints")
        pipe("a dog on a red background").images[0]

    Args:
        vae, unet, text_encoder, tokenizer: the trained parts; schedule: the noise schedule of the U-Net's training.
        prediction_type: what it predicts, "epsilon", "sample" or "v_prediction".
        size: pixels a side of the pictures that it was trained on.
        spacing, steps_offset: which timesteps a sampler visits, see `NoiseSchedule.timesteps`.
        last_t: where DDIM ends: −1, the clean picture, or 0 (Stable Diffusion 1, diffusers' set_alpha_to_one=False).
        origin: the folder or hub name that the weights came from; None if they were trained here.

    Raises:
        ValueError: parts that do not fit together.
    """

    def __init__(
        self,
        vae: VAE,
        unet: UNet,
        text_encoder: TextEncoder,
        tokenizer: Tokenizer,
        schedule: NoiseSchedule,
        prediction_type: str = "v_prediction",
        *,
        size: int = 64,
        spacing: str = "trailing",
        steps_offset: int = 0,
        last_t: int = -1,
        origin: str | None = None,
    ):
        check_prediction_type(prediction_type)
        check_fit(vae, unet, text_encoder, tokenizer)
        check_size(size, vae, unet)
        self.vae, self.unet, self.text_encoder = vae.eval(), unet.eval(), text_encoder.eval()
        self.tokenizer, self.prediction_type = tokenizer, prediction_type
        self.schedule = schedule.to(self.device)
        self.size, self.spacing, self.steps_offset, self.last_t = size, spacing, steps_offset, last_t
        self.origin = origin

    @classmethod
    def from_pretrained(cls, folder: str | Path | None = None, device: str | torch.device = "cpu") -> TextToImage:
        """The pipeline whose parts lie in a folder; without one, your own parts, and the course's for what is missing.

        Raises:
            FileNotFoundError: a part is missing. ValueError: a file was cut short or altered.
        """
        where = find_parts(folder)  # the VAE and the text encoder that this U-Net was trained with
        vae = load_model(VAE, VAEConfig, "vae", where["vae"]).to(device)
        clip = load_model(CLIP, CLIPConfig, "clip", where["clip"]).to(device)
        unet = load_model(UNet, UNetConfig, "unet", where["unet"]).to(device)
        tokenizer = Tokenizer.load(where["clip"] / "tokenizer")
        return cls(vae, unet, clip.text, tokenizer, **sampling_facts(read_card("unet", where["unet"])))

    @classmethod
    def from_diffusers(cls, source: str | Path, **options) -> TextToImage:
        """Stable Diffusion 1.x from a diffusers folder or hub name; options and errors as in `load_parts`."""
        return cls(**load_parts(source, **options))

    def to_diffusers(self, sampler: str = "ddim"):
        """The same pipeline as diffusers' StableDiffusionPipeline, see `pipeline_to_diffusers`."""
        return pipeline_to_diffusers(self, sampler)

    def save_diffusers(self, folder: str | Path, **options) -> Path:
        """Write a folder for `StableDiffusionPipeline.from_pretrained`; options and errors as in `save_pipeline`."""
        return save_pipeline(self, folder, **options)

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype

    def encode_prompt(self, prompt: str | list[str]) -> Tensor:
        """The text encoder's states, [B, L, D], that the U-Net reads; "" is the empty prompt of no condition.

        Warns of words that the tokenizer has no piece for, as is true of nearly all that no training caption had,
        and of words that were cut because the prompt is too long.

        Raises:
            TypeError: something else than text. ValueError: an empty list.
        """
        prompts = as_prompts(prompt)
        strange = {w for p in prompts for w in split_words(p) if len(self.tokenizer.tokenize(w)) > 1}
        if strange and self.origin is None:
            words = ", ".join(map(repr, sorted(strange)))
            hint = "unless training captions had it, the picture will not know what is meant"
            warnings.warn(f"no whole word to the tokenizer: {words}; {hint}", stacklevel=2)
        with torch.no_grad():
            return self.text_encoder(self.tokenizer.encode(prompts).to(self.device))

    def denoiser(
        self, prompt: str | list[str], negative_prompt: str | list[str] | None, guidance_scale: float,
        guidance_interval: tuple[int, int] | None = None,
    ) -> Denoiser:  # fmt: skip
        """The guided U-Net for these prompts: a callable of (x_t, t) for any sampler."""
        check_guidance_scale(guidance_scale)
        prompts, negative = as_prompts(prompt), as_prompts("" if negative_prompt is None else negative_prompt)
        if len(negative) not in (1, len(prompts)):
            raise ValueError(f"{len(prompts)} prompts need one negative prompt or as many, got {len(negative)}")
        cond, uncond = self.encode_prompt(prompts), self.encode_prompt(negative)  # [B, L, D], [1 or B, L, D]
        with_guidance = guided(self.unet, cond, uncond.expand_as(cond), guidance_scale)
        if guidance_interval is None:
            return with_guidance
        return in_interval(with_guidance, guided(self.unet, cond, cond, 1.0), *guidance_interval)

    def timesteps(self, num_inference_steps: int, last_t: int = -1) -> Tensor:
        """The steps [n] that a sampler visits before `last_t`, falling; ValueError for a number outside 1 … T."""
        steps = self.schedule.timesteps(num_inference_steps, self.spacing, self.steps_offset)
        if steps[0] <= last_t:
            raise ValueError(f"{num_inference_steps} steps leave none above t = {last_t}, where it ends: take more")
        return steps[steps > last_t]

    def noise(self, count: int, generator: torch.Generator | None = None, size: int | None = None) -> Tensor:
        """Starting noise for `count` pictures of `size` pixels a side, [count, C, size/8, size/8].

        Drawn on the generator's device, so that one on the CPU gives the same noise everywhere.
        """
        check_count("count", count)
        size = self.size if size is None else size
        check_size(size, self.vae, self.unet)
        side = size // self.vae.config.factor
        like = torch.empty(count, self.vae.config.latent_channels, side, side, device=self.device, dtype=self.dtype)
        return noise_like(like, as_generator(generator))

    def trajectory(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        num_inference_steps: int = 25,
        guidance_scale: float = 3.0,
        generator: torch.Generator | None = None,
        *,
        guidance_interval: tuple[int, int] | None = None,
        sampler: str = "ddim",
        eta: float = 0.0,
        x_T: Tensor | None = None,
        size: int | None = None,
    ) -> Iterator[Tensor]:
        """Every latent x_t on the way from noise to picture, the last one x_0; arguments as in `__call__`."""
        generator = as_generator(generator)
        check_sampler(sampler, eta)
        if x_T is None:
            check_size(self.size if size is None else size, self.vae, self.unet)
        else:
            check_latents(x_T, self.unet.config.latent_channels)
        last_t = self.last_t if sampler == "ddim" else -1
        times = self.timesteps(num_inference_steps, last_t).tolist()  # refuses a bad number before the networks run
        denoiser = self.denoiser(prompt, negative_prompt, guidance_scale, guidance_interval)
        if x_T is None:
            x_T = self.noise(len(as_prompts(prompt)), generator, size)
        steps = sample(
            denoiser, self.schedule, x_T.to(self.device, self.dtype), None, sampler=sampler, eta=eta,
            timesteps=times + [0] * (last_t + 1), prediction_type=self.prediction_type, generator=generator,
        )  # fmt: skip
        return _without_gradients(islice(steps, len(times)))  # a time 0 put behind is only where the last step leads

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
            negative_prompt: what to stay away from; takes the empty prompt's place in guidance, and so does nothing
                at guidance_scale 1.
            num_inference_steps: 1 … T; 10 to 50 is usual.
            guidance_scale: w in uncond + w (cond − uncond); 1 is the plain conditional prediction.
            generator: the source of all noise, for pictures that can be drawn again; by default torch's own.
            progress: show a bar.
            options: `sampler`, `eta`, `x_T` and `size`, as in `trajectory`; `guidance_interval`, the lowest and the
                highest t at which there is guidance (`in_interval`; None: at all).

        Raises:
            ValueError: steps outside 1 … T, a guidance scale outside 0 … 1000, an unknown sampler; numbers that are
                not finite, in x_T or in the end. TypeError: no text, or a seed in the generator's place.
        """
        steps = self.trajectory(prompt, negative_prompt, num_inference_steps, guidance_scale, generator, **options)
        *_, x_0 = tqdm(steps, total=num_inference_steps, disable=not progress, leave=False)
        with torch.no_grad():
            return Drawn.of(x_0, self.vae.from_latents(x_0))

    @torch.no_grad()
    def image_to_image(
        self,
        prompt: str | list[str],
        pictures: Tensor | Image.Image | list,
        strength: float = 0.6,
        negative_prompt: str | list[str] | None = None,
        num_inference_steps: int = 25,
        guidance_scale: float = 3.0,
        generator: torch.Generator | None = None,
        mask: Tensor | Image.Image | list | None = None,
    ) -> Drawn:
        """Redraw pictures [B, 3, H, W] in [-1, 1]: noise them part of the way, then denoise towards the prompt.

        PIL pictures and numpy's uint8 arrays are taken, too, one or a list of them, for pictures and for the mask.

        Args:
            strength: 0 leaves them as they are (but for the VAE), 1 forgets them; SDEdit, arXiv 2108.01073.
            mask: [B or 1, 1, H, W] of 0 and 1, 1 where something new is wanted; elsewhere the picture stays as it is,
                pixel for pixel (inpainting). Latents are redrawn where any of their 8×8 pixels is.

        Raises:
            ValueError: strength outside [0, 1], steps outside 1 … T, pictures, prompts and mask that do not fit.
            TypeError: something else in their places.
        """
        pictures, mask, generator = self._checked(pictures, mask, strength, generator)
        timesteps = strength_timesteps(self.timesteps(num_inference_steps, self.last_t), strength).tolist()
        prompts = [prompt] * len(pictures) if isinstance(prompt, str) else as_prompts(prompt)
        if len(prompts) != len(pictures):
            raise ValueError(f"{len(pictures)} pictures need one prompt or as many, got {len(prompts)}")
        denoiser = self.denoiser(prompts, negative_prompt, guidance_scale)
        latents = self.vae.to_latents(pictures)
        redraw = None if mask is None else F.max_pool2d(mask, self.vae.config.factor).to(latents)  # [B or 1, 1, h, w]
        noise = noise_like(latents, generator)
        x_t = latents
        if timesteps:
            x_t = noise if strength == 1 else add_noise(self.schedule, latents, timesteps[0], noise)
        for t, t_prev in zip(timesteps, [*timesteps[1:], self.last_t], strict=False):
            prediction = denoiser(x_t, torch.full((len(x_t),), t, device=self.device))
            x_t = ddim_step(self.schedule, prediction, x_t, t, t_prev, prediction_type=self.prediction_type)
            if redraw is not None:
                known = latents if t_prev < 0 else add_noise(self.schedule, latents, t_prev, noise)
                x_t = inpaint_blend(x_t, known, redraw)
        drawn = self.vae.from_latents(x_t)
        if mask is not None:  # the decoder reads its neighbours: what was to stay is put back as it was
            drawn = inpaint_blend(drawn, pictures, mask.to(drawn))
        return Drawn.of(x_t, drawn)

    def _checked(
        self, pictures: Any, mask: Any, strength: float, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor | None, torch.Generator]:
        """What image-to-image is given, converted where it is plain what is meant, and refused where it is not."""
        check_number("strength", strength, 0, 1)
        pictures = as_pictures(pictures, self.vae.config.factor * self.unet.config.factor).to(self.device, self.dtype)
        mask = None if mask is None else as_mask(mask, pictures)
        return pictures, mask, as_generator(generator)


@torch.no_grad()
def _without_gradients(steps: Iterator[Tensor]) -> Iterator[Tensor]:
    yield from steps
