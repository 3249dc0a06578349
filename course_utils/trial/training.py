"""The largest recipe of a profile that fits the time: steps from measured step times, one part after another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from course_utils.data.batches import CaptionedImages
from course_utils.evaluation.metrics import retrieval_accuracy
from course_utils.evaluation.reconstruction import reconstruction_psnr
from course_utils.profiles import Profile
from course_utils.training.loop import TrainingDiverged, best_precision
from course_utils.training.parts import NAMES, Parts, train_parts
from course_utils.trial.report import Clock, Report

SHARES = {"vae": 0.45, "clip": 0.08, "unet": 0.47}  # of the time that is left for training
MARGIN = 0.95  # of that share is planned: encoding and saving take time, too
GUESS = 0.05  # seconds a step, where nothing could be measured


def best_way(times: Mapping[str, Mapping[str, Any]], precision: str, start_seconds: float) -> tuple[bool, float]:
    """(with the compiler?, seconds a step) of the course's own loop, whichever gets further in `start_seconds`.

    The compiler has been started once for the measurement and its results are kept, so half of that is counted again.
    """
    compiled, start = times.get(f"course compiled {precision}", {}), times.get(f"compiled {precision}", {})
    ways = (times.get(f"course {precision}", {}), times.get(f"plain {precision}", {}), times.get("plain float32", {}))
    plain = next((way["ms"] / 1000 for way in ways if "ms" in way), GUESS)
    if "ms" not in compiled or "first_s" not in start:
        return False, plain
    each = compiled["ms"] / 1000
    better = max(0.0, start_seconds - start["first_s"] / 2) / each > start_seconds / plain
    return (True, each) if better else (False, plain)


def steps_that_fit(name: str, seconds: float, each: float) -> int:
    """Steps for a part when `seconds` are left for it and those after it, at least one."""
    after = NAMES[NAMES.index(name) :]
    share = SHARES[name] / sum(SHARES[n] for n in after)
    return max(1, int(MARGIN * share * seconds / each))


def train_part(
    name: str,
    profile: Profile,
    data: CaptionedImages,
    test: CaptionedImages,
    report: Report,
    clock: Clock,
    folder: Path,
    device: torch.device,
    *,
    reserve: float,
    seed: int = 0,
) -> dict[str, Any]:
    """Plan and train one part. Its plan is kept in the report, so that the same call goes on where it was stopped."""
    plan = report.sections.setdefault("plan", {})
    precision = best_precision(device.type)
    if name not in plan:
        seconds = max(1.0, clock.left() - reserve)
        times = report.sections.get(f"times {name}", {})
        with_compiler, each = best_way(times, precision, seconds * SHARES[name])
        steps = steps_that_fit(name, seconds, each)
        plan[name] = {"steps": steps, "with_compiler": with_compiler, "expected_ms": round(1000 * each, 3)}
        report.write()
    steps, with_compiler = plan[name]["steps"], plan[name]["with_compiler"]
    budget = replace(getattr(profile, f"{name}_budget"), steps=steps)
    report.say(f"{name}: {steps:,} steps are planned, {clock.left():.0f} s are left")

    def train(with_compiler: bool) -> Parts:
        return train_parts(
            replace(profile, **{f"{name}_budget": budget}),  # type: ignore[arg-type]
            data,
            seed=seed,
            folder=folder,
            which=(name,),
            device=device,
            precision=precision,
            with_compiler=with_compiler,
            measure=lambda part, parts: measured(part, parts, test),
            report=report.say,
        )

    try:
        parts = train(with_compiler)
    except Exception as error:
        if not with_compiler or isinstance(error, TrainingDiverged):
            raise
        plan[name] |= {"with_compiler": False, "compiler_failed": f"{type(error).__name__}: {error}"[:2000]}
        parts = train(False)  # goes on from the last state that was saved
    losses = parts.losses.get(name, [])
    return {
        "steps": steps,
        "seconds": parts.seconds[name],
        "ms": round(1000 * parts.seconds[name] / steps, 3),
        "pictures": steps * budget.batch_size,
        "metrics": parts.metrics[name],
        "losses": thinned(losses),
    }


@torch.no_grad()
def measured(name: str, parts: Parts, test: CaptionedImages) -> dict[str, float]:
    """What is asked of a part as soon as it is trained, on pictures that it has not seen."""
    if name == "vae":
        return {"psnr": reconstruction_psnr(parts.vae, test.batch(range(len(test)))[0])}
    if name == "clip" and parts.tokenizer is not None:
        device = next(parts.clip.parameters()).device
        n = min(256, len(test))
        pictures, captions, _ = test.batch(range(n))
        features = parts.clip.encode_image(pictures.to(device))
        texts = parts.clip.encode_text(parts.tokenizer.encode(captions).to(device))
        return retrieval_accuracy(features, texts)._asdict()
    return {}


def thinned(losses: list[float], most: int = 200) -> list[float]:
    """Means over equal stretches of the curve, at most so many."""
    width = max(1, -(-len(losses) // most))
    pieces = [losses[i : i + width] for i in range(0, len(losses), width)]
    return [round(sum(piece) / len(piece), 5) for piece in pieces]
