"""What more objects and more pixels cost, and what comes of the same budget: a table and a plot from real runs.

    python experiments/scaling.py    64, 200 and 1,000 objects; 96 and 128 pixels (hours on two cores)
    python experiments/scaling.py --only 200-objects   one setting; --help names them
    python experiments/scaling.py --time-steps   some minutes: a few steps of each network at 64, 96 and 128 pixels
    python experiments/scaling.py --publish   no training: tables and plot of what is there into docs/

Each setting runs in a process of its own, so that its peak memory is its own, and writes down each stage as it ends:
the same command goes on where a killed one stopped. Results go to artifacts/<profile>/scaling/. Those of the published
tables are kept in docs/scaling.json; publishing replaces in it what has been measured anew.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from machine import peak_memory, processor  # noqa: E402

from course_utils.data.batches import CaptionedImages, to_float  # noqa: E402
from course_utils.data.captions import prompt_for  # noqa: E402
from course_utils.data.vocabulary import COLORS, first_objects  # noqa: E402
from course_utils.evaluation.judge import Judge, JudgeConfig, judge_loss  # noqa: E402
from course_utils.evaluation.reconstruction import reconstruct, reconstruction_psnr  # noqa: E402
from course_utils.evaluation.scores import draw_for_prompts, make_prompts, prompts_of, score_pictures  # noqa: E402
from course_utils.lessons.setup import choose_device  # noqa: E402
from course_utils.models.vae import VAE, VAEConfig  # noqa: E402
from course_utils.pipeline import TextToImage  # noqa: E402
from course_utils.profiles import PROFILES, Profile, get_profile  # noqa: E402
from course_utils.training.finetuning import finetune_parts  # noqa: E402
from course_utils.training.loop import best_precision, train  # noqa: E402
from course_utils.training.parts import Parts, load_parts, train_parts  # noqa: E402
from course_utils.training.recipes import (  # noqa: E402
    Recipe,
    clip_recipe,
    resized,
    train_recipe,
    train_tokenizer,
    unet_recipe,
    vae_recipe,
)
from course_utils.weights.artifacts import artifacts_folder, load_model, save_artifact, write_card  # noqa: E402

SAMPLER, STEPS, GUIDANCE = "ddpm", 10, 3.0  # docs/lab_book.md: fresh noise repairs, more steps are not more right


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    vocab_size: of the tokenizer, so that each word of the objects' names is one token and a caption has 16 at most.
    judge_times: the judge is the ruler, no part of what is compared: it is trained this many times as long.
    vae_of: the setting whose VAE is taken, for one of 1,000 objects serves fewer of the same size; "" trains its own.
    trained_on: more than 0: begins with the course's parts (yours, else those of checkpoints/), not with untrained
        networks, and trains for this part of the U-Net's steps.
    """

    name: str
    objects: int = 64
    size: int = 64
    vocab_size: int = 1024
    judge_times: int = 1
    vae_of: str = ""
    trained_on: float = 0.0


OWNER, LARGER = "1000-objects", "96-pixels-trained-on"
SETTINGS: dict[str, Setting] = {
    s.name: s
    for s in (
        Setting("64-objects", vae_of=OWNER),
        Setting("200-objects", objects=200, vocab_size=2048, judge_times=2, vae_of=OWNER),
        Setting(OWNER, objects=1000, vocab_size=4096, judge_times=4),
        Setting("96-pixels", size=96),
        Setting("128-pixels", size=128),
        Setting("200-objects-trained-on", objects=200, vocab_size=2048, judge_times=2, trained_on=1.0),
        Setting(LARGER, size=96, trained_on=0.35),
    )
}
SIDES = (64, 96, 128)
TIMES = "step_times_{}.json"


def peak_gb() -> float | None:
    """The most memory this process has held so far; None where the system does not say (Windows)."""
    try:
        return peak_memory() / 1e9
    except ImportError:
        return None


def processor_line(device: str) -> str:
    return f"{processor()}, {torch.backends.cpu.get_cpu_capability()}, {best_precision(torch.device(device).type)}"


