"""What people really bring, a table for each door: refused before any work with words that say what to do, or taken.

A line more is a case more. What the pipeline, the cards and the loop do otherwise stands in their own tests.
"""

from __future__ import annotations

import json
import math
import shutil

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from course_utils import __main__ as command
from course_utils.data.batches import CaptionedImages, to_float
from course_utils.lessons.setup import choose_device
from course_utils.models.clip import CLIP, CLIPConfig
from course_utils.models.tokenizer import Tokenizer
from course_utils.models.unet import UNet, UNetConfig
from course_utils.models.vae import VAE, VAEConfig
from course_utils.pipeline import TextToImage
from course_utils.weights import artifacts
from course_utils.weights.cards import write_card
from course_utils.weights.export import scheduler_to_diffusers
from course_utils.weights.pretrained import load_tokenizer, schedule_from_diffusers
from tests.unit.test_pipeline import TOKENIZER, call, generator, picture, pipe, small_clip, small_unet, small_vae, store

__all__ = ["pipe", "picture"]  # fixtures
NAN, INF = math.nan, math.inf

# --- what a pipeline is asked for -------------------------------------------------------------------------------------

NUMBERS = [  # (argument, value, error, what it says)
    ("generator", 0, TypeError, r"generator must be a torch.Generator, got 0; of a seed make one with .*manual_seed"),
    ("generator", 7, TypeError, "must be a torch.Generator, got 7"),
    ("generator", [torch.Generator()], TypeError, "must be a torch.Generator"),
    ("guidance_scale", INF, ValueError, "guidance_scale must lie in 0 … 1000, got inf"),
    ("guidance_scale", NAN, ValueError, "guidance_scale must be 0 or above"),
    ("guidance_scale", 1e30, ValueError, "guidance_scale must lie in 0 … 1000, got 1e"),
    ("guidance_scale", [1, 2], TypeError, "guidance_scale must be one number, got list"),
    ("guidance_scale", torch.ones(2), TypeError, "guidance_scale must be one number, got Tensor"),
    ("guidance_scale", "3", TypeError, "guidance_scale must be one number, got str"),
    ("eta", torch.ones(2), TypeError, "eta must be one number"),
    ("eta", NAN, ValueError, "eta must lie in 0 … 1"),
    ("num_inference_steps", [4], ValueError, "must be a whole number"),
    ("num_inference_steps", torch.tensor([4, 5]), ValueError, "must be a whole number"),
    ("negative_prompt", 0, TypeError, "a prompt is a string or a list of strings, got 0"),
    ("negative_prompt", [], ValueError, "there is no prompt in the list"),
    ("size", 10**9, ValueError, r"size must be a multiple of 8 pixels, got 1000000000 \(at most 4,096\)"),
    ("size", 0, ValueError, "size must be a multiple of 8 pixels, got 0"),
    ("size", [32], ValueError, r"size must be a multiple of 8 pixels, got \[32\]"),
    ("size", 32.0, ValueError, "size must be a multiple of 8 pixels, got 32.0"),
    ("x_T", [[0.0]], TypeError, r"x_T must be a floating-point tensor \[B, 4, h, w\], got list"),
    ("x_T", torch.zeros(1, 4, 8, 8, dtype=torch.int64), TypeError, "x_T must be a floating-point .*got torch.int64"),
    ("x_T", torch.zeros(2), ValueError, r"x_T must be \[B, 4, h, w\], got \[2\]"),
    ("x_T", torch.full((1, 4, 8, 8), NAN), ValueError, "x_T must be noise, .*holds NaN"),
    ("x_T", torch.full((1, 4, 8, 8), INF), ValueError, "x_T must be noise, .*infinite"),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), NUMBERS)
def test_the_pipeline_refuses_before_its_networks_run(pipe, monkeypatch, name, value, error, message):
    monkeypatch.setattr(pipe, "text_encoder", None)
    with pytest.raises(error, match=message):
        pipe("a dog", **{"num_inference_steps": 4, "size": 32, name: value})


