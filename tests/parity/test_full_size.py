"""Stable Diffusion 1.5's U-Net at its full size, random weights, in both libraries. Slow: pytest -m slow"""

from __future__ import annotations

import time

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from course_utils.models.unet import UNet, UNetConfig
from course_utils.weights.compare import first_difference, relative_error
from course_utils.weights.diffusers import unet_config_to_diffusers, unet_key_to_diffusers, unet_to_diffusers
from tests.parity.same import WHOLE, randn, shuffle_weights


def empty(make) -> nn.Module:
    """A network with memory for its weights and nothing in it: no time is spent on a start that is thrown away."""
    with torch.device("meta"):
        network = make()
    return network.to_empty(device="cpu").eval()


@pytest.mark.slow
@torch.no_grad()
def test_the_full_size_unet_computes_what_diffusers_computes(capsys):
    begun = time.monotonic()
    ours = empty(lambda: UNet(UNetConfig.sd15()))
    shuffle_weights(ours, 0)
    theirs = empty(lambda: UNet2DConditionModel(**unet_config_to_diffusers(UNetConfig.sd15(), sample_size=64)))
    theirs.load_state_dict(unet_to_diffusers(ours.state_dict()), assign=True)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) == 859_520_964
    built = time.monotonic()
    x, t, context = randn(1, 4, 16, 16, seed=1), torch.tensor([801]), randn(1, 77, 768, seed=2)
    got = ours(x, t, context)
    passed = time.monotonic()
    wanted = theirs(x, t, context).sample
    error = relative_error(got, wanted)
    with capsys.disabled():
        print(f"\nfull-size U-Net: built in {built - begun:.0f} s, our pass {passed - built:.1f} s, "
              f"diffusers' {time.monotonic() - passed:.1f} s, relative error {error:.1e}")  # fmt: skip
    if error > WHOLE:
        raise AssertionError(first_difference(
            ours, theirs, lambda m: m(x, t, context), unet_key_to_diffusers, tolerance=WHOLE / 10
        ))  # fmt: skip
    assert wanted.isfinite().all() and wanted.std() > 0.1
