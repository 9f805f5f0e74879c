"""The paper's ablation on nano, and the knobs users turn: what does each buy in likeness, and what does it cost in obedience?

    python benchmarks/nano_ablation.py RUNS [--people 40] [--prompts 2] [--workers 2] [--output docs/ablation]

Every arm makes the same clips (40 people x 2 of 20 prompts, the same noise) in a folder of its own below RUNS, by the package's own
`evaluate`; differences are paired, intervals 95% bootstrap intervals over people. Killed and called again, it goes on. RUNS may hold
a copy of a folder of `lynx-video evaluate run` as `both`, whose clips are then not made again.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lynx_video.config import GenerateConfig
from lynx_video.draft import draft
from lynx_video.evaluation.assessment import versions
from lynx_video.evaluation.entry import Entry, Record
from lynx_video.evaluation.grid import draw_subjects, entries
from lynx_video.evaluation.prompts import NANO_PROMPTS
from lynx_video.evaluation.run import make_clips
from lynx_video.evaluation.scorer import score_clips
from lynx_video.evaluation.statistics import Estimate, estimate, paired
from lynx_video.evaluation.summary import columns_of
from lynx_video.pipeline.models import MODELS
from lynx_video.pool import Pool, open_pool
from lynx_video.studio.models import survey_model
from lynx_video.studio.setup import FaceFlags, ModelFlags

DEFAULT = "both"
Arms = dict[str, dict[str, Any]]
GROUPS: dict[str, Arms] = {
    "adapters": {
        "none": {"ip_scale": 0.0, "ref_scale": 0.0},
        "identity only": {"ref_scale": 0.0},
        "reference only": {"ip_scale": 0.0},
        DEFAULT: {},
    },
    "scales": {
        **{f"both {s:g}": {"ip_scale": s, "ref_scale": s} for s in (0.5, 0.75, 1.25, 1.5)},
        **{f"identity {s:g}, reference 1": {"ip_scale": s} for s in (0.5, 1.5)},
        **{f"identity 1, reference {s:g}": {"ref_scale": s} for s in (0.5, 1.5)},
    },
    "steps": {
        **{f"from {s:.0%} of the steps on": {"ip_start": s, "ref_start": s} for s in (0.25, 0.5)},
        **{f"up to {s:.0%} of the steps": {"ip_stop": s, "ref_stop": s} for s in (0.5, 0.75)},
    },
    "blocks": {
        f"blocks {name}": {"ip_blocks": frozenset(which), "ref_blocks": frozenset(which)}
        for name, which in {"0-2": (0, 1, 2), "3-5": (3, 4, 5), "0, 2, 4": (0, 2, 4), "1, 3, 5": (1, 3, 5)}.items()
    },
    "guidance": {
        "g 1": {"guidance_scale": 1.0},
        **{
            f"g {g:g}, g_i {i}": {"guidance_scale": g, "guidance_scale_i": i}
            for g in (2.0, 3.0, 5.0)
            for i in ("none", 1.0, 2.5, 4.0)
            if (g, i) != (3.0, 2.5)
        },
    },
    "reference latent": {"mean of the latent": {"reference_latent": "mean"}},
}
MEASURES = {
    "similarity/nano judge": "similarity",
    "similarity/nano second judge": "by the second judge",
    "worst_tenth/nano judge": "worst tenth",
    "coverage": "coverage",
    "probe/prompt": "wall and shirt",
    "probe/motion": "motion",
    "probe/following": "all three",
    "motion_amount": "motion amount",
    "frontal": "frontal",
}
CEILING = "ceiling (drawn, through the VAE)"


def main() -> None:
    """Make, score, print, write."""
    parser = argparse.ArgumentParser(description="The ablation on nano.")
    parser.add_argument("runs", type=Path)
    parser.add_argument("--people", type=int, default=40)
    parser.add_argument("--prompts", type=int, default=2, help="of 20, for each person others")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("docs/ablation"))
    request = parser.parse_args()
    runs = request.runs.absolute()
    arms = {name: changes for group in GROUPS.values() for name, changes in group.items()}
    found: dict[str, dict[str, Record]] = {}
    with open_pool(request.workers) as pool:
        folders = {name: runs / slug(name) for name in (*arms, CEILING)}
        for number, (name, changes) in enumerate(arms.items(), 1):
            chosen = chosen_entries(folders[name], request.people, request.prompts)
            print(f"{number}/{len(arms)} {name}", flush=True)
            generate(pool, folders[name], chosen, replace(GenerateConfig(), **changes))
        film_ceiling(chosen_entries(folders[CEILING], request.people, request.prompts))
        for name, folder in folders.items():
            chosen = chosen_entries(folder, request.people, request.prompts)
            found[name] = {record.key: record for record in score(pool, folder, chosen)}
            print(f"scored {name}", flush=True)
    write(request, found)


def slug(name: str) -> str:
    """A folder's name."""
    return "".join(letter if letter.isalnum() or letter == "." else "-" for letter in name).strip("-")