class Run:
    """One setting: its profile, its folder, its scenes, and what has been written down of it."""

    def __init__(self, setting: Setting, profile: Profile, root: Path, device: str, options: dict[str, Any]) -> None:
        self.setting, self.root, self.device = setting, root, device
        self.folder, self.path = root / setting.name, root / f"{setting.name}.json"
        profile = replace(profile, vocab_size=setting.vocab_size)  # the text encoder's follows from the tokenizer
        self.profile = for_training_on(profile, setting) if setting.trained_on else resized(profile, setting.size)
        self.results: dict[str, Any] = {
            "setting": dataclasses.asdict(setting),
            "options": options,
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
            "processor": processor_line(device),
            "stages": {},
        }
        if self.path.exists():
            stored = json.loads(self.path.read_text(encoding="utf-8"))
            for key in ("setting", "options"):
                if stored[key] != self.results[key]:
                    sys.exit(
                        f"{self.path} was made with {key} {stored[key]}, not {self.results[key]}: "
                        "ask for the same, or remove the folder that it lies in"
                    )
            self.results = stored

    @cached_property
    def data(self) -> CaptionedImages:
        print(f"{self.setting.name}: drawing {self.profile.scenes:,} scenes", flush=True)
        return self.scenes(self.profile.scenes, seed=0)

    def scenes(self, n: int, seed: int, split: str = "train") -> CaptionedImages:
        return CaptionedImages.scenes(n, seed, split, self.setting.size, self.setting.objects)

    def stage(self, name: str, work: Callable[[Run], dict[str, Any]]) -> None:
        """Do a stage unless it is done, and write down what it says, the seconds it took and the peak memory so far."""
        stages = self.results["stages"]
        if name in stages:
            return
        begun = time.perf_counter()
        stages[name] = {**work(self), "stage_seconds": round(time.perf_counter() - begun, 1)}
        self.results["peak_gb"] = max(self.results.get("peak_gb") or 0, peak_gb() or 0) or None
        if self.device.startswith("cuda"):
            gpu = torch.cuda.max_memory_allocated(self.device) / 1e9
            self.results["peak_gpu_gb"] = max(self.results.get("peak_gpu_gb", 0), gpu)
        write_card(self.path, self.results)

    def with_unet_steps(self, steps: int) -> None:
        self.profile = replace(self.profile, unet_budget=replace(self.profile.unet_budget, steps=steps))


def for_training_on(profile: Profile, setting: Setting) -> Profile:
    """The profile for going on with other pictures: shorter, gentler, and noisier by as much as they are larger.

    In a larger picture the same noise hides less. The shift by the ratio of the sides is that of Esser et al. 2024
    (arXiv 2403.03206), equation 23 (see `shift_timesteps`). CLIP's picture encoder is not used.
    """
    return profile.going_on(vae=1 / 6, unet=setting.trained_on, timestep_shift=setting.size / SIDES[0])


# --- the stages, in order -----------------------------------------------------------------------------------


def plan(run: Run) -> dict[str, Any]:
    """How many steps the U-Net gets: the profile's, or as many as fit into the minutes asked for."""
    budget, minutes = run.profile.unet_budget, run.results["options"]["unet_minutes"]
    if minutes is None:
        return {"unet_steps": budget.steps}
    config, side = run.profile.unet, run.setting.size // run.profile.vae.factor
    latents = torch.zeros(256, config.latent_channels, side, side)
    states = torch.zeros(1, run.profile.clip.text.max_length, config.context_width)
    trial = replace(run.profile, unet_budget=replace(budget, steps=8))
    recipe = unet_recipe(trial, latents, states, torch.zeros(256, dtype=torch.int64), states, device=run.device)
    return {"unet_steps": max(1, round(60 * minutes * train_recipe(recipe).steps_per_second))}