def test_a_picture_that_became_nan_is_an_error(pipe, picture, monkeypatch):
    monkeypatch.setattr(pipe.vae, "decode", lambda z: z.repeat(1, 1, 4, 4)[:, :3] * NAN)
    for draw in (lambda: call(pipe), lambda: pipe.image_to_image("a dog", picture, 0.5, num_inference_steps=2)):
        with pytest.raises(ValueError, match="became NaN or infinite in torch.float32: use a lower guidance_scale"):
            draw()


def test_parts_of_two_models_are_not_put_together(pipe):
    long = Tokenizer(TOKENIZER.merges, max_length=40)
    more = Tokenizer.train([" ".join(f"{a}{b}{b}{a}" for a in "abcdefgh" for b in "ijklmnop")], 800, 12)
    wide = UNet(UNetConfig((8, 16), (False, True), heads=2, context_width=24, norm_groups=4))
    deep = VAE(VAEConfig((8, 8, 8), latent_channels=8, norm_groups=4))
    for change, message in [
        ({"tokenizer": more}, "tokens, but the text encoder knows 640"),
        ({"tokenizer": long}, "texts of 40 tokens, the text encoder reads 12"),
        ({"unet": wide}, "gives 16 numbers a token, the U-Net reads 24"),
        ({"vae": deep}, "latents have 8 and 4 channels"),
        ({"prediction_type": "flow"}, "prediction_type must be one of"),
        ({"size": 30}, "size must be a multiple of 8"),
    ]:
        parts = {"vae": pipe.vae, "unet": pipe.unet, "text_encoder": pipe.text_encoder, "tokenizer": TOKENIZER}
        with pytest.raises(ValueError, match=message):
            TextToImage(**{**parts, "schedule": pipe.schedule, **change})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_to_latents_and_back_in_any_precision(dtype):
    vae, x = small_vae().to(dtype), torch.rand(1, 3, 16, 16, generator=generator()).to(dtype)
    with torch.no_grad():
        z = vae.to_latents(x)
        assert z.dtype == dtype and vae.from_latents(z).dtype == dtype
        assert vae.to_latents(x, generator()).dtype == dtype
        if dtype == torch.float64:
            assert (z - vae.encode(x).mean * vae.latent_scale).abs().max() == 0 and z.float().double().ne(z).any()


# --- pictures and masks -----------------------------------------------------------------------------------------------


def numbers(seed: int = 0, mode: str = "RGB") -> np.ndarray:
    shape = (32, 32, 3) if mode == "RGB" else (32, 32)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def half_mask() -> np.ndarray:
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[:, 16:] = 255
    return mask


PICTURE = torch.from_numpy(numbers()).permute(2, 0, 1)[None]  # uint8 [1, 3, 32, 32]
TAKEN = [
    Image.fromarray(numbers()),
    [Image.fromarray(numbers())],
    numbers(),
    numbers()[None],
    [numbers()],
    PICTURE,
    [to_float(PICTURE)[0]],
]
MASKS = [
    Image.fromarray(half_mask()),
    Image.fromarray(half_mask()).convert("1"),
    [Image.fromarray(half_mask())],
    half_mask(),
    half_mask() > 0,
    half_mask()[None] / 255,
    torch.from_numpy(half_mask())[None, None],
    torch.from_numpy(half_mask() > 0)[None, None],
]


@pytest.mark.parametrize("given", TAKEN, ids=range(len(TAKEN)))
def test_pictures_of_other_kinds_are_converted(pipe, given):
    wanted = pipe.image_to_image("a dog", to_float(PICTURE), 0.0, num_inference_steps=2)
    assert torch.equal(pipe.image_to_image("a dog", given, 0.0, num_inference_steps=2).latents, wanted.latents)


@pytest.mark.parametrize("given", MASKS, ids=range(len(MASKS)))
def test_masks_of_other_kinds_are_converted(pipe, given):
    drawn = pipe.image_to_image("a dog", PICTURE, 0.5, num_inference_steps=2, mask=given, generator=generator())
    assert torch.equal(drawn.pictures[..., :16], to_float(PICTURE)[..., :16])
    assert (drawn.pictures - to_float(PICTURE))[..., 16:].abs().mean() > 0.01


