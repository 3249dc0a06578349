"""A Stable Diffusion 1.x folder in our own classes: small random networks, saved by diffusers, drawn by us."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from course_utils.diffusion.schedule import NoiseSchedule
from course_utils.models.clip import CLIPTextConfig
from course_utils.models.tokenizer import Tokenizer
from course_utils.models.unet import UNet, UNetConfig
from course_utils.models.vae import VAE, VAEConfig
from course_utils.pipeline import TextToImage
from course_utils.weights.diffusers import (
    unet_config_from_diffusers,
    unet_config_to_diffusers,
    unet_from_diffusers,
    vae_config_from_diffusers,
    vae_config_to_diffusers,
    vae_from_diffusers,
)
from course_utils.weights.pretrained import (
    load_text_encoder,
    load_tokenizer,
    load_unet,
    load_vae,
    schedule_from_diffusers,
)
from course_utils.weights.transformers import text_config_from_transformers
from tests.parity.same import assert_same, randn

# The config files of stable-diffusion-v1-5, as they stand on the hub.
SD15_UNET = {
    "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu", "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": False, "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "downsample_padding": 1,
    "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1,
    "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}  # fmt: skip
SD15_VAE = {
    "_class_name": "AutoencoderKL", "_diffusers_version": "0.6.0", "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4, "in_channels": 3,
    "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3, "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
SD15_SCHEDULER = {
    "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": False,
    "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None, "clip_sample": False,
}  # fmt: skip
SD15_TEXT = {
    "architectures": ["CLIPTextModel"], "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2,
    "hidden_act": "quick_gelu", "hidden_size": 768, "initializer_factor": 1.0, "initializer_range": 0.02,
    "intermediate_size": 3072, "layer_norm_eps": 1e-05, "max_position_embeddings": 77, "model_type": "clip_text_model",
    "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1, "projection_dim": 768,
    "torch_dtype": "float32", "transformers_version": "4.22.0.dev0", "vocab_size": 49408,
}  # fmt: skip
COURSE_TOKENIZER = Path(__file__).resolve().parents[2] / "checkpoints" / "tokenizer"
SCHEDULERS = {
    "ddim": diffusers.DDIMScheduler,
    "ddpm": diffusers.DDPMScheduler,
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
}
PROMPT, NEGATIVE = "a dog on a red background", "a small cat"


def small_pipeline() -> StableDiffusionPipeline:
    """Stable Diffusion 1.5 but for its sizes: 77 tokens, its schedule, quick GELU, latents 8 times smaller a side."""
    torch.manual_seed(0)
    ours = Tokenizer.load(COURSE_TOKENIZER)
    unet = {**SD15_UNET, "block_out_channels": [16, 32, 32, 32], "cross_attention_dim": 24, "norm_num_groups": 8}
    vae = {**SD15_VAE, "block_out_channels": [8, 16, 16, 16], "layers_per_block": 1, "norm_num_groups": 4}
    text = {**SD15_TEXT, "hidden_size": 24, "intermediate_size": 48, "num_attention_heads": 3, "num_hidden_layers": 2}
    text |= {"vocab_size": len(ours), "bos_token_id": ours.start_id, "eos_token_id": ours.end_id, "pad_token_id": 1}
    del unet["_diffusers_version"]  # below 0.9 the pipeline takes a sample size under 64 for a mistake
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL.from_config({**vae, "sample_size": 64}).eval(),
        unet=UNet2DConditionModel.from_config({**unet, "sample_size": 8}).eval(),
        text_encoder=transformers.CLIPTextModel(transformers.CLIPTextConfig(**text)).eval(),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(COURSE_TOKENIZER, model_max_length=77),
        scheduler=diffusers.PNDMScheduler.from_config(SD15_SCHEDULER),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def theirs() -> StableDiffusionPipeline:
    return small_pipeline()


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "sd"
    theirs.save_pretrained(folder)
    return folder


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_same_picture(ours: TextToImage, theirs, sampler="ddim", steps=4, scale=5.0, negative=None) -> None:
    x_T = ours.noise(1, generator())
    drawn = ours(
        PROMPT, negative, steps, scale, generator(1), sampler=sampler, x_T=x_T.clone()
    )  # the sampler's own noise comes from the generator
    picture = theirs(
        PROMPT, negative_prompt=negative, num_inference_steps=steps, guidance_scale=scale, generator=generator(1),
        latents=x_T.to(theirs.unet.dtype), output_type="np",
    ).images[0]  # fmt: skip
    got = np.asarray(drawn.images[0]) / 255
    assert got.shape == picture.shape and got.std() > 0.01 and 0.01 < got.mean() < 0.99  # no picture of one colour
    assert np.abs(got - picture).mean() <= 1 / 255


@pytest.mark.parametrize("negative", [None, NEGATIVE])
@pytest.mark.parametrize("sampler", list(SCHEDULERS))
@pytest.mark.parametrize("steps", [3, 7])
def test_the_same_picture_from_a_diffusers_folder(folder, theirs, sampler, negative, steps):
    ours = TextToImage.from_diffusers(folder)
    assert (ours.size, ours.spacing, ours.steps_offset, ours.last_t) == (64, "leading", 1, 0)
    assert (ours.prediction_type, ours.tokenizer.max_length) == ("epsilon", 77)
    assert ours.vae.latent_scale == torch.tensor(0.18215)
    if sampler == "dpmpp_2m":  # diffusers' DPM-Solver counts its "leading" steps in another way than its DDIM
        ours.spacing = "trailing"
    theirs.scheduler = SCHEDULERS[sampler].from_config({**SD15_SCHEDULER, "timestep_spacing": ours.spacing})
    assert_same_picture(ours, theirs, sampler, steps, negative=negative)
    latents = ours(PROMPT, num_inference_steps=steps, generator=generator(2), sampler=sampler).latents
    wanted = theirs(
        PROMPT, num_inference_steps=steps, guidance_scale=3.0, generator=generator(2), output_type="latent"
    ).images  # the start noise is theirs, too: the same generator draws the same
    assert_same(latents, wanted, 1e-4)


def test_no_warning_of_words_that_the_course_does_not_teach(folder, recwarn):
    TextToImage.from_diffusers(folder).encode_prompt("an astronaut riding a horse")
    assert not [w for w in recwarn if "never seen" in str(w.message)]


@pytest.mark.parametrize(
    "settings",
    [
        {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
        {"_class_name": "DDIMScheduler", "set_alpha_to_one": True, "prediction_type": "sample"},
        {
            "_class_name": "DPMSolverMultistepScheduler",
            "timestep_spacing": "trailing",
            "trained_betas": [0.01] * 400 + [0.02] * 600,
        },
        {"beta_schedule": "squaredcos_cap_v2", "set_alpha_to_one": True, "prediction_type": "v_prediction"},
        {"steps_offset": 0, "clip_sample": True},  # StableDiffusionPipeline puts both right, and so do we
    ],
)
def test_other_schedules(folder, theirs, tmp_path, settings):
    other = tmp_path / "other"
    values = {**SD15_SCHEDULER, **settings}
    copy_folder(folder, other)
    (other / "scheduler" / "scheduler_config.json").write_text(json.dumps(values))
    with_schedule = StableDiffusionPipeline(
        **{**theirs.components, "scheduler": diffusers.DDIMScheduler.from_config(values)}, requires_safety_checker=False
    )
    with_schedule.set_progress_bar_config(disable=True)
    assert_same_picture(TextToImage.from_diffusers(other), with_schedule)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_half_precision_files(tmp_path, dtype):
    half = small_pipeline().to(dtype=torch.float16)
    half.save_pretrained(tmp_path / "half", variant="fp16")
    assert (tmp_path / "half/unet/diffusion_pytorch_model.fp16.safetensors").is_file()
    theirs = StableDiffusionPipeline.from_pretrained(tmp_path / "half", variant="fp16", torch_dtype=dtype)
    theirs.scheduler = diffusers.DDIMScheduler.from_config(theirs.scheduler.config)
    theirs.set_progress_bar_config(disable=True)
    ours = TextToImage.from_diffusers(tmp_path / "half", variant="fp16", dtype=dtype)
    assert {p.dtype for p in ours.unet.parameters()} == {p.dtype for p in ours.text_encoder.parameters()} == {dtype}
    assert ours.vae.latent_scale.dtype == torch.float32
    assert_same_picture(ours, theirs)
    with pytest.raises(FileNotFoundError, match="but another variant: give variant='fp16'"):
        TextToImage.from_diffusers(tmp_path / "half")


def test_parts_by_themselves(folder, theirs):
    vae, unet = load_vae(str(folder)), load_unet(str(folder / "unet"))
    encoder, tokenizer = load_text_encoder(str(folder)), load_tokenizer(str(folder))
    assert not vae.training and not unet.training and not encoder.training
    x, t, context = randn(2, 4, 8, 8, seed=1), torch.tensor([1, 700]), randn(2, 5, 24, seed=2)
    ids = tokenizer.encode(["a dog", "a small cat"])
    with torch.no_grad():
        assert_same(unet(x, t, context), theirs.unet(x, t, context).sample, 1e-4)
        assert_same(vae.decode(x), theirs.vae.decode(x).sample, 1e-4)
        assert_same(encoder(ids), theirs.text_encoder(ids).last_hidden_state, 1e-4)
    assert all(p.requires_grad for p in unet.parameters())  # it can be trained on
    unet(x, t, context).mean().backward()


def copy_folder(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(source)).write_bytes(path.read_bytes())


def edit(path: Path, change) -> None:
    save_file(change(load_file(path)), path)


def test_files_as_stable_diffusion_15_has_them(folder, tmp_path):
    """Text encoder with prefix and position ids, VAE with its old attention names, vocab.json beside no tokenizer.json:
    the same tensors come out."""
    old = tmp_path / "old"
    copy_folder(folder, old)
    edit(
        old / "text_encoder/model.safetensors",
        lambda state: {
            **{f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in state.items()},
            "text_model.embeddings.position_ids": torch.arange(77)[None],
        },
    )
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def old_names(state):
        for new, before in names.items():
            state = {k.replace(f"attentions.0.{new}.", f"attentions.0.{before}."): v for k, v in state.items()}
        assert sum("proj_attn" in k for k in state) == 4
        return state

    edit(old / "vae/diffusion_pytorch_model.safetensors", old_names)
    ours = Tokenizer.load(COURSE_TOKENIZER)
    Tokenizer(ours.merges, ours.vocabulary, 77).save(old / "tokenizer")
    (old / "tokenizer/tokenizer.json").unlink()
    first, second = TextToImage.from_diffusers(folder), TextToImage.from_diffusers(old)
    for part in ("vae", "unet", "text_encoder"):
        expected, got = getattr(first, part).state_dict(), getattr(second, part).state_dict()
        assert expected.keys() == got.keys()
        assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert first.tokenizer.vocabulary == second.tokenizer.vocabulary == ours.vocabulary
    assert first.tokenizer.merges == second.tokenizer.merges == ours.merges
    assert torch.equal(first.tokenizer.encode("a yak's dog"), second.tokenizer.encode("a yak's dog"))


PARTS = {
    "vae": ("vae/diffusion_pytorch_model.safetensors", "decoder.mid_block.attentions.0.to_k.bias"),
    "unet": ("unet/diffusion_pytorch_model.safetensors", "mid_block.attentions.0.proj_in.weight"),
    "text_encoder": ("text_encoder/model.safetensors", "encoder.layers.1.mlp.fc2.bias"),
}


@pytest.mark.parametrize("part", PARTS)
def test_missing_extra_and_misshapen_tensors_are_named(folder, tmp_path, part):
    file, ending = PARTS[part]
    copy_folder(folder, tmp_path)
    whole = load_file(folder / file)
    name = next(k for k in whole if k.endswith(ending))

    def without(state):
        return {k: v for k, v in state.items() if k != name}

    for change, problem in (
        (without, f"missing: {ending}; unknown: none"),
        (lambda s: {**s, name.replace(ending, "extra.weight"): torch.zeros(1)}, "missing: none; unknown: extra.weight"),
        (lambda s: {**s, name: torch.zeros(3, 1)}, rf"wrong shape: {ending} is \[3, 1\], wanted \["),
    ):
        save_file(change(whole), tmp_path / file)
        with pytest.raises(ValueError, match=f"^{part}: .*{problem}"):
            TextToImage.from_diffusers(tmp_path)


def test_the_config_files_of_stable_diffusion_15():
    assert unet_config_from_diffusers(SD15_UNET) == UNetConfig.sd15()
    assert vae_config_from_diffusers(SD15_VAE) == (VAEConfig.sd15(), 0.18215)
    assert text_config_from_transformers(transformers.CLIPTextConfig(**SD15_TEXT).to_dict()) == CLIPTextConfig()
    schedule, sampling = schedule_from_diffusers(SD15_SCHEDULER)
    assert torch.equal(schedule.betas, NoiseSchedule.scaled_linear(1000).betas)
    assert sampling == {"prediction_type": "epsilon", "spacing": "leading", "steps_offset": 1, "last_t": 0}


def test_stable_diffusion_15_comes_in_one_to_one():
    with torch.device("meta"):
        unet = UNet2DConditionModel(**unet_config_to_diffusers(UNetConfig.sd15(), 64)).state_dict()
        vae = AutoencoderKL(**vae_config_to_diffusers(VAEConfig.sd15())).state_dict()
        our_unet, our_vae = UNet(UNetConfig.sd15()), VAE(VAEConfig.sd15())
    ours = our_unet.state_dict(), our_vae.state_dict()
    got = unet_from_diffusers(unet, our_unet), vae_from_diffusers(vae, our_vae)
    assert {k: v.shape for k, v in got[0].items()} == {k: v.shape for k, v in ours[0].items()}
    del ours[1]["latent_scale"]
    assert {k: v.shape for k, v in got[1].items()} == {k: v.shape for k, v in ours[1].items()}


def test_a_tokenizer_json_alone_is_enough(folder):
    assert not (folder / "tokenizer/vocab.json").exists() or transformers.__version__ < "5"
    ours, theirs = load_tokenizer(folder), transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer")
    text = "A naïve dog's 42 CATS"
    assert ours.encode(text).tolist() == theirs([text], padding="max_length", truncation=True).input_ids