def chosen_entries(folder: Path, people: int, prompts: int) -> list[Entry]:
    """For person i the prompts i, i + 7, i + 14, ...: every prompt comes equally often."""
    everything = entries(folder, draw_subjects(folder, people), NANO_PROMPTS, 1)
    rows = [everything[i : i + len(NANO_PROMPTS)] for i in range(0, len(everything), len(NANO_PROMPTS))]
    return [row[(i + 7 * j) % len(row)] for i, row in enumerate(rows) for j in range(prompts)]


def generate(pool: Pool, folder: Path, chosen: list[Entry], config: GenerateConfig) -> None:
    """The clips of an arm that are missing."""
    survey = partial(survey_model, ModelFlags(), FaceFlags(), config)
    facts = make_clips(folder, chosen, config, name="nano", survey=survey, pool=pool)
    if facts["failures"]:
        raise SystemExit(f"{folder}: {facts['failures']} clips could not be made")


def film_ceiling(chosen: list[Entry]) -> None:
    """Drawn clips of the same people doing the same, through the VAE: the best that nano's decoder can show."""
    import torch

    from lynx_video import load
    from lynx_video.media.video import write_video
    from lynx_video.nano import faces, model
    from lynx_video.nano.people import benchmark_person
    from lynx_video.nano.recipe import data
    from lynx_video.pipeline.condition import latent_statistics
    from lynx_video.pipeline.decoding import decode

    vae = load("nano").vae
    mean, std = latent_statistics(vae, "cpu")
    for entry in chosen:
        if entry.clip.is_file():
            continue
        assert entry.seed is not None
        rng = torch.Generator().manual_seed(entry.seed)
        words = entry.prompt.split()
        colour = {what: torch.tensor([list(faces.COLOURS).index(words[words.index(what) - 1])]) for what in ("wall", "shirt")}
        motion = next(i for i, name in enumerate(faces.MOTIONS) if name in entry.prompt)
        scene = faces.Scenes(wall=colour["wall"], shirt=colour["shirt"])
        who = benchmark_person(int(entry.subject.removeprefix("person")))
        drawn = data.clips(who, rng, motion=torch.tensor([motion]), scene=scene)
        with torch.no_grad():
            latents = (vae.encode(data.to_signed(drawn.frames).transpose(1, 2)).latent_dist.mean - mean) / std
            write_video(entry.clip, decode(vae, latents).numpy(), model.FPS)


def score(pool: Pool, folder: Path, chosen: list[Entry]) -> list[Record]:
    """The records of an arm."""
    faces = partial(MODELS["nano"].faces, Path("models"))
    records, _ = score_clips(chosen, folder / "work" / "ablation", faces=faces, pool=pool, probe=MODELS["nano"].probe)
    return records