def test_what_is_transparent_is_white(pipe):
    clear = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    drawn = pipe.image_to_image("a dog", clear, 0.5, num_inference_steps=2, mask=np.zeros((32, 32)))
    assert (drawn.pictures == 1).all()


@pytest.mark.parametrize(
    ("pictures", "error", "message"),
    [
        (PICTURE.float(), ValueError, r"lie in \[-1, 1\], these run from \d+ to 255: .*make x / 127.5 - 1"),
        (to_float(PICTURE) * NAN, ValueError, "run from nan to nan"),
        (numbers() / 255, TypeError, r"a numpy picture must be uint8 \[H, W, 3\] in 0 … 255, got float64"),
        (numbers(mode="L"), TypeError, r"uint8 \[H, W, 3\]|is a tensor, a PIL picture"),
        (Image.fromarray(numbers(mode="L").astype(np.uint16)), ValueError, "more than 8 bits a channel"),
        ([Image.new("RGB", (32, 32)), Image.new("RGB", (64, 64))], ValueError, "must be of one size"),
        ([], ValueError, "there is no picture in the list"),
        ("a.png", TypeError, "PIL pictures or numpy arrays are wanted, got str"),
        (["a.png"], TypeError, "a picture is a tensor, a PIL picture or a numpy array, got str"),
        (PICTURE.long(), TypeError, "floating point .*got torch.int64"),
        (to_float(PICTURE)[0], ValueError, r"\[B, 3, H, W\], sides multiples of 8, got \[3, 32, 32\]"),
        (Image.new("RGB", (30, 32)), ValueError, r"sides multiples of 8, got \[1, 3, 32, 30\]"),
        (torch.zeros(0, 3, 32, 32), ValueError, r"got \[0, 3, 32, 32\]"),
    ],
)
def test_pictures_of_another_scale_or_kind_are_refused(pipe, monkeypatch, pictures, error, message):
    monkeypatch.setattr(VAE, "encode", None)
    with pytest.raises(error, match=message):
        pipe.image_to_image("a dog", pictures, 0.5, num_inference_steps=2)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mask": Image.fromarray(numbers(mode="L"))}, ValueError, "hold 0 .keep. and 1"),
        ({"mask": Image.new("L", (64, 64))}, ValueError, r"mask must be \[1 or 1, 1, 32, 32\].*got \[1, 1, 64, 64\]"),
        ({"mask": np.array([["a"]])}, TypeError, "a numpy mask must hold numbers"),
        ({"mask": 1}, TypeError, "are wanted, got int"),
        ({"mask": torch.full((1, 1, 32, 32), NAN)}, ValueError, "hold 0 .keep. and 1"),
        ({"strength": NAN}, ValueError, "strength must lie in 0 … 1"),
        ({"strength": torch.ones(2)}, TypeError, "strength must be one number"),
        ({"strength": [0.5]}, TypeError, "strength must be one number"),
        ({"generator": 0}, TypeError, "generator must be a torch.Generator, got 0"),
        ({"negative_prompt": 0}, TypeError, "a prompt is a string"),
    ],
)
def test_image_to_image_refuses_the_rest(pipe, change, error, message):
    with pytest.raises(error, match=message):
        pipe.image_to_image("a dog", PICTURE, **{"num_inference_steps": 2, **change})


# --- a folder of one's own pictures -----------------------------------------------------------------------------------