def judge(run: Run) -> dict[str, Any]:
    """Train the judge of this setting, and ask it about real pictures that it has not seen."""
    budget = run.profile.judge_budget
    torch.manual_seed(0)
    network = Judge(JudgeConfig.for_objects(run.setting.objects, image_size=run.setting.size)).to(run.device)

    def loss(generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(run.data), (budget.batch_size,), generator=generator)
        pictures, _, attributes = run.data.batch(chosen)
        return judge_loss(network, pictures.to(run.device), attributes.to(run.device), generator)

    history = train(
        network, loss, steps=budget.steps * run.setting.judge_times, lr=budget.lr, muon_lr=budget.muon_lr,
        name="judge", folder=run.folder / "training",
    )  # fmt: skip
    facts: dict[str, Any] = {"steps": len(history.losses), "seconds": round(history.seconds, 1)}
    for name, (split, seed) in REAL.items():
        real = run.scenes(run.profile.evaluation_pictures, seed, split)
        right = score_pictures(network, to_float(real.images), prompts_of(real.attributes))
        facts |= {f"{key}_{name}": right[key] for key in ("object_and_color", "all_named")}
    save_artifact("judge", network, folder=run.folder, **facts)
    return facts


def part(name: str) -> Callable[[Run], dict[str, Any]]:
    """The stage that trains the VAE, CLIP or the U-Net."""

    def work(run: Run) -> dict[str, Any]:
        if name == "vae" and run.setting.vae_of:
            steps = json.loads((run.root / f"{run.setting.vae_of}.json").read_text(encoding="utf-8"))["stages"]["vae"]
            return {**steps, "psnr": vae_psnr(run, shared_vae(run)), "taken_from": run.setting.vae_of}
        given = Parts(vae=shared_vae(run)) if name == "unet" and run.setting.vae_of else None
        parts = train_parts(run.profile, run.data, folder=run.folder, which=(name,), given=given, device=run.device)
        return facts_of(name, run, parts)

    return work


def further(name: str) -> Callable[[Run], dict[str, Any]]:
    """The stage that trains the VAE or the U-Net on: the first asked for trains both, the second finds it done."""

    def work(run: Run) -> dict[str, Any]:
        start = load_parts(None, run.device)
        parts = finetune_parts(run.profile, run.data, start, run.folder, device=run.device)
        return facts_of(name, run, parts)

    return work


def facts_of(name: str, run: Run, parts: Parts) -> dict[str, Any]:
    steps = getattr(run.profile, f"{name}_budget").steps
    facts = {"steps": steps, "seconds": parts.seconds[name], "loss": parts.metrics[name]["loss"]}
    return {**facts, "psnr": vae_psnr(run, parts.vae)} if name == "vae" else facts


def shared_vae(run: Run) -> VAE:
    return load_model(VAE, VAEConfig, "vae", run.root / run.setting.vae_of).to(run.device)


def vae_psnr(run: Run, vae: VAE) -> float:
    """Mean PSNR in dB of copies of scenes that nobody has trained on."""
    return reconstruction_psnr(vae, to_float(run.scenes(run.profile.test_scenes, 1, "held_out").images))


REAL = {"seen": ("train", 11), "held_out": ("held_out", 13)}  # (split, seed) of real pictures, and of their prompts


def drawn_right(run: Run, parts: Parts) -> dict[str, Any]:
    """Draw for prompts that name object and colour, and for prompts that name all four; let the judge look."""
    pipe = parts.pipeline(run.setting.size)
    network = load_model(Judge, JudgeConfig, "judge", run.folder).to(run.device)
    n, facts = run.profile.evaluation_pictures, {}
    with tqdm(total=4 * n, desc=f"{run.setting.name}: drawing for prompts", file=sys.stdout, unit="picture") as bar:

        def paint(prompts: list[str], generator: torch.Generator) -> Tensor:
            bar.update(len(prompts))
            return pipe(prompts, None, STEPS, GUIDANCE, generator, sampler=SAMPLER).pictures

        for i, (name, (split, seed)) in enumerate(REAL.items()):
            pairs = make_prompts(n, torch.Generator().manual_seed(100 + i), name, objects=run.setting.objects)
            whole = prompts_of(run.scenes(n, seed, split).attributes)
            for key, prompts in (("object_and_color", pairs), ("all_named", whole)):
                pictures = draw_for_prompts(paint, prompts, torch.Generator().manual_seed(200 + i))
                facts[f"{key}_{name}"] = score_pictures(network, pictures, prompts)[key]
    return {**facts, "prompts": n, "sampler": SAMPLER}


