"""Our CLIP weights under transformers' names, and back.

The architectures are the same, block for block; only the names differ. The tables list pairs
(ours, transformers'). Renaming is strict: a tensor that is missing or unknown is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from course_utils.models.clip import CLIPConfig, CLIPTextConfig, CLIPVisionConfig, TextEncoder
from course_utils.weights.renaming import rename, some

_BLOCK = [
    ("norm1", "layer_norm1"),
    ("attention.query", "self_attn.q_proj"),
    ("attention.key", "self_attn.k_proj"),
    ("attention.value", "self_attn.v_proj"),
    ("attention.out", "self_attn.out_proj"),
    ("norm2", "layer_norm2"),
    ("mlp.expand", "mlp.fc1"),
    ("mlp.contract", "mlp.fc2"),
]
_TEXT = [
    ("token_embedding.weight", "embeddings.token_embedding.weight"),
    ("position_embedding.weight", "embeddings.position_embedding.weight"),
    ("final_norm.weight", "final_layer_norm.weight"),
    ("final_norm.bias", "final_layer_norm.bias"),
]
_VISION = [
    ("class_embedding", "embeddings.class_embedding"),
    ("patch_embedding.weight", "embeddings.patch_embedding.weight"),
    ("position_embedding.weight", "embeddings.position_embedding.weight"),
    ("pre_norm.weight", "pre_layrnorm.weight"),  # transformers' own spelling
    ("pre_norm.bias", "pre_layrnorm.bias"),
    ("post_norm.weight", "post_layernorm.weight"),
    ("post_norm.bias", "post_layernorm.bias"),
]
_HEADS = [
    ("logit_scale", "logit_scale"),
    ("text_projection.weight", "text_projection.weight"),
    ("image_projection.weight", "visual_projection.weight"),
]
_PREFIX = "text_model."


def text_names(layers: int) -> dict[str, str]:
    """Our name -> transformers' name, without prefix, for each tensor of a text encoder."""
    return dict([*_TEXT, *_block_names(layers)])


def vision_names(layers: int) -> dict[str, str]:
    """Our name -> transformers' name, without prefix, for each tensor of a picture encoder."""
    return dict([*_VISION, *_block_names(layers)])


def clip_names(text_layers: int, vision_layers: int) -> dict[str, str]:
    """Our name -> transformers' name for each tensor of a whole CLIP."""
    text = {f"text.{ours}": f"text_model.{theirs}" for ours, theirs in text_names(text_layers).items()}
    vision = {f"vision.{ours}": f"vision_model.{name}" for ours, name in vision_names(vision_layers).items()}
    return {**text, **vision, **dict(_HEADS)}


def text_encoder_to_transformers(state: Mapping[str, Tensor], prefix: bool = False) -> dict[str, Tensor]:
    """A TextEncoder's state dict under the names of transformers' CLIPTextModel.

    `prefix=True` puts `text_model.` before each name, as files on disk have it (transformers 4 wants it in
    `load_state_dict` too, transformers 5 does not). Raises ValueError naming missing or unknown tensors.
    """
    names = text_names(_count_layers(state, "blocks."))
    return {_PREFIX * prefix + name: tensor for name, tensor in rename(state, names).items()}


def clip_text_model(encoder: TextEncoder, end_id: int | None = None) -> Any:
    """transformers' CLIPTextModel with the encoder's weights, in eval mode; `end_id` as in the config."""
    import transformers

    config = transformers.CLIPTextConfig(**text_config_to_transformers(encoder.config, end_id))
    model = transformers.CLIPTextModel(config).eval()
    prefix = any(name.startswith(_PREFIX) for name in model.state_dict())  # up to transformers 4
    model.load_state_dict(text_encoder_to_transformers(encoder.state_dict(), prefix))
    return model


def text_encoder_from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A CLIPTextModel's state dict, with or without `text_model.`, under our TextEncoder's names.

    Raises ValueError naming missing or unknown tensors.
    """
    state = text_state_without_prefix(state)
    names = text_names(_count_layers(state, "encoder.layers."))
    return rename(state, {theirs: ours for ours, theirs in names.items()})


def text_state_without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A CLIPTextModel's tensors as transformers 5 names them, without `text_model.` and without `position_ids`.

    Raises ValueError if only some names have the prefix.
    """
    if any(name.startswith(_PREFIX) for name in state):
        unprefixed = [name for name in state if not name.startswith(_PREFIX)]
        if unprefixed:
            raise ValueError(f"some names begin with {_PREFIX!r} and others do not: {some(unprefixed)}")
        state = {name.removeprefix(_PREFIX): tensor for name, tensor in state.items()}
    return _without_positions(state)