GOOD = json.dumps({"file_name": "ok.png", "text": "a cat"})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (r'{"file_name": "a\u0000.png", "text": "a cat"}', 'line 2: "file_name" holds a character that is no text'),
        (r'{"file_name": "\ud800.png", "text": "a cat"}', 'line 2: "file_name" holds a character that is no text'),
        (r'{"file_name": "ok.png", "text": "a \ud83d cat"}', 'line 2: "text" holds a character that is no text'),
        (json.dumps({"file_name": "a" * 5000 + ".png", "text": "a cat"}), "line 2 names 'aaa.*cannot be a file here"),
        ('{"file_name": "ok.png", "text": "a cat", "n": ' + "9" * 5000 + "}", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        (json.dumps({"file_name": "page.png", "text": "a cat"}), "line 2: .*page.png cannot be read as a picture"),
        (json.dumps({"file_name": "huge.png", "text": "a cat"}), "line 2: .*9000 × 9000 pixels are too many"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_row_that_cannot_be_used_is_named_by_its_number(tmp_path, row, message):
    Image.new("RGB", (8, 8)).save(tmp_path / "ok.png")
    (tmp_path / "page.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    if "huge" in row:
        Image.new("1", (9000, 9000)).save(tmp_path / "huge.png")
    (tmp_path / "metadata.jsonl").write_text(f"{GOOD}\n{row}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        CaptionedImages.from_folder(tmp_path)


@pytest.mark.parametrize("size", [0, -8, 2.5, 10**9, True])
def test_a_side_that_no_picture_can_have_is_refused(tmp_path, size):
    for make in (CaptionedImages.from_folder, CaptionedImages.fashion_mnist):
        with pytest.raises(ValueError, match="size is the side of a picture in pixels"):
            make(tmp_path, size=size)
    with pytest.raises(ValueError, match="size is the side of a picture in pixels"):
        CaptionedImages.scenes(1, size=size)


# --- a tokenizer's files ----------------------------------------------------------------------------------------------


def vocabulary(**changes: object) -> str:
    return json.dumps({**TOKENIZER.vocabulary, **changes})


TOKENIZER_FILES = [  # (file, content, what is said)
    ("vocab.json", b"\xff", "tokenizer/vocab.json is not JSON .*: restore"),
    ("vocab.json", b'{"a": 1', "tokenizer/vocab.json is not JSON .*: restore"),
    ("vocab.json", b"[" * 100_000, "tokenizer/vocab.json is nested too deeply: restore"),
    ("vocab.json", b"[1]", "tokenizer/vocab.json holds a list, not an object: restore"),
    ("vocab.json", vocabulary(dog="x").encode(), "the id of 'dog' must be a whole number, got 'x': restore"),
    ("vocab.json", vocabulary(dog=None).encode(), "the id of 'dog' must be a whole number, got None: restore"),
    ("vocab.json", vocabulary(**{"!": 1}).encode(), "the ids of .* but none has 0: restore"),
    ("vocab.json", vocabulary(**{"!": -1}).encode(), "the ids of .* but none has 0: restore"),
    ("vocab.json", vocabulary(**{"日": len(TOKENIZER)}).encode(), "'日' has letters that stand for no byte: restore"),
    ("merges.txt", b"\xff", "tokenizer/merges.txt is not UTF-8 .*: restore"),
    ("merges.txt", b"a b c", "tokenizer/merges.txt: a merge is two pieces and a space, got 'a b c': restore"),
    ("merges.txt", "日 日".encode(), "lacks 1 of the pieces, first '日日': restore"),
    ("tokenizer_config.json", b"{", "tokenizer/tokenizer_config.json is not JSON .*: restore"),
    ("tokenizer_config.json", b'{"model_max_length": null}', "model_max_length must be an int, got NoneType: restore"),
    ("tokenizer_config.json", b'{"model_max_length": "16"}', "model_max_length must be an int, got str: restore"),
    ("tokenizer_config.json", b'{"model_max_length": 0}', "model_max_length must be at least 2 .*: restore"),
]


@pytest.mark.parametrize(("name", "content", "message"), TOKENIZER_FILES)
def test_damaged_tokenizer_files_are_named(tmp_path, name, content, message):
    TOKENIZER.save(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / name).write_bytes(content)
    for load in (Tokenizer.load, load_tokenizer):
        with pytest.raises(ValueError, match=message if load is Tokenizer.load else None):
            load(tmp_path / "tokenizer")


def test_tokenizer_files_may_begin_with_a_mark(tmp_path):
    TOKENIZER.save(tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert Tokenizer.load(tmp_path).sha256 == TOKENIZER.sha256


def test_the_checksum_of_a_tokenizer_covers_all_that_encoding_depends_on():
    same = Tokenizer(TOKENIZER.merges, dict(reversed(TOKENIZER.vocabulary.items())), TOKENIZER.max_length)
    assert same.sha256 == TOKENIZER.sha256
    swapped = {**TOKENIZER.vocabulary, "!": TOKENIZER.vocabulary['"'], '"': TOKENIZER.vocabulary["!"]}
    others = [
        Tokenizer(TOKENIZER.merges, swapped, 12),
        Tokenizer(TOKENIZER.merges, max_length=13),
        Tokenizer(TOKENIZER.merges[::-1], TOKENIZER.vocabulary, 12),
    ]
    assert len({TOKENIZER.sha256, *(other.sha256 for other in others)}) == 4


# --- cards and weights ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    TOKENIZER.save(folder / "tokenizer")
    store(folder)
    return folder


@pytest.fixture
def stored(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "weights")


def changed(folder, name: str, *, sealed: bool, **values: object) -> None:
    """A card with other values; unsealed as cards were once, or sealed by whoever changed it."""
    path = folder / f"{name}.json"
    card = {**json.loads(path.read_text(encoding="utf-8")), **values}
    if not sealed:
        del card["seal"]
        path.write_text(json.dumps(card), encoding="utf-8")
    else:
        write_card(path, card)


def config(folder, name: str, **values: object) -> dict:
    return {**json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["config"], **values}


CARDS = [  # (part, field, value, what is said)
    ("unet", "betas", ["x"], "unet.json is damaged"),
    ("unet", "betas", {"a": 1}, "unet.json is damaged, its betas is .*, not a list"),
    ("unet", "betas", [[0.1], [0.2]], "unet.json is damaged, betas must be 1-D"),
    ("unet", "betas", [0.1, 2.0], r"unet.json is damaged, betas must lie in \(0, 1\]"),
    ("unet", "prediction_type", 3, "unet.json is damaged, its prediction_type is 3, not a str"),
    ("unet", "prediction_type", "flow", "prediction_type must be one of"),
    ("unet", "size", "64", "unet.json is damaged, its size is '64', not a int"),
    ("unet", "size", 10**9, "size must be a multiple of 8 pixels"),
    ("unet", "trained_with", ["vae"], "unet.json is damaged, its trained_with"),
    ("vae", "config", [1], "vae.json is damaged, its config"),
    ("vae", "metrics", [1], "vae.json is damaged, its metrics"),
    ("vae", "steps", "many", "vae.json is damaged, its steps"),
    ("vae", "sha256", None, "vae.json is damaged, its sha256"),
]
CONFIGS = [
    ("unet", "layers_per_block", 10**7, "UNetConfig.layers_per_block must be 1 or more, whole and at most 1,000"),
    ("unet", "layers_per_block", 2, "do not describe a UNet .*missing"),
    ("unet", "channels", 8, "channels must have one entry a level"),
    ("unet", "channels", [8] * 10_000, "channels must have one entry a level"),
    ("unet", "attention", [0, 1], "attention must have one entry a level"),
    ("unet", "heads", "2", "UNetConfig.heads must be 1 or more, whole"),
    ("unet", "context_width", 10**6, "do not describe a UNet"),
    ("unet", "norm_groups", 0, "UNetConfig.norm_groups must be 1 or more"),
    ("vae", "layers_per_block", True, "VAEConfig.layers_per_block must be 1 or more, whole"),
    ("vae", "channels", None, "channels must have one entry a level"),
    ("vae", "latent_channels", 10**6, "do not describe a VAE"),
    ("clip", "text", None, "clip.safetensors and its card do not describe a CLIP"),
    ("clip", "embed_dim", -1, "embed_dim must be 1 or more"),
    ("clip", "logit_scale_init", "x", "do not describe a CLIP"),
]


@pytest.mark.parametrize(("part", "field", "value", "message"), CARDS)
def test_damaged_cards_are_named(stored, part, field, value, message):
    changed(stored, part, sealed=field != "sha256", **{field: value})
    with pytest.raises(ValueError, match=message):
        TextToImage.from_pretrained(stored)


@pytest.mark.parametrize(("part", "field", "value", "message"), CONFIGS)
def test_sizes_that_cannot_be_are_refused_before_anything_is_built(stored, part, field, value, message):
    changed(stored, part, sealed=False, config=config(stored, part, **{field: value}))
    kinds = {"vae": (VAE, VAEConfig), "clip": (CLIP, CLIPConfig), "unet": (UNet, UNetConfig)}
    with pytest.raises(ValueError, match=message):
        artifacts.load_model(*kinds[part], part, stored)


@pytest.mark.parametrize("part", ["vae", "clip", "unet"])
def test_a_card_nested_too_deeply_is_refused(stored, part):
    (stored / f"{part}.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=f"the card {part}.json is nested too deeply: train the part again or restore"):
        TextToImage.from_pretrained(stored)


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("unet", "betas", [0.02] * 50),
        ("unet", "prediction_type", "epsilon"),
        ("unet", "size", 32),
        ("unet", "trained_with", {}),
        ("vae", "config", {"channels": [8, 8, 8], "norm_groups": 2}),
        ("clip", "tokenizer", "0" * 64),
        ("vae", "sha256", "0" * 64),
    ],
)
def test_no_fact_that_a_picture_depends_on_can_change_without_a_word(stored, part, field, value):
    path = stored / f"{part}.json"
    card = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**card, field: value}), encoding="utf-8")
    with pytest.raises(ValueError, match=f"the card {part}.json was altered since it was written: train "):
        TextToImage.from_pretrained(stored)


def test_a_byte_of_a_beta_does_not_change_without_a_word(stored):
    path = stored / "unet.json"
    text = path.read_text(encoding="utf-8")
    at = text.index("betas") + 40
    digit = next(i for i in range(at, len(text)) if text[i].isdigit())
    path.write_text(text[:digit] + str((int(text[digit]) + 1) % 10) + text[digit + 1 :], encoding="utf-8")
    with pytest.raises(ValueError, match="unet.json was altered"):
        TextToImage.from_pretrained(stored)


def test_what_no_picture_depends_on_may_be_changed_by_hand(stored):
    path = stored / "unet.json"
    card = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**card, "license": "mine", "metrics": {"loss": 1, "kind": "good"}, "note": "hm"}))
    TextToImage.from_pretrained(stored)