def write(request: Any, found: dict[str, dict[str, Record]]) -> None:
    """Tables as markdown, numbers as JSON, a plot."""
    keys = sorted(found[DEFAULT])
    subjects = [found[DEFAULT][key].subject for key in keys]
    columns = {name: columns_of([records[key] for key in keys]) for name, records in found.items()}
    numbers = {
        name: {measure: estimate(column[measure], subjects) for measure in MEASURES if measure in column}
        for name, column in columns.items()
    }
    against = {
        name: {
            measure: paired(columns[DEFAULT][measure], column[measure], subjects) for measure in MEASURES if measure in column
        }
        for name, column in columns.items()
    }
    lines = [
        f"n = {len(keys)} clips of {len(set(subjects))} drawn people an arm, the same people, prompts and noise in every arm; "
        "nano, 20 steps, g 3 and g_i 2.5 unless said. "
        "Brackets: 95% bootstrap intervals over people. In italics: the paired difference from both adapters as they are.",
        "",
    ]
    for group, arms in GROUPS.items():
        rows = dict.fromkeys([*arms, *([CEILING] if group == "adapters" else [DEFAULT])])
        lines += [f"## {group}", "", f"| | {' | '.join(MEASURES.values())} |", "| --- " * (len(MEASURES) + 1) + "|"]
        for name in rows:
            cells = [cell(numbers[name].get(m), None if name == DEFAULT else against[name].get(m)) for m in MEASURES]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    request.output.mkdir(parents=True, exist_ok=True)
    with draft(request.output / "tables.md") as partial_file:
        partial_file.write_text("\n".join(lines), encoding="utf-8")
    facts = {
        "versions": versions(),
        "arms": {name: {m: one.to_json() for m, one in row.items()} for name, row in numbers.items()},
        "against_default": {name: {m: one.to_json() for m, one in row.items()} for name, row in against.items()},
    }
    with draft(request.output / "numbers.json") as partial_file:
        partial_file.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines))
    plot(request.output / "arms.png", numbers)


def cell(one: Estimate | None, difference: Estimate | None) -> str:
    """`.87 [.85, .89]`, and the difference where its interval excludes 0."""
    if one is None or one.mean is None or one.low is None or one.high is None:
        return "not measured"
    text = f"{one.mean:.3f} [{one.low:.2f}, {one.high:.2f}]"
    if difference is not None and difference.excludes_zero and difference.mean is not None:
        text += f" *{difference.mean:+.3f}*"
    return text


def plot(file: Path, numbers: dict[str, dict[str, Estimate]]) -> None:
    """A line an arm: likeness, obedience and motion, each with its interval; dotted: both adapters as they are."""
    from matplotlib.figure import Figure

    rows = [(group, name) for group, arms in GROUPS.items() for name in arms]
    rows.insert(len(GROUPS["adapters"]), ("adapters", CEILING))
    shown = {
        "similarity/nano judge": "face similarity (nano judge)",
        "probe/following": "wall, shirt and motion as asked",
        "motion_amount": "motion, frame heights a second",
    }
    figure = Figure(figsize=(13, 0.26 * len(rows) + 1.4), layout="constrained")
    panels = figure.subplots(1, len(shown), sharey=True, width_ratios=(2, 1, 1))
    for panel, (measure, title) in zip(panels, shown.items(), strict=True):
        for place, (group, name) in enumerate(rows):
            one = numbers[name][measure]
            colour = "#d55e00" if name == DEFAULT else "#0072b2"
            panel.plot([one.low, one.high], [place, place], color=colour, linewidth=1.6)
            panel.plot([one.mean], [place], "o", color=colour, markersize=4)
            if place and group != rows[place - 1][0]:
                panel.axhline(place - 0.5, color="#cccccc", linewidth=0.8)
        panel.axvline(numbers[DEFAULT][measure].mean, color="#d55e00", linewidth=0.8, linestyle=":")
        panel.set_title(title, fontsize=10)
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(rows)), [name for _, name in rows], fontsize=8)
    panels[0].invert_yaxis()
    everybody = numbers[DEFAULT]["coverage"]
    figure.suptitle(f"n = {everybody.n} clips of {everybody.subjects} people an arm; 95% intervals over people", fontsize=9)
    with draft(file) as partial_file:
        figure.savefig(partial_file, dpi=110, format="png")


if __name__ == "__main__":
    main()