def clip_to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A CLIP's state dict under the names of transformers' CLIPModel.

    Raises ValueError naming missing or unknown tensors.
    """
    text_layers, vision_layers = _count_layers(state, "text.blocks."), _count_layers(state, "vision.blocks.")
    return rename(state, clip_names(text_layers, vision_layers))


def clip_from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A CLIPModel's state dict under our CLIP's names.

    Raises ValueError naming missing or unknown tensors.
    """
    text_layers = _count_layers(state, "text_model.encoder.layers.")
    vision_layers = _count_layers(state, "vision_model.encoder.layers.")
    names = clip_names(text_layers, vision_layers)
    return rename(_without_positions(state), {theirs: ours for ours, theirs in names.items()})


def text_config_to_transformers(config: CLIPTextConfig, end_id: int | None = None) -> dict[str, Any]:
    """Keyword arguments that make transformers' CLIPTextConfig the same network.

    `end_id` is the tokenizer's; without it the special tokens are taken to be the last two of `vocab_size`.
    Give it where the encoder has more rows than the tokenizer has tokens, or transformers pools elsewhere.
    """
    end = config.vocab_size - 1 if end_id is None else end_id
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_length,
        "bos_token_id": end - 1,
        "eos_token_id": end,
        "pad_token_id": end,
        **_shared_config(config),
    }


def vision_config_to_transformers(config: CLIPVisionConfig) -> dict[str, Any]:
    """Keyword arguments that make transformers' CLIPVisionConfig the same network."""
    return {"image_size": config.image_size, "patch_size": config.patch_size, **_shared_config(config)}


def clip_config_to_transformers(config: CLIPConfig, end_id: int | None = None) -> dict[str, Any]:
    """Keyword arguments that make transformers' CLIPConfig the same network; `end_id` is the tokenizer's."""
    text = text_config_to_transformers(config.text, end_id)
    return {
        "text_config": {**text, "projection_dim": config.embed_dim},
        "vision_config": {**vision_config_to_transformers(config.vision), "projection_dim": config.embed_dim},
        "projection_dim": config.embed_dim,
        "logit_scale_init_value": config.logit_scale_init,
    }


def text_config_from_transformers(values: Mapping[str, Any]) -> CLIPTextConfig:
    """Our config for the text encoder that a transformers config (its `to_dict()`, or config.json) describes.

    Raises ValueError if the network is one that we do not build: another activation, or an MLP whose width is
    not a multiple of the encoder's.
    """
    width, hidden = values["hidden_size"], values["intermediate_size"]
    if values.get("hidden_act", "quick_gelu") != "quick_gelu":
        raise ValueError(f"hidden_act must be quick_gelu, got {values['hidden_act']}")
    if values.get("layer_norm_eps", 1e-5) != 1e-5:
        raise ValueError(f"layer_norm_eps must be 1e-5, got {values['layer_norm_eps']}")
    if hidden % width:
        raise ValueError(f"intermediate_size must be a multiple of hidden_size, got {hidden} and {width}")
    return CLIPTextConfig(
        vocab_size=values["vocab_size"],
        max_length=values["max_position_embeddings"],
        width=width,
        layers=values["num_hidden_layers"],
        heads=values["num_attention_heads"],
        mlp_ratio=hidden // width,
    )


def _shared_config(config: CLIPTextConfig | CLIPVisionConfig) -> dict[str, Any]:
    return {
        "hidden_size": config.width,
        "intermediate_size": config.mlp_ratio * config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }


def _block_names(layers: int) -> list[tuple[str, str]]:
    return [
        (f"blocks.{i}.{ours}.{kind}", f"encoder.layers.{i}.{theirs}.{kind}")
        for i in range(layers)
        for ours, theirs in _BLOCK
        for kind in ("weight", "bias")
    ]


def _count_layers(names: Iterable[str], prefix: str) -> int:
    found = [re.match(re.escape(prefix) + r"(\d+)\.", name) for name in names]
    return 1 + max((int(match[1]) for match in found if match), default=0)  # a network has one layer at least


def _without_positions(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the `position_ids` that older checkpoints carry: they are 0, 1, 2, … and not weights."""
    return {name: tensor for name, tensor in state.items() if not name.endswith("embeddings.position_ids")}
