"""What a run would be, before it begins: what trains, how much data, how much memory, and whether it fits here."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from lynx_video.training.estimate import Workload, estimate, table
from lynx_video.training.order import Cursor, video_tokens

if TYPE_CHECKING:
    from lynx_video.training.launch import Job


def forecast(job: Job, processes: int = 1) -> tuple[str, dict[str, Any]]:
    """Text for a terminal, and the same as plain JSON values. Nothing but configurations and the index of the set is read."""
    from lynx_video.pipeline.checkpoint import base_config

    config, patch = job.config, job.blueprint.patch_size
    packs = job.order.epoch(0)
    tokens = [sum(job.order.lengths[i] for i in pack.examples) for pack in packs]
    planned, _ = job.order.take(Cursor(), config.packs)
    used = {i for pack in packs for i in pack.examples}
    longest = max(used, key=lambda i: job.order.lengths[i])
    height, width = job.shards.conditions.nobody_reference.shape[2:]
    found = estimate(
        base_config(job.blueprint.base_name, "transformer"),
        job.adapter,
        Workload(
            sample_tokens=video_tokens(job.entries[longest], patch),
            pack_tokens=config.tokens,
            packs=max(1, config.packs // processes),
            text_tokens=len(job.shards.conditions.empty_text),
            reference_tokens=(height // patch[1]) * (width // patch[2]),
            processes=processes,
            recompute=config.recompute,
            precision=config.precision,
            average=bool(config.average),
            levels=config.timesteps,
        ),
    )
    available = _memory(job.blueprint.device)
    fill, epochs = sum(tokens) / (len(packs) * config.tokens), config.steps * config.packs / len(packs)
    facts = {
        "examples": len(used),
        "people": len({job.entries[i].person for i in used}),
        "held_out": len(job.held_out),
        "packs_an_epoch": len(packs),
        "pack_fill": fill,
        "tokens_a_step": sum(sum(job.order.lengths[i] for i in pack.examples) for pack in planned),
        "epochs": epochs,
        "trained_parameters": dict(found.trained),
        "memory": dict(found.memory),
        "arithmetic": dict(found.arithmetic),
        "available_memory": available,
    }
    start = f"from {job.start}" if job.start else f"new, {config.initial}"
    lines = [
        f"{config.arm} adapter ({start}), {config.stage} stage, {config.steps:,} steps on {job.blueprint.base_name}",
        f"Data                {facts['examples']:,} examples of {facts['people']:,} people an epoch; {len(job.held_out)} held out",
        f"Packs               {len(packs):,} an epoch, {100 * fill:.0f}% full; {epochs:.1f} epochs in all",
        f"The first step      {facts['tokens_a_step']:,} video tokens",
        table(found),
        "",
        found.fits(available),
    ]
    return "\n".join(lines), facts


def _memory(device: str) -> int:
    """Bytes of the device, or of the host where the device is the CPU."""
    import torch

    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(torch.device(device)).total_memory)
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
