"""interop: the first layer that differs is named; what is not Stable Diffusion 1.x is refused, and says what it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from course_utils.models.tokenizer import Tokenizer
from course_utils.models.unet import UNet, UNetConfig
from course_utils.pipeline import TextToImage
from course_utils.weights import hub
from course_utils.weights.compare import first_difference, relative_error
from course_utils.weights.diffusers import unet_config_from_diffusers, vae_config_from_diffusers
from course_utils.weights.pretrained import (
    load_text_encoder,
    load_tokenizer,
    load_unet,
    load_vae,
    schedule_from_diffusers,
)
from course_utils.weights.renaming import check_shapes, rename

NAME = "someone/some-model"


# --- comparing ------------------------------------------------------------------------------------------------


def two_unets() -> tuple[UNet, UNet]:
    torch.manual_seed(0)
    config = UNetConfig((8, 16), (False, True), heads=2, context_width=12, norm_groups=4)
    ours, theirs = UNet(config), UNet(config)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.2)
    theirs.load_state_dict(ours.state_dict())
    return ours.eval(), theirs.eval()


def run(unet: UNet) -> torch.Tensor:
    x, context = (
        torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in ((2, 4, 8, 8), (2, 5, 12))
    )
    return unet(x, torch.tensor([4, 30]), context)


def same_names(name: str) -> str:
    return name


def test_networks_that_agree_have_no_first_difference():
    assert first_difference(*two_unets(), run, same_names) is None


@pytest.mark.parametrize(
    "layer", ["conv_in", "down.1.transformers.0.block.cross_attention.value", "middle_block2.conv1", "norm_out"]
)
def test_the_layer_that_was_broken_is_named(layer):
    ours, theirs = two_unets()
    with torch.no_grad():
        theirs.get_submodule(layer).weight[0] += 0.1
    found = first_difference(ours, theirs, run, same_names)
    assert found is not None and found.ours == found.theirs == layer
    assert f"first difference: {layer} " in str(found) and "its input agrees" in str(found)


def test_what_lies_between_two_layers_shows_as_a_wrong_input():
    ours, theirs = two_unets()
    block = theirs.down[1].transformers[0].block
    block.norm2.register_forward_hook(lambda _module, _inputs, output: output)  # hooks of others do not disturb
    block.feed_forward[0].register_forward_hook(lambda _module, _inputs, output: output * 1.5)  # a wrong activation
    found = first_difference(ours, theirs, run, same_names)
    assert found.ours == "down.1.transformers.0.block.feed_forward.1"
    assert found.before == "down.1.transformers.0.block.feed_forward.0.linear"
    assert f"its input differs already ({found.input_error:.1e}): look at what happens after {found.before}" in str(
        found
    )


def test_names_can_be_a_table_and_the_other_one_can_be_called_otherwise():
    ours, theirs = two_unets()
    table = {name: f"unet.{name}" for name in ours.state_dict()}
    wrapped = nn.ModuleDict({"unet": theirs})
    assert first_difference(ours, wrapped, run, table, lambda m: run(m["unet"])) is None
    with torch.no_grad():
        theirs.middle_block1.conv2.bias += 1
    found = first_difference(ours, wrapped, run, table, lambda m: run(m["unet"]))
    assert (found.ours, found.theirs) == ("middle_block1.conv2", "unet.middle_block1.conv2")
    hooks = [m for model in (ours, theirs) for m in model.modules() if m._forward_hooks]
    assert not hooks


def test_relative_error():
    a = torch.tensor([1.0, -4.0])
    assert relative_error(a, a) == 0 and relative_error(torch.zeros(2), torch.zeros(2)) == 0
    assert relative_error(a + torch.tensor([0.0, 1.0]), a) == 0.25
    for other in (torch.ones(3), torch.tensor([1.0, float("nan")]), torch.zeros(2), a[None]):
        assert relative_error(a, other) == float("inf")


# --- names and shapes -----------------------------------------------------------------------------------------


def test_renaming_is_strict():
    one, two = torch.zeros(1), torch.ones(2)
    assert rename({"a": one, "b": two}, {"a": "x", "b": "y"}) == {"x": one, "y": two}
    with pytest.raises(ValueError, match="missing: b; unknown: c"):
        rename({"a": one, "c": two}, {"a": "x", "b": "y"})
    with pytest.raises(ValueError, match="LoRA weights, which are not supported"):
        rename({"a": one, "b": two, "up.lora_A.weight": one}, {"a": "x", "b": "y"})
    with pytest.raises(ValueError, match=r"n0, n1, n2, n3, n4 and 3 more"):
        rename({f"n{i}": one for i in range(8)}, {})
    with pytest.raises(ValueError, match=r"wrong shape: w is \[2, 2\], wanted \[2, 3\]"):
        check_shapes({"w": torch.zeros(2, 2), "b": torch.zeros(2)}, nn.Linear(3, 2), {"w": "weight", "b": "bias"})


# --- what is not supported ------------------------------------------------------------------------------------


def write(path: Path, values: dict | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return path


SMALL = {
    "block_out_channels": [8, 8], "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "attention_head_dim": 2, "norm_num_groups": 4,
    "cross_attention_dim": 12, "layers_per_block": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"attention_head_dim": [5, 10]}, r"Stable Diffusion 2 or later \(attention_head_dim\)"),
        ({"use_linear_projection": True}, r"Stable Diffusion 2 or later \(use_linear_projection\)"),
        ({"addition_embed_type": "text_time"}, r"SDXL \(addition_embed_type\)"),
        ({"in_channels": 9}, r"for inpainting, depth or edits \(in_channels\)"),
        ({"norm_eps": 1e-6}, r"norm_eps is 1e-06, ours 1e-05"),
        ({"act_fn": "gelu"}, "act_fn is gelu, ours silu"),
        ({"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}, "down_block_types is .*AttnDownBlock2D"),
        ({"a_new_trick": 3}, "a_new_trick is 3, ours None"),
    ],
)
def test_other_unets_are_refused(settings, problem):
    assert unet_config_from_diffusers(SMALL) == UNetConfig((8, 8), (True, False), 1, 2, 12, 4, 4)
    with pytest.raises(ValueError, match=f"unet: .*{problem}"):
        unet_config_from_diffusers({**SMALL, **settings})


def test_other_vaes_are_refused():
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    values = {"block_out_channels": [8, 8], "norm_num_groups": 4, **kinds}
    config, scale = vae_config_from_diffusers(values)
    assert (config.channels, scale) == ((8, 8), 0.18215)  # diffusers' default
    for wrong in (0, -1, float("nan"), float("inf"), None, "1"):
        with pytest.raises(ValueError, match="vae: scaling_factor must be a number above 0"):
            vae_config_from_diffusers({**values, "scaling_factor": wrong})
    for settings in ({"shift_factor": 0.1}, {"use_quant_conv": False}, {"in_channels": 4}):
        with pytest.raises(ValueError, match=f"vae: .*{next(iter(settings))} is"):
            vae_config_from_diffusers({**values, **settings})


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is not supported"),
        ({"thresholding": True}, "thresholding is not supported"),
        ({"beta_schedule": "sigmoid"}, "sigmoid"),
        ({"prediction_type": "flow"}, "prediction_type must be one of .*'flow'"),
    ],
)
def test_other_schedules_are_refused(settings, problem):
    with pytest.raises((ValueError, NotImplementedError), match=problem):
        schedule_from_diffusers({"_class_name": "DDIMScheduler", **settings})


@pytest.mark.parametrize("kind", ["StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline", None])
def test_other_pipelines_are_refused(tmp_path, kind):
    write(tmp_path / "model_index.json", {"_class_name": kind})
    with pytest.raises(ValueError, match=f"is a {kind}; only StableDiffusionPipeline"):
        TextToImage.from_diffusers(tmp_path)


def test_the_text_encoder_and_tokenizer_of_stable_diffusion_2_are_refused(tmp_path):
    config = {"model_type": "clip_text_model", "hidden_act": "gelu", "hidden_size": 1024}
    write(tmp_path / "text_encoder/config.json", config)
    with pytest.raises(ValueError, match="text_encoder: .*hidden_act must be quick_gelu, got gelu"):
        load_text_encoder(tmp_path)
    write(tmp_path / "text_encoder/config.json", {"model_type": "t5"})
    with pytest.raises(ValueError, match="'t5' is not CLIP's text encoder"):
        load_text_encoder(tmp_path)
    Tokenizer.train(["a dog"], 520).save(tmp_path / "tokenizer")
    write(tmp_path / "tokenizer/tokenizer_config.json", {"pad_token": {"content": "!"}})
    with pytest.raises(ValueError, match="pads with '!', as Stable Diffusion 2 does"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer/vocab.json").unlink()
    write(tmp_path / "tokenizer/tokenizer_config.json", {})
    write(tmp_path / "tokenizer/tokenizer.json", {"model": {"type": "Unigram"}})
    with pytest.raises(ValueError, match="'Unigram' with None is not CLIP's"):
        load_tokenizer(tmp_path)


def test_lora_files_are_named(tmp_path):
    file = tmp_path / "pytorch_lora_weights.safetensors"
    save_file({"unet.down_blocks.0.lora.down.weight": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="is a single file of LoRA weights, which are not supported"):
        TextToImage.from_diffusers(file)
    for load in (TextToImage.from_diffusers, load_unet):
        with pytest.raises(ValueError, match="holds LoRA weights, which are not supported"):
            load(tmp_path)


def test_single_files_and_pickles_are_never_opened(tmp_path):
    (tmp_path / "v1-5.ckpt").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match="single file of pickled weights, which are never opened"):
        TextToImage.from_diffusers(tmp_path / "v1-5.ckpt")
    save_file({"model.diffusion_model.weight": torch.zeros(1)}, tmp_path / "v1-5.safetensors")
    with pytest.raises(ValueError, match="a single-file checkpoint is not supported"):
        TextToImage.from_diffusers(tmp_path / "v1-5.safetensors")
    write(tmp_path / "broken.safetensors", "no such thing")
    with pytest.raises(ValueError, match="is a single file; a folder"):
        load_unet(tmp_path / "broken.safetensors")
    write(tmp_path / "unet/config.json", SMALL)
    (tmp_path / "unet/diffusion_pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match="unet are pickled, and a pickle can run any code"):
        load_unet(tmp_path)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder .*/nowhere, and a hub name looks like owner/model"):
        load_vae(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="neither .*/unet nor .* has a config.json"):
        TextToImage.from_diffusers(tmp_path)
    write(tmp_path / "unet/config.json", SMALL)
    with pytest.raises(FileNotFoundError, match="there is no unet/diffusion_pytorch_model.safetensors"):
        load_unet(tmp_path)
    with pytest.raises(FileNotFoundError, match="neither .*/vae nor .* has a config.json"):
        load_vae(tmp_path)
    write(tmp_path / "unet/diffusion_pytorch_model.safetensors.index.json", {})
    with pytest.raises(ValueError, match="several shards, which is not supported"):
        load_unet(tmp_path)
    (tmp_path / "unet/diffusion_pytorch_model.safetensors.index.json").unlink()
    write(tmp_path / "unet/diffusion_pytorch_model.safetensors", "cut short")
    with pytest.raises(ValueError, match="is not a safetensors file .*fetch it again"):
        load_unet(tmp_path)
    with pytest.raises(FileNotFoundError, match="fp16.safetensors, only .*; leave the variant out"):
        load_unet(tmp_path, variant="fp16")
    write(tmp_path / "unet/config.json", "{")
    with pytest.raises(ValueError, match="unet/config.json is not JSON"):
        load_unet(tmp_path)
    write(tmp_path / "unet/config.json", "[]")
    with pytest.raises(ValueError, match="unet/config.json holds a list, not an object"):
        load_unet(tmp_path)
    write(tmp_path / "unet/config.json", {"_class_name": "AutoencoderKL"})
    with pytest.raises(ValueError, match="unet holds a AutoencoderKL, not a UNet2DConditionModel"):
        load_unet(tmp_path)


def test_the_courses_own_format_is_known(tmp_path):
    write(tmp_path / "unet.safetensors", "")
    with pytest.raises(FileNotFoundError, match="course's own format, which TextToImage.from_pretrained reads"):
        TextToImage.from_diffusers(tmp_path)


# --- the hub --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [TextToImage.from_diffusers, load_vae, load_unet, load_tokenizer])
def test_offline_it_says_in_one_line_what_to_do(load, monkeypatch):
    def offline(*_args, **_kwargs):
        raise OSError("cannot reach the server\nwith much\nmore detail")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(ConnectionError) as caught:
        load(NAME)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{NAME} is no folder here and did not come from the hub")
    assert "OSError: cannot reach the server" in message and "Go online" in message and "give its path" in message


def test_only_what_is_needed_is_fetched(tmp_path, monkeypatch):
    asked: list[list[str]] = []

    def fetch(name: str, allow_patterns: list[str]) -> str:
        assert name == NAME
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert hub.local_folder(NAME, ("vae",)) == tmp_path
    assert asked[-1] == ["model_index.json", "vae/config.json", "vae/diffusion_pytorch_model.safetensors"]
    hub.local_folder(NAME, ("vae", "unet", "text_encoder", "tokenizer", "scheduler"), "fp16")
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in asked[-1]
    assert "text_encoder/model.fp16.safetensors" in asked[-1] and "tokenizer/merges.txt" in asked[-1]
    assert "scheduler/scheduler_config.json" in asked[-1]
    assert not [name for name in asked[-1] if "*" in name or name.endswith((".bin", ".ckpt", ".pt"))]
    with pytest.raises(FileNotFoundError, match="neither .*/unet nor"):
        load_unet(NAME)
