"""From a model, a training set and a config to a trained adapter: checks first, then the run, then the export."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lynx_video.adapters.attach import Adapter
from lynx_video.adapters.weights import inspect, load_adapter
from lynx_video.draft import draft
from lynx_video.errors import BadData, BadRequest
from lynx_video.runtime.parallel import Processes, processes
from lynx_video.training.config import TrainConfig
from lynx_video.training.export import export_adapter
from lynx_video.training.feed import Feed
from lynx_video.training.initialise import adapter_config, initialise_
from lynx_video.training.journal import Journal
from lynx_video.training.model import PackedModel
from lynx_video.training.order import Order, split_held_out
from lynx_video.training.packing import PackedAttention
from lynx_video.training.parallel import shard_
from lynx_video.training.shards import Entry, Shards
from lynx_video.training.trainer import Trainer
from lynx_video.training.validate import Follow, Subject, Validator

if TYPE_CHECKING:
    from lynx_video.adapters.attach import AdapterConfig
    from lynx_video.pipeline.components import Blueprint, Components

CONFIG, ADAPTER = "config.json", "adapter"


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A run that was checked and can begin.

    blueprint: the model, without an adapter. start: folder or files of the adapter to go on from, of an earlier stage; None: a new one.
    subjects: portraits and prompts for validation clips.
    """

    blueprint: Blueprint
    config: TrainConfig
    shards: Shards
    entries: list[Entry]
    held_out: list[Entry]
    order: Order
    adapter: AdapterConfig
    start: Path | None = None
    subjects: Sequence[Subject] = ()

    @property
    def facts(self) -> dict[str, Any]:
        """What a checkpoint of this run depends on besides its config (plain JSON values)."""
        return {
            "base_hash": self.blueprint.base_hash,
            "data_card_hash": self.shards.card_hash,
            "start": str(self.start) if self.start else None,
        }


def prepare(
    blueprint: Blueprint, data: Path, config: TrainConfig, *, start: Path | None = None, subjects: Sequence[Subject] = ()
) -> Job:
    """Check everything that can be checked without reading a weight. Raises BadData, BadRequest or BadWeights, naming what is wrong."""
    shards = Shards(data)
    made_for = shards.card.get("model", {}).get("base_hash", "unknown")
    if made_for != blueprint.base_hash:
        raise BadData(
            f"{data} was built with another base ({made_for}) than {blueprint.base_name} ({blueprint.base_hash}): its latents and "
            f"texts mean nothing to this one; build the set again with this base."
        )
    entries, held_out = split_held_out(shards.entries, config.held_out)
    order = Order(entries, config, blueprint.patch_size)
    shape = adapter_config(blueprint.shape, config)
    if start is not None:
        files = inspect([start], blueprint.shape)
        if files.arm != config.arm:
            raise BadRequest(
                f"{start} is a {files.arm} adapter, this run trains {config.arm}; say --arm {files.arm} or another start."
            )
        shape = files.config
    return Job(
        blueprint=blueprint,
        config=config,
        shards=shards,
        entries=entries,
        held_out=held_out,
        order=order,
        adapter=shape,
        start=start,
        subjects=subjects,
    )


def launch(job: Job, output: Path, *, follow: Follow | None = None, tensorboard: bool = False, quiet: bool = False) -> Path:
    """Train, or go on from the newest checkpoint in `output`; the folder of the exported adapter.

    follow: a score of how far a clip obeys its prompt, 0 to 1, for the validation clips. Raises as `Trainer.run`.
    """
    config = job.config
    with processes(job.blueprint.device) as among:
        if config.packs % among.count:
            raise BadRequest(
                f"--packs {config.packs} can't be divided among {among.count} processes; give a multiple of {among.count}."
            )
        components = _components(job, among)
        model = PackedModel(components.adapter, recompute=config.recompute)
        shard_(model, among, components.dtype)
        if among.first:
            output.mkdir(parents=True, exist_ok=True)
            with draft(output / CONFIG) as partial_file:
                partial_file.write_text(json.dumps(config.as_json() | job.facts, indent=2) + "\n", encoding="utf-8")
        among.wait()
        validate = Validator(job.shards, job.held_out, components=components, subjects=job.subjects, follow=follow)
        trainer = Trainer(
            model,
            config,
            output,
            partial(_feed, job, among),
            among,
            dtype=components.dtype,
            facts=job.facts,
            validate=validate if job.held_out or job.subjects else None,
        )
        trainer.run(partial(_journal, job, output, among, tensorboard=tensorboard, quiet=quiet))
        assert all(parameter.grad is None for parameter in components.transformer.parameters()), "the base is frozen"
        with trainer.averaged():
            facts = {
                "base": _name(job.blueprint.base_name),
                "base_hash": job.blueprint.base_hash,
                "arm": config.arm,
                "training": config.as_json(),
                "data_card_hash": job.shards.card_hash,
            }
            export_adapter(components.adapter, output / ADAPTER, job.blueprint.defaults, facts, among, dtype=torch.bfloat16)
    return output / ADAPTER


def _components(job: Job, among: Processes) -> Components:
    """The model with the adapter to train attached: base frozen in the run's precision, adapter in float32."""
    from lynx_video.pipeline.load import assemble

    config = job.config
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    blueprint = replace(job.blueprint, files=None, dtype=dtype, device=str(among.device))
    components = assemble(blueprint, idle_models="keep" if job.subjects else "offload")
    transformer = components.transformer
    components.adapter.detach()
    if job.start is not None:
        adapter = load_adapter(inspect([job.start], job.blueprint.shape), dtype=torch.float32)
        adapter.attach(transformer, PackedAttention)
    else:
        adapter = Adapter(job.adapter)
        adapter.attach(transformer, PackedAttention)
        initialise_(adapter, config)
    components.adapter = adapter.to(among.device).requires_grad_(True)
    return components


def _name(base: str) -> str:
    """A hub id, or the last part of a path: where it lies here says nothing elsewhere."""
    return Path(base).name if Path(base).is_dir() else base


def _feed(job: Job, among: Processes, cursor: Any) -> Feed:
    return Feed(job.shards, job.entries, job.order, job.config, cursor=cursor, rank=among.rank, processes=among.count)


def _journal(job: Job, output: Path, among: Processes, start: int, *, tensorboard: bool, quiet: bool) -> Journal:
    return Journal(output, total_steps=job.config.steps, start=start, tensorboard=tensorboard, quiet=quiet, active=among.first)
