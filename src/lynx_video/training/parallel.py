"""One process or many: who I am, what the others say, and FSDP2 over the parts of the model.

`torchrun` sets the environment that says how many there are; without it there is one process, and every function here does nothing.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lynx_video.errors import BadRequest
from lynx_video.training.model import PackedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class Processes:
    """This process among all."""

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this one writes files and speaks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """float64 values added up over all processes."""
        if self.count > 1:
            there = values.to(self.device)
            dist.all_reduce(there)
            values = there.to(values.device)
        return values

    def gather(self, value: Any) -> list[Any]:
        """One plain value from each process, in order, on every process."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            dist.barrier()


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Within it the processes that `torchrun` started know each other. Raises BadRequest for a device that torchrun cannot share."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes(device=torch.device(device))
        return
    if device.startswith("cuda"):
        if device != "cuda":
            raise BadRequest(f"--device {device}: with torchrun say cuda, each process takes the GPU of its local rank.")
        mine = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(mine)
        dist.init_process_group("nccl", device_id=mine)
    else:
        mine = torch.device("cpu")
        dist.init_process_group("gloo")
    try:
        with warnings.catch_warnings():
            # keys and values come out of a projection as views, which nothing here changes in place
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
            yield Processes(rank=dist.get_rank(), count=count, device=mine)
    finally:
        dist.destroy_process_group()


def shard_(model: PackedModel, among: Processes, dtype: torch.dtype) -> None:
    """Split blocks, projections and resampler over the processes (FSDP2); with one process nothing changes.

    dtype: of the arithmetic; the adapter's weights are gathered in it, their gradients added up in float32.
    What lies outside of the blocks is small and stays whole on each: embedders and output layer, 0.8 GB in bfloat16 at 14B.
    """
    if among.count == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(among.device.type, (among.count,))
    adapter = model.adapter
    own = [*adapter.identity.values(), *adapter.reference.values()]
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for block in model.transformer.blocks:
        fully_shard(block, mesh=mesh)
    for module in [*own, *([adapter.resampler] if adapter.resampler is not None else [])]:
        fully_shard(module, mesh=mesh, mp_policy=policy)
    outside = {parameter for name, parameter in model.transformer.named_parameters() if not name.startswith("blocks.")}
    fully_shard(model, mesh=mesh, ignored_params=outside)


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Within it every process holds all weights as plain tensors, to generate with; afterwards they are split again."""
    from torch.distributed.fsdp import FSDPModule

    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def local(tensor: Tensor) -> Tensor:
    """The part of a split tensor that lies here; other tensors as they are."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def full(tensor: Tensor) -> Tensor:
    """A split tensor put together, on every process; other tensors as they are."""
    joined: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return joined