@torch.no_grad()
def told(run: Run) -> dict[str, Any]:
    """How often the object of a real picture with a held-out pair can still be told, 0 ... 1.

    vae: the judge names it off the VAE's copy. clip: of the captions "a ... on a <the picture's> background", one for
    each object, the nearest is its own.
    """
    parts = load_parts(run.folder, run.device)
    network = load_model(Judge, JudgeConfig, "judge", run.folder).to(run.device)
    split, seed = REAL["held_out"]
    real = run.scenes(run.profile.evaluation_pictures, seed, split)
    pictures, (objects, colors) = to_float(real.images), real.attributes[:, :2].T
    copies = score_pictures(network, reconstruct(parts.vae, pictures), prompts_of(real.attributes))
    nearest = torch.empty_like(objects)
    for i, color in enumerate(COLORS):
        ids = parts.tokenizer.encode([prompt_for(name, color) for name in first_objects(run.setting.objects)])
        texts = torch.cat([parts.clip.encode_text(chunk.to(run.device)) for chunk in ids.split(256)])  # [objects, E]
        images = parts.clip.encode_image(pictures[colors == i].to(run.device))  # [n, E]
        nearest[colors == i] = (images @ texts.T).argmax(dim=1).cpu()
    return {"vae": copies["object"], "clip": (nearest == objects).float().mean().item(), "pictures": len(real)}


def before(run: Run) -> dict[str, Any]:
    """What the parts to go on from make of this setting, untouched."""
    parts = load_parts(None, run.device)
    return {"psnr": vae_psnr(run, parts.vae), **drawn_right(run, parts)}


def scores(run: Run) -> dict[str, Any]:
    return drawn_right(run, load_parts(run.folder, run.device))


STAGES: dict[str, Callable[[Run], dict[str, Any]]] = {
    "vae": part("vae"),
    "judge": judge,
    "plan": plan,
    "clip": part("clip"),
    "unet": part("unet"),
    "told": told,
    "scores": scores,
}
GOING_ON: dict[str, Callable[[Run], dict[str, Any]]] = {
    "judge": judge,
    "before": before,
    "vae": further("vae"),
    "unet": further("unet"),
    "scores": scores,
}


def run_setting(run: Run, last_stage: str = "scores") -> dict[str, Any]:
    """All stages of a setting up to `last_stage`, but those done before; the results as they are in its JSON file."""
    warnings.filterwarnings("ignore", message="no whole word")  # short runs have not seen every word
    for name, work in (GOING_ON if run.setting.trained_on else STAGES).items():
        run.stage(name, work)
        if name == "plan":
            run.with_unet_steps(run.results["stages"]["plan"]["unet_steps"])
        if name == last_stage:
            break
    return run.results


def step_times(profile: Profile, size: int, device: str, steps: int = 6) -> dict[str, Any]:
    """Seconds a training step of each network with pictures of that side, after two steps to warm up; peak memory."""
    profile = resized(profile, size)
    data = CaptionedImages.scenes(512, size=size)
    tokenizer = train_tokenizer(profile, data)
    side, config = size // profile.vae.factor, profile.unet
    latents = torch.randn(512, config.latent_channels, side, side)
    caption_of, text = torch.zeros(512).long(), torch.zeros(1, profile.clip.text.max_length, config.context_width)
    made: dict[str, Callable[[], Recipe]] = {
        "vae": lambda: vae_recipe(profile, data, device=device),
        "clip": lambda: clip_recipe(profile, data, tokenizer, device=device),
        "unet": lambda: unet_recipe(profile, latents, text, caption_of, text, device=device),
    }
    facts: dict[str, Any] = {"latent": side}
    for name, make in made.items():
        recipe = make()
        for number in (2, steps):
            history = train_recipe(replace(recipe, budget=replace(recipe.budget, steps=number)))
        facts[name] = history.seconds / steps
    return {**facts, "peak_gb": peak_gb(), "processor": processor_line(device)}


def side_by_side(larger: Path, prompts: list[str]) -> dict[str, Tensor]:
    """The same prompts drawn by the parts that a setting went on from, and by what came of them: {"64 pixels": …}."""
    pipes = (TextToImage.from_pretrained(), TextToImage.from_pretrained(larger))
    return {
        f"{pipe.size} pixels": pipe(
            prompts, None, STEPS, GUIDANCE, torch.Generator().manual_seed(6), sampler=SAMPLER
        ).pictures
        for pipe in pipes
    }


