"""Which caption a denoiser prefers: a U-Net that reads perfectly, one that is deaf, and what is changed in captions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from course_utils.data.compositions import compositions
from course_utils.data.descriptions import TASKS, Description, in_words, parse_description
from course_utils.diffusion.schedule import NoiseSchedule
from course_utils.evaluation.listening import CHANGED, TIMESTEPS, altered, denoising_errors, hearing_table, hears

SCHEDULE = NoiseSchedule.cosine(1000)


class Listener:
    """Stands for a pipeline whose VAE shrinks pictures, and whose U-Net knows the picture of each caption.

    deaf: it takes every caption for the same. confused_by: a task whose wrong captions it takes for right.
    """

    def __init__(self, deaf: bool = False, confused_by: str = ""):
        self.deaf, self.confused_by, self.size = deaf, confused_by, 64
        self.device, self.schedule, self.prediction_type = torch.device("cpu"), SCHEDULE, "v_prediction"
        self.vae, self.known, self.calls = self, {}, []

    def to_latents(self, pictures):
        return nn.functional.avg_pool2d(pictures, 8)

    def encode_prompt(self, captions):
        return list(captions)

    def unet(self, x_t, t, captions):
        self.calls.append((int(t[0]), x_t))
        a = SCHEDULE.alphas_cumprod[t].reshape(-1, 1, 1, 1)
        x_0 = torch.stack([self.picture(c, x_t[0].shape) for c in captions])
        noise = (x_t - a.sqrt() * x_0) / (1 - a).sqrt()
        return a.sqrt() * noise - (1 - a).sqrt() * x_0

    def picture(self, caption, shape):
        if self.deaf:
            return torch.zeros(shape)
        asked = parse_description(caption)
        if self.confused_by and asked.task == self.confused_by:
            caption = " ".join(asked.objects)  # all but the objects goes unheard
        return self.known.get(caption, torch.zeros(shape))


def learn(pipe: Listener, task: str, n: int, seed: int) -> None:
    data, made = compositions(n, seed, "train", {task: 1})
    for latent, composition in zip(pipe.to_latents(data.batch(range(n))[0]), made, strict=True):
        pipe.known[in_words(composition.description())] = latent


def test_a_perfect_listener_is_right_and_a_deaf_one_guesses():
    perfect, deaf = Listener(), Listener(deaf=True)
    for task in TASKS:
        learn(perfect, task, 16, 3)
    found = hears(perfect, 16, 3)
    assert set(found) == set(CHANGED) == set(TASKS)
    assert min(found.values()) > 0.7  # below 1 only because two of the sixteen pictures may share a caption
    assert max(hears(deaf, 16, 3).values()) == 0, "where both captions give the same error, none is preferred"
    half = Listener(confused_by="position")
    half.known = perfect.known
    assert hears(half, 16, 3)["position"] == 0 and hears(half, 16, 3)["binding"] > 0.7


def test_both_captions_meet_the_same_noise_and_errors_are_exact():
    pipe = Listener()
    pictures = torch.randn(70, 3, 64, 64, generator=torch.Generator().manual_seed(1))  # more than one batch
    texts = ["a dog"] * 70
    first, second = denoising_errors(pipe, pictures, texts), denoising_errors(pipe, pictures, texts)
    assert first.shape == (70,) and torch.equal(first, second)
    half = len(pipe.calls) // 2
    assert [t for t, _ in pipe.calls[:half]] == [*TIMESTEPS, *TIMESTEPS]
    assert all(torch.equal(a[1], b[1]) for a, b in zip(pipe.calls[:half], pipe.calls[half:], strict=True))
    # A U-Net that believes in an empty picture is wrong by z · (√ᾱ · √ᾱ / √(1 − ᾱ) + √(1 − ᾱ)) = z / √(1 − ᾱ) in v.
    power = (pipe.to_latents(pictures) ** 2).flatten(1).mean(dim=1)
    expected = power * sum(1 / (1 - SCHEDULE.alphas_cumprod[t].item()) for t in TIMESTEPS)
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="70 pictures and 1 captions"):
        denoising_errors(pipe, pictures, ["a dog"])


@pytest.mark.parametrize(
    ("asked", "wrong"),
    [
        ("a cat left of a tree", {"a cat right of a tree"}),
        ("a cat above a tree on a red background", {"a cat below a tree on a red background"}),
        ("a small cat and a large tree", {"a large cat and a small tree"}),
        ("one cat", {"two cats"}),
        ("three cats", {"two cats", "four cats"}),
        ("four cats", {"three cats"}),
    ],
)
def test_one_thing_is_changed(asked, wrong):
    generator = torch.Generator().manual_seed(0)
    assert {in_words(altered(parse_description(asked), generator)) for _ in range(20)} == wrong


def test_objects_and_backgrounds_are_changed_to_others():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        two = altered(Description(("cat", "tree")), generator)
        assert two.objects[0] not in ("cat", "tree") and two.objects[1] == "tree"
        coloured = altered(Description(("cat",), "red"), generator)
        assert coloured.objects == ("cat",) and coloured.color not in ("red", None)
        assert altered(Description(("cat",)), generator).objects != ("cat",)


def test_table():
    lines = hearing_table({"seen": dict.fromkeys(TASKS, 0.5), "held out": dict.fromkeys(TASKS, 1.0)}, 256).splitlines()
    assert lines[0] == "| what is wrong in the other caption | seen | held out |"
    assert "| the relation, turned round | 50 % | 100 % |" in lines and lines[-1].endswith("guessing is 50 ± 3 %.")
