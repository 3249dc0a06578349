"""The common start of the six notebooks: profile, device, seed and figure sizes."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from course_utils.profiles import Profile, get_profile
from course_utils.training.loop import best_precision

WITHOUT_BF16 = 2.6  # times as long without instructions for bfloat16, at most (2.1 to 2.6); docs/performance.md


def choose_device() -> torch.device:
    """CUDA, else Apple's MPS, else the CPU. COURSE_DEVICE ("cpu", "cuda:1", …) overrides the choice."""
    wanted = os.environ.get("COURSE_DEVICE", "")
    if wanted:
        try:
            device = torch.device(wanted)
            torch.zeros(1, device=device).item()
        except (RuntimeError, AssertionError, NotImplementedError) as error:  # each backend has its own
            raise ValueError(
                f"COURSE_DEVICE is {wanted!r}, and torch cannot compute there; give cpu, cuda, cuda:1 or mps, one that "
                "this machine has, or leave it out"
            ) from error
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


@dataclass(frozen=True)
class Course:
    """What a notebook runs with."""

    notebook: str
    profile: Profile
    device: torch.device
    seed: int

    def generator(self, offset: int = 0) -> torch.Generator:
        """A fresh generator, seeded with seed + offset, on the CPU: the same numbers on every device."""
        return torch.Generator().manual_seed(self.seed + offset)


def expected_time(profile: Profile, notebook: str, device: torch.device) -> str:
    """How long the notebook takes, as the end of a line; longer on a processor that must do all in float32."""
    minutes, slower = profile.minutes.get(notebook.split("_")[0]), ""
    if minutes is None:
        return ""
    if minutes < 1:
        return f" · this notebook takes about {minutes * 60:.0f} seconds"
    if device.type == "cpu" and best_precision("cpu") == "float32":
        minutes, slower = WITHOUT_BF16 * minutes, " (a processor without bfloat16)"
    return f" · this notebook takes about {minutes:.0f} minute{'s' if round(minutes) != 1 else ''}{slower}"


def start(notebook: str, seed: int = 0) -> Course:
    """Set a notebook up: choose profile and device, seed torch's global generator, set the figures' size.

    The profile is COURSE_PROFILE (smoke, cpu, long or gpu) if set, else what suits the machine. Prints two lines.

    Raises:
        ValueError: COURSE_PROFILE names no profile, or COURSE_DEVICE no device.
    """
    import matplotlib

    profile = get_profile()
    device = choose_device()
    torch.manual_seed(seed)  # weights are initialised from it; everything else takes course.generator()
    matplotlib.rcParams.update({"figure.dpi": 110, "savefig.dpi": 110, "figure.constrained_layout.use": True})
    print(f"profile {profile.name} on {_describe(device)}{expected_time(profile, notebook, device)}")
    version = torch.__version__.split("+")[0]
    print(f"seed {seed} · torch {version} · to change the profile, set COURSE_PROFILE to smoke, cpu, long or gpu")
    return Course(notebook, profile, device, seed)


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} (CUDA)"
    if device.type == "mps":
        return "an Apple GPU (MPS)"
    threads = torch.get_num_threads()
    return f"the CPU, {threads} thread{'s' if threads != 1 else ''}"