def test_cards_from_before_there_were_seals_are_taken(stored, pipe):
    for part in ("vae", "clip", "unet"):
        changed(stored, part, sealed=False)
    assert torch.equal(call(TextToImage.from_pretrained(stored)).latents, call(pipe).latents)


@pytest.mark.parametrize("damage", ["other", "missing", "longer"])
def test_clip_is_not_used_with_another_tokenizer(stored, damage):
    folder = stored / "tokenizer"
    if damage == "missing":
        (folder / "vocab.json").unlink()
    else:
        swapped = {**TOKENIZER.vocabulary, "!": TOKENIZER.vocabulary['"'], '"': TOKENIZER.vocabulary["!"]}
        longer = 11 if damage == "longer" else 12
        Tokenizer(TOKENIZER.merges, swapped if damage == "other" else None, longer).save(folder)
    error, message = (ValueError, "is not the one that clip.safetensors was trained with: restore the two")
    if damage == "missing":
        error, message = (FileNotFoundError, "has no vocab.json")
    with pytest.raises(error, match=message):
        artifacts.load_model(CLIP, CLIPConfig, "clip", stored)


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("unet", "conv_in.weight", NAN, "conv_in.weight holds NaN"),
        ("clip", "logit_scale", INF, "logit_scale holds NaN or infinite"),
        ("vae", "latent_scale", 0.0, "latent_scale is 0"),
        ("vae", "latent_scale", -1.0, "latent_scale is -1"),
    ],
)
def test_weights_that_are_no_numbers_are_neither_saved_nor_used(tmp_path, stored, part, name, value, message):
    network = {"vae": small_vae, "clip": small_clip, "unet": small_unet}[part]()
    network.state_dict()[name].flatten()[0:1].fill_(value)
    with pytest.raises(ValueError, match=f"the {part} is not saved, .*{message}"):
        artifacts.save_artifact(part, network, folder=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    path = stored / f"{part}.safetensors"
    artifacts.write_safely(path, network.state_dict(), {})
    changed(stored, part, sealed=True, sha256=artifacts.sha256(path))
    with pytest.raises(ValueError, match=f"{part}.safetensors cannot be used, .*{message}"):
        artifacts.load_artifact(part, stored)


def test_the_courses_own_cards_are_sealed():
    folder = artifacts.checkpoints_folder()
    for name in ("vae", "noise_reader", "unconditional", "clip", "unet", "judge"):
        card = artifacts.read_card(name, folder)
        assert "seal" in card, f"write checkpoints/{name}.json anew with weights.cards.write_card"
    assert artifacts.read_card("clip", folder)["tokenizer"] == Tokenizer.load(folder / "tokenizer").sha256


# --- schedulers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_exported_configs_say_what_other_schedulers_ask(pipe, tmp_path, sampler):
    """Defaults differ from class to class: one that clips latents, or ends elsewhere, draws another picture."""
    scheduler_to_diffusers(pipe, sampler).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "scheduler_config.json").read_text())
    wanted = {"clip_sample": False, "thresholding": False, "rescale_betas_zero_snr": False, "set_alpha_to_one": True,
              "skip_prk_steps": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}  # fmt: skip
    assert {name: config.get(name) for name in wanted} == wanted
    for name in ("DDIM", "DDPM", "PNDM", "DPMSolverMultistep", "DDIMParallel"):
        kind = getattr(diffusers, f"{name}Scheduler")
        swapped = kind.from_config(kind.from_pretrained(tmp_path).config)
        assert {key: swapped.config.get(key) for key in wanted} == wanted
        assert torch.equal(swapped.betas, pipe.schedule.betas)


