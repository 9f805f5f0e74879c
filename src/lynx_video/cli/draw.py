"""`lynx-video dataset draw`: a training set for nano from the drawing code, endless and seeded."""

from __future__ import annotations

from pathlib import Path

import click

from lynx_video.cli.console import hush_libraries
from lynx_video.errors import BadOutput, BadRequest


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--clips", default=2000, show_default=True, help="clips, each of a person of its own")
@click.option("--stills", default=2000, show_default=True, help="stills, likewise")
@click.option("--seed", default=0, show_default=True, help="other seeds draw other people")
@click.option("--overwrite", is_flag=True, help="replace a set that is there")
def draw(out: Path, clips: int, stills: int, seed: int, overwrite: bool) -> None:
    """Draw people, encode them with nano's models, and write a training set to OUT: what nano's own adapters are trained on."""
    if clips < 0 or stills < 0 or clips + stills == 0 or seed < 0:
        raise BadRequest("--clips, --stills and --seed are whole numbers from 0, and there must be something to draw.")
    if out.exists() and not overwrite:
        raise BadOutput(f"{out} is there already; use --overwrite or another name.")
    hush_libraries()
    from itertools import chain

    from tqdm import tqdm

    from lynx_video.nano.recipe.drawn import Drawn, conditions
    from lynx_video.pipeline.load import survey
    from lynx_video.pipeline.models import NANO
    from lynx_video.training.shards import Conditions, write_shards

    blueprint = survey("nano", with_adapter=False)
    drawn = Drawn(NANO / "base", blueprint.faces.encoder(), seed, stills_share=0.0)
    examples = chain(drawn.examples(0, clips, "clip"), drawn.examples(clips, stills, "still"))
    total, size = clips + stills, f"{blueprint.defaults.height}x{blueprint.defaults.width}"
    buckets = {f"1x{size}": stills, f"{blueprint.defaults.num_frames}x{size}": clips}
    card = {
        "counts": {
            "seen": total,
            "targets": total,
            "clips": clips,
            "references_only": 0,
            "dropped": 0,
            "people": total,
            "people_named": total,
        },
        "dropped_by_reason": {},
        "examples_by_bucket": {bucket: count for bucket, count in buckets.items() if count},
        "examples_by_references": {"2": total},
        "people_by_examples": {"1": total},
        "model": {"name": "nano", "base_hash": blueprint.base_hash},
        "settings": {"drawn": True, "seed": seed, "licence": "drawn by code, nobody's picture"},
    }
    count = write_shards(
        out, tqdm(examples, total=clips + stills, unit="example"), Conditions(**conditions(NANO / "base")), card
    )
    click.echo(f"{out}: {count} examples")
