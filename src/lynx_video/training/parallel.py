"""FSDP2 over the parts of the model; with one process every function here does nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lynx_video.runtime.parallel import Processes
from lynx_video.training.model import PackedModel


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
