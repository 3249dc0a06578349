"""The results of experiments/scaling.py as Markdown tables and a plot, in artifacts/ and, if asked, in docs/."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import LogLocator  # noqa: E402
from pages import fill, publish_picture  # noqa: E402

from course_utils.weights.artifacts import write_card  # noqa: E402

PICTURE = (
    "![Prompts drawn right over the number of objects, and the time of a training step over the side of a picture]"
    "(scaling.png)"
)
Results = list[dict[str, Any]]  # what scaling.py wrote for each setting
Times = dict[str, dict[str, Any]]  # and for each side of a picture, {"64": {"vae": seconds a step, …}, …}
PARTS = {"vae": ("VAE", "#2a6f97"), "clip": ("CLIP", "#66a182"), "unet": ("U-Net", "#d1495b")}
HALVES = ("seen", "held_out")


def seconds_a_step(result: dict[str, Any], part: str) -> str:
    stage = result["stages"].get(part)
    return f"{stage['seconds'] / stage['steps']:.3f}" if stage else "–"


def label(result: dict[str, Any]) -> str:
    setting = result["setting"]
    words = f"{setting['objects']:,} objects, {setting['size']} pixels"
    if not setting["trained_on"]:
        return words
    return f"{words}, going on from 64 {'objects' if setting['size'] == 64 else 'pixels'}"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables(results: Results) -> str:
    """What each setting cost, what came of it, and the conditions under which that holds."""
    cost, quality = [], []
    for r in results:
        stages = r["stages"]
        memory = "not known" if r.get("peak_gb") is None else f"{r['peak_gb']:.1f}"
        if "peak_gpu_gb" in r:
            memory += f" + {r['peak_gpu_gb']:.1f} on the GPU"
        mark = " *" if r["setting"]["vae_of"] else ""
        cost.append([
            label(r), f"{r['setting']['vocab_size']:,}",
            *(seconds_a_step(r, part) + (mark if part == "vae" else "") for part in PARTS),
            f"{stages['unet']['steps']:,}", f"{stages['unet']['seconds'] / 60:.1f}", memory,
        ])  # fmt: skip
        rows = {label(r): {**stages["scores"], "psnr": stages["vae"]["psnr"]}}
        if "before" in stages:
            rows = {f"{label(r)}: before it": stages["before"], **rows}
        for name, s in rows.items():
            shares = [s[f"{key}_{split}"] for key in ("object_and_color", "all_named") for split in HALVES]
            shares += [stages["judge"][f"all_named_{split}"] for split in HALVES]
            quality.append([name, f"{s['psnr']:.1f}", *(f"{100 * share:.1f} %" for share in shares)])
    options, stages = results[0]["options"], results[0]["stages"]
    budget = "the same number of steps" if options["unet_minutes"] is None else f"{options['unet_minutes']:g} minutes"
    notes = (
        f"Profile `{options['profile']}`, {100 * options['fraction']:g} % of its steps, {budget} for every U-Net that "
        f"begins untrained; {stages['scores']['prompts']:,} prompts a share. {samplers(results)} {machines(results)}"
    )
    if any(r["setting"]["vae_of"] for r in results):
        notes += (
            " \\* Taken from the row of 1,000 objects: the rows of 64 pixels share its VAE, and the peak memory of the "
            "other two does not include training one."
        )
    header = ["scenes", "vocabulary", *(f"{name}, s a step" for name, _ in PARTS.values())]
    header += ["U-Net steps", "U-Net minutes", "peak memory, GB"]
    right = ["object and colour, seen", "held out", "all four, seen", "held out", "judge on real, seen", "held out"]
    parts = [markdown(header, cost), markdown(["scenes", "VAE PSNR, dB", *right], quality)]
    if told := [r for r in results if "told" in r["stages"]]:
        parts.append(told_table(told))
    return "\n\n".join([*parts, notes])


def told_table(results: Results) -> str:
    """How often the object of a real picture can still be told, by two ways: see `told` in scaling.py."""
    rows = [[label(r), *(f"{100 * r['stages']['told'][key]:.1f} %" for key in ("vae", "clip"))] for r in results]
    header = ["real pictures with held-out pairs", "object read off the VAE's copies", "found by CLIP"]
    return markdown(header, rows)


def once(said: list[tuple[str, str]]) -> str:
    """What is said of rows, (what, row): once where it is the same of all, else with the rows it is said of."""
    rows: dict[str, list[str]] = {}
    for what, row in said:
        rows.setdefault(what, []).append(row)
    if len(rows) == 1:
        return f"{next(iter(rows))}."
    return "; ".join(f"{what} ({' · '.join(of)})" for what, of in rows.items()) + "."


def samplers(results: Results) -> str:
    return "Drawn by " + once([(r["stages"]["scores"].get("sampler", "ddim").upper(), label(r)) for r in results])


def machines(results: Results) -> str:
    """On which processor, in which precision."""
    machine = "{device}, {threads} threads, {processor}"
    return "Measured on " + once([(machine.format(**r), label(r)) for r in results])


def times_table(times: Times) -> str:
    """A row for each side: seconds a step of each network and memory, and how many times those of the first row."""
    first, rows = next(iter(times.values())), []
    for side, found in times.items():
        cells = [f"{side} × {side}", f"{found['latent']} × {found['latent']}"]
        for key, digits in (*((part, 2) for part in PARTS), ("peak_gb", 1)):
            if found[key] is None:
                cells.append("not known")
            else:
                more = "" if found is first else f" ({found[key] / first[key]:.1f} ×)"
                cells.append(f"{found[key]:.{digits}f}{more}")
        rows.append(cells)
    header = ["pictures", "latents", *(f"{name}, s a step" for name, _ in PARTS.values()), "peak memory, GB"]
    return f"{markdown(header, rows)}\n\nMeasured one after another on one machine: {first['processor']}."


def plot(results: Results, times: Times) -> Figure:
    """Accuracy against the number of objects, and seconds a step against the side of a picture: what there is of it."""
    by_objects = sorted((r for r in results if r["setting"]["size"] == 64), key=lambda r: r["setting"]["objects"])
    panels: list[Callable[[Axes], None]] = []
    if len(by_objects) > 1 or not times:
        panels.append(lambda axis: plot_objects(axis, by_objects))
    if times:
        panels.append(lambda axis: plot_sizes(axis, times))
    figure, axes = plt.subplots(1, len(panels), figsize=(4.5 * len(panels), 3.4), layout="constrained", squeeze=False)
    for axis, draw in zip(axes[0], panels, strict=True):
        draw(axis)
        axis.minorticks_off()
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8)
    return figure


def plot_objects(axis: Axes, all_results: Results) -> None:
    results = [r for r in all_results if not r["setting"]["trained_on"]]
    going_on = [r for r in all_results if r["setting"]["trained_on"]]
    objects = [r["setting"]["objects"] for r in results]
    for key, name, color in (("object_and_color", "object, colour", "#2a6f97"), ("all_named", "all four", "#d1495b")):
        for split, style, title in (("seen", "o-", "seen"), ("held_out", "s--", "held out")):
            shares = [100 * r["stages"]["scores"][f"{key}_{split}"] for r in results]
            axis.plot(objects, shares, style, ms=5, color=color, label=f"{name}, {title}")
    for r in going_on:
        share = 100 * r["stages"]["scores"]["object_and_color_held_out"]
        axis.plot(r["setting"]["objects"], share, "*", ms=11, mfc="none", color="#2a6f97", label="going on from 64")
    axis.set(xscale="log", xlabel="objects in the vocabulary", ylabel="prompts drawn right (%)", ylim=(-3, 103))
    axis.set_xticks(objects, [f"{n:,}" for n in objects])
    axis.set_title("the same budget, more objects", fontsize=10)


def plot_sizes(axis: Axes, times: Times) -> None:
    sizes = [int(side) for side in times]
    for part, (name, color) in PARTS.items():
        axis.plot(sizes, [found[part] for found in times.values()], "o-", ms=5, color=color, label=name)
    axis.set(yscale="log", xlabel="side of a picture (pixels)", ylabel="time of a training step (s)")
    axis.set_xticks(sizes, [str(n) for n in sizes])
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_title("the same networks, more pixels", fontsize=10)


def write_report(found: dict[str, Any], root: Path, docs: Path | None = None) -> int:
    """Write scaling.md and scaling.png into `root`. With `docs`, put what is new beside what docs/scaling.json holds,
    and all of it into the page and the figure there. Returns an exit status.

    found: {"settings": {name: results}, "step_times": {side: times}}, as `measured` in scaling.py gives it.
    """
    if docs and (docs / "scaling.json").exists():
        old = json.loads((docs / "scaling.json").read_text(encoding="utf-8"))
        found = {key: {**old[key], **found[key]} for key in found}
    order = ("size", "objects", "trained_on")
    results = sorted(found["settings"].values(), key=lambda r: [r["setting"][key] for key in order])
    times = found["step_times"]
    if not results and not times:
        print(f"no setting is finished in {root}; run experiments/scaling.py without --publish first")
        return 1
    if any(r["options"] != results[0]["options"] for r in results):
        made = "; ".join(f"{label(r)}: {r['options']}" for r in results)
        print(f"the settings in {root} were trained with different options and cannot share a table ({made})")
        return 1
    parts = {"scaling": tables(results) if results else "", "step times": times_table(times) if times else ""}
    root.mkdir(parents=True, exist_ok=True)
    (root / "scaling.md").write_text("\n\n".join(filter(None, parts.values())) + "\n", encoding="utf-8")
    figure = plot(results, times)
    figure.savefig(root / "scaling.png", dpi=130)
    plt.close(figure)
    if docs:
        publish_picture(root / "scaling.png", docs / "scaling.png")
        parts["scaling"] += f"\n\n{PICTURE}"
        for name, text in parts.items():
            fill(docs / "scaling.md", name, text)
        write_card(docs / "scaling.json", found)
    print(f"{parts['scaling']}\n\n{parts['step times']}\n\nwritten to {docs or root}: scaling.md, scaling.png")
    return 0