# --- the command --------------------------------------------------------------------------------------------


def scaled(profile: Profile, fraction: float, scenes: int | None) -> Profile:
    """The profile with that fraction of every budget's steps, and another number of training scenes if one is given."""
    budgets = ("vae_budget", "clip_budget", "unet_budget", "judge_budget")
    return replace(
        profile, scenes=scenes or profile.scenes, **{name: getattr(profile, name).part(fraction) for name in budgets}
    )


def jobs(names: Sequence[str]) -> list[tuple[str, str]]:
    """(setting, last stage) in the order to run: a VAE that others take comes first."""
    owners = dict.fromkeys(SETTINGS[name].vae_of for name in names if SETTINGS[name].vae_of)
    return [(owner, "vae") for owner in owners] + [(name, "scores") for name in names]


def measured(root: Path) -> dict[str, Any]:
    """What lies in a folder: the results of each finished setting, and the times of a step for each side."""

    def read(name: str) -> dict[str, Any]:
        path = root / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    settings = {name: read(f"{name}.json") for name in SETTINGS}
    times = {str(size): read(TIMES.format(size)) for size in SIDES}
    return {
        "settings": {name: found for name, found in settings.items() if "scores" in found.get("stages", {})},
        "step_times": {size: found for size, found in times.items() if found},
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", choices=PROFILES, default=get_profile().name)
    parser.add_argument("--only", nargs="+", choices=SETTINGS, metavar="SETTING", help=", ".join(SETTINGS))
    parser.add_argument("--fraction", type=float, default=1.0, help="of the profile's steps, for every network")
    parser.add_argument(
        "--unet-minutes", type=float, help="give every untrained U-Net this long, instead of as many steps"
    )
    parser.add_argument("--scenes", type=int, help="training scenes, instead of the profile's")
    parser.add_argument("--device", default=str(choose_device()))
    parser.add_argument("--time-steps", action="store_true", help="only time some steps with pictures of each size")
    parser.add_argument("--publish", action="store_true", help="train nothing; write tables and plot into docs/")
    parser.add_argument("--worker", nargs=2, metavar=("SETTING", "STAGE"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    args = parse(arguments)
    os.environ["COURSE_PROFILE"] = args.profile  # whose parts are "your own", here and in the processes below
    root = artifacts_folder(args.profile) / "scaling"
    options = {"profile": args.profile, **{k: getattr(args, k) for k in ("fraction", "unet_minutes", "scenes")}}
    if args.worker:
        profile = scaled(PROFILES[args.profile], args.fraction, args.scenes)
        setting, stage = args.worker
        try:
            if stage == "times":
                write_card(root / TIMES.format(setting), step_times(profile, int(setting), args.device))
            else:
                run_setting(Run(SETTINGS[setting], profile, root, args.device, options), stage)
        except KeyboardInterrupt:  # what was trained so far is saved
            return 130
        return 0
    if not args.publish:
        timed = [(str(size), "times") for size in SIDES]
        for name, stage in timed if args.time_steps else jobs(args.only or list(SETTINGS)):
            command = [sys.executable, __file__, *arguments, "--worker", name, stage]
            process = subprocess.Popen(command)
            try:
                code = process.wait()
            except KeyboardInterrupt:  # the worker has got it too, and saves before it ends
                code = process.wait() or 130
            if code:
                print(f"{name}: stopped; what is done is kept, and the same command goes on from there")
                return code
    # Only now: matplotlib takes memory, which is measured while networks train.
    from scaling_report import publish_picture, write_report

    from course_utils.lessons.plots import show_rows

    if args.publish and (root / LARGER / "unet.json").exists():
        prompts = make_prompts(8, torch.Generator().manual_seed(5), "held_out")
        figure = show_rows(side_by_side(root / LARGER, prompts), titles=prompts, size=1.35)
        figure.savefig(root / "larger.png", dpi=130, bbox_inches="tight")
        publish_picture(root / "larger.png", ROOT / "docs" / "larger.png")
    return write_report(measured(root), root, ROOT / "docs" if args.publish else None)


if __name__ == "__main__":
    sys.exit(main())