def test_a_scheduler_config_may_begin_with_a_mark(tmp_path):
    from course_utils.weights.hub import read_json

    path = tmp_path / "scheduler_config.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"_class_name": "DDIMScheduler", "clip_sample": False}).encode())
    assert schedule_from_diffusers(read_json(path))[0].num_train_timesteps == 1000


# --- the command line and the environment -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "a dog", "--seed", "9" * 20], "--seed is 99999999999999999999; it should be"),
        (["train", "--seed", "-" + "9" * 20], "--seed is -99999999999999999999; it should be"),
        (["sample", "a dog", "--scale", "100000"], "--scale is 100000; it should be 1 … 64"),
        (["sample", "a dog", "--count", "1000000"], "--count is 1000000; it should be 1 … 1024"),
        (["sample", "a dog", "--count", "1000", "--scale", "64"], "makes too large a picture"),
        (["sample", "a dog", "--guidance-scale", "inf"], "--guidance-scale is inf; it should be 0 … 1000"),
        (["sample", "a dog", "--guidance-scale", "nan"], "--guidance-scale is nan"),
    ],
)
def test_the_command_line_refuses_in_one_line(capsys, arguments, message):
    assert command.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("course_utils: ") and message in error


@pytest.mark.parametrize("device", ["cuda:99", "meta", "mps:7", "tpu", "cpu:x"])
def test_a_device_that_is_not_there_is_named(monkeypatch, capsys, device):
    monkeypatch.setenv("COURSE_DEVICE", device)
    with pytest.raises(ValueError, match=f"COURSE_DEVICE is '{device}', and torch cannot compute there; give cpu"):
        choose_device()
    assert command.main(["info"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
