"""The files of a Stable Diffusion 1.x model in diffusers' format: in a folder, or on the Hugging Face hub.

Only JSON, text and safetensors are ever read or fetched, never a pickle.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from course_utils import files

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
WEIGHTS = {"vae": "diffusion_pytorch_model", "unet": "diffusion_pytorch_model", "text_encoder": "model"}
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json")


def local_folder(source: str | Path, parts: tuple[str, ...], variant: str | None = None) -> Path:
    """The folder itself, or the one that the hub's files are fetched to: those of these parts only.

    Args:
        source: a folder, or a hub name such as "stable-diffusion-v1-5/stable-diffusion-v1-5".
        parts: of "vae", "unet", "text_encoder", "tokenizer", "scheduler".
        variant: "fp16" for the files called `….fp16.safetensors`.

    Raises:
        FileNotFoundError: it is neither. ValueError: a single file. ConnectionError: the hub does not give it.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise ValueError(f"{path.name} is a single file{_kind(path)}; a folder in diffusers' format is wanted")
    if not HUB_NAME.fullmatch(str(source)):
        raise FileNotFoundError(f"there is no folder {source}, and a hub name looks like owner/model")
    from huggingface_hub import snapshot_download

    patterns = ["model_index.json"]
    for part in parts:
        if part == "tokenizer":
            patterns += [f"tokenizer/{name}" for name in TOKENIZER_FILES]
        elif part == "scheduler":
            patterns.append("scheduler/scheduler_config.json")
        else:
            patterns += [f"{part}/config.json", f"{part}/{weights_name(part, variant)}"]
    try:
        return Path(snapshot_download(str(source), allow_patterns=patterns))
    except Exception as error:  # many kinds: offline, no such repository, a licence to accept first, a full disk
        reason = (str(error).splitlines() or [""])[0][:120]
        raise ConnectionError(
            f"{source} is no folder here and did not come from the hub ({type(error).__name__}: {reason}). "
            "Go online and check the name, or copy the model's folder to this machine and give its path."
        ) from None


def part_folder(source: str | Path, part: str, variant: str | None = None) -> Path:
    """The folder of one part: `source/part`, or `source` if it is the part's own folder.

    Raises FileNotFoundError if it is neither; the other errors as in `local_folder`.
    """
    folder = local_folder(source, (part,), variant)
    marks = ("vocab.json", "tokenizer.json") if part == "tokenizer" else ("config.json",)
    for candidate in (folder / part, folder):
        if any((candidate / mark).is_file() for mark in marks):
            return candidate
    if any(folder.glob("*lora*.safetensors")):
        raise ValueError(f"{folder.name} holds LoRA weights, which are not supported; a whole model is wanted")
    own = any((folder / f"{name}.safetensors").is_file() for name in ("vae", "unet", "clip"))
    hint = "; it holds the course's own format, which TextToImage.from_pretrained reads" if own else ""
    raise FileNotFoundError(f"neither {folder.name}/{part} nor {folder.name} has a {' or '.join(marks)}{hint}")


def read_json(path: Path) -> dict[str, Any]:
    """A config file. Raises FileNotFoundError naming it, ValueError if it holds no JSON object."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path.parent.name}/{path.name}: not a folder in diffusers' format")
    return files.read_json(path, "fetch it again", f"{path.parent.name}/{path.name}")


def weights_name(part: str, variant: str | None) -> str:
    """`diffusion_pytorch_model.safetensors`, `model.fp16.safetensors` and so on."""
    return f"{WEIGHTS[part]}.{variant}.safetensors" if variant else f"{WEIGHTS[part]}.safetensors"


def read_weights(folder: Path, part: str, variant: str | None = None) -> dict[str, Tensor]:
    """The tensors of one part as they stand in its safetensors file.

    Raises:
        FileNotFoundError: there is no such file; the message says what there is instead.
        ValueError: only pickles or shards, or a file that was cut short.
    """
    path = folder / weights_name(part, variant)
    if path.is_file():
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{part}/{path.name} is not a safetensors file ({error}); fetch it again") from None
    names = sorted(p.name for p in folder.iterdir() if p.is_file())
    stem = WEIGHTS[part]
    if any(name.startswith(stem) and ".safetensors.index" in name for name in names):
        raise ValueError(f"the weights in {part} lie in several shards, which is not supported")
    variants = [m[1] for name in names if (m := re.fullmatch(rf"{stem}\.(\w+)\.safetensors", name))]
    if variants:
        others = " or ".join(f"variant={v!r}" for v in variants)
        raise FileNotFoundError(f"there is no {part}/{path.name}, but another variant: give {others}")
    if any(name.endswith(".safetensors") for name in names):
        raise FileNotFoundError(f"there is no {part}/{path.name}, only {', '.join(names)}; leave the variant out")
    if any(name.endswith((".bin", ".ckpt", ".pt")) for name in names):
        raise ValueError(f"the weights in {part} are pickled, and a pickle can run any code: safetensors are wanted")
    raise FileNotFoundError(f"there is no {part}/{path.name}")


def _kind(path: Path) -> str:
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                if any("lora" in name for name in file.keys()):  # noqa: SIM118
                    return " of LoRA weights, which are not supported"
        except SafetensorError:
            return ""
        return " of weights (a single-file checkpoint is not supported)"
    return " of pickled weights, which are never opened" if path.suffix in (".ckpt", ".bin", ".pt") else ""
