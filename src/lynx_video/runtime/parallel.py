"""One process or many: who I am, which part of a step is mine, and how the parts come together.

`torchrun` sets the environment that says how many there are; without it there is one process, and nothing here does anything.

A step can be shared three ways, and in all at once: processes = passes x ring x ulysses. Processes that share the *passes* compute
different ones and tell each other; the result equals one process's, bit for bit. Those that share the *tokens* of a pass each carry a
slice through the blocks and meet in self-attention only, either with all tokens and a part of the heads (*Ulysses*, by diffusers), or
with all heads and the keys and values of all (*ring*). What attends to text, identity or reference has all of their keys and values
anyway. The results of these are one process's up to the order of sums.

The ring is its all-gather form, in which every process asks for all keys and values at once. diffusers has no other either, but it
attends to one part after the other and then needs a kernel that tells its log-sum-exp, which torch's own does not.

    with ranks(device, degrees) as mine, sharing_tokens(transformer, mine):
        predictions = mine.gather([predict(one) for one in mine.share(table)], len(table), latents)
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lynx_video.errors import BadRequest

T = TypeVar("T")


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


def started() -> tuple[int, int]:
    """Rank of this process and how many `torchrun` started, from the environment: known before they know each other."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def take_device(device: str | None) -> None:
    """Make the GPU of its local rank this process's current one, before anything asks for one and lands on the first."""
    if started()[1] > 1 and device in (None, "cuda") and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Within it the processes that `torchrun` started know each other. Raises BadRequest for a device that torchrun cannot share.

    An error that leaves it on one process must end that process: `torchrun` then ends the others, which may be waiting for it.
    """
    _, count = started()
    if count == 1:
        yield Processes(device=torch.device(device))
        return
    if device.startswith("cuda"):
        if device != "cuda":
            raise BadRequest(f"--device {device}: with torchrun say cuda, each process takes the GPU of its local rank.")
        local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= there:
            raise BadRequest(f"torchrun started more processes here than there are GPUs: say --nproc-per-node {there} at most.")
        mine = torch.device("cuda", local)
        torch.cuda.set_device(mine)
        dist.init_process_group("nccl", device_id=mine)
    else:
        mine = torch.device("cpu")
        dist.init_process_group("gloo")
    failed = True
    try:
        with warnings.catch_warnings():
            # keys and values come out of a projection as views, which nothing here changes in place
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
            yield Processes(rank=dist.get_rank(), count=count, device=mine)
        failed = False
    finally:
        if not (failed and mine.type == "cuda"):  # NCCL says goodbye together, and the others may be elsewhere
            dist.destroy_process_group()


@dataclass(frozen=True, kw_only=True, slots=True)
class Degrees:
    """How many processes share the passes of a step, the heads of a pass, and its tokens; all of them are the product."""

    passes: int = 1
    ulysses: int = 1
    ring: int = 1

    @property
    def tokens(self) -> int:
        """Processes among which the tokens of a pass are split."""
        return self.ulysses * self.ring

    @property
    def count(self) -> int:
        """Processes in all."""
        return self.passes * self.tokens


def choose_degrees(
    world: int,
    passes: int,
    heads: int,
    tokens: int,
    *,
    pass_degree: int | None = None,
    ulysses_degree: int | None = None,
    ring_degree: int | None = None,
) -> Degrees:
    """How `world` processes share steps of so many passes, each of so many heads and video tokens; what is None is chosen.

    The chosen leaves the fewest idle: the passes are shared where the processes are a multiple of them, the heads by the rest as far as
    it divides them, the tokens by what remains. A ring may be uneven; those that share heads have as many tokens each (diffusers' way
    to share heads among uneven slices asks for their sizes in every attention, waits for the answer, and cannot be compiled). Raises
    BadRequest where nothing fits, with numbers of processes that would.
    """
    asked = (pass_degree, ulysses_degree, ring_degree)

    def best(world: int) -> Degrees | None:
        fitting = [
            Degrees(passes=p, ulysses=u, ring=world // p // u)
            for p in range(1, min(world, passes) + 1)
            for u in range(1, min(world // p, heads) + 1)
            if world % (p * u) == 0 and heads % u == 0 and tokens % u == 0 and world // p <= tokens
            if all(want in (None, got) for want, got in zip(asked, (p, u, world // p // u), strict=True))
        ]
        # with a pass too few for everybody's last turn, processes wait: turns x degree is the time they spend
        return min(fitting, key=lambda one: (-(-passes // one.passes) * one.passes, -one.passes, one.ring), default=None)

    if (found := best(world)) is not None:
        return found
    flags = ("--pass-degree", "--ulysses-degree", "--ring-degree")
    said = " ".join(f"{flag} {value}" for flag, value in zip(flags, asked, strict=True) if value is not None)
    would = [str(one) for one in range(1, max(2 * world, 16) + 1) if best(one) is not None]
    raise BadRequest(
        f"{world} process{'es' if world > 1 else ''} can't share the work{f' by {said}' if said else ''}: a step has {passes} "
        f"pass{'es' if passes > 1 else ''} (--pass-degree is at most that), a pass {heads} heads and {tokens} "
        "tokens (--ulysses-degree divides both); "
        + (f"torchrun --nproc-per-node {' or '.join(would[:4])} would work." if would else "leave the degrees to be chosen.")
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """This process's place among those that share a generation.

    mesh: all of them as passes x ring x ulysses (a torch DeviceMesh), neighbours last; None where there is one.
    """

    among: Processes
    degrees: Degrees = field(default_factory=Degrees)
    mesh: Any = None
    slices: WeakKeyDictionary[nn.Module, Slice] = field(default_factory=WeakKeyDictionary, repr=False, compare=False)
    "the hooks on each transformer"

    @property
    def first(self) -> bool:
        """Whether this one writes files and speaks; all decode and judge, each on its own device."""
        return self.among.first

    def share(self, table: tuple[T, ...]) -> tuple[T, ...]:
        """The passes of `table` that this process computes; none where there are fewer passes than shares."""
        sizes = _sizes(len(table), self.degrees.passes)
        turn = self.among.rank // self.degrees.tokens
        return table[sum(sizes[:turn]) : sum(sizes[: turn + 1])]

    def gather(self, mine: Sequence[Tensor], count: int, like: Tensor) -> list[Tensor]:
        """The predictions of all `count` passes in the table's order, on every process: copies, so equal to those computed.

        mine: those of `share`, each of the shape, dtype and device of `like`.
        """
        if self.degrees.passes == 1:
            return list(mine)
        assert all((one.shape, one.dtype) == (like.shape, like.dtype) for one in mine), "predictions are like `like`"
        sizes = _sizes(count, self.degrees.passes)
        part = torch.stack(list(mine)) if mine else like.new_empty(0, *like.shape)
        return list(_all(part, 0, sizes, self.mesh["pass"].get_group()))

    def agree(self, stop: bool) -> bool:
        """Whether any process says stop, on every process: one small exchange, for a callback that only the first one asks.

        A loop that one process leaves alone keeps the others waiting for it.
        """
        if self.among.count == 1:
            return stop
        votes = torch.tensor([int(stop)], device=self.among.device)
        dist.all_reduce(votes)
        return bool(votes.item())


@contextmanager
def ranks(device: str, degrees: Degrees = Degrees()) -> Iterator[Ranks]:
    """Within it the processes that `torchrun` started share generations by `degrees`. Raises as `processes`."""
    with processes(device) as among:
        yield place(among, degrees)


def place(among: Processes, degrees: Degrees) -> Ranks:
    """The place of a process among all, who must ask for it together."""
    assert degrees.count == among.count, f"{degrees} are for {degrees.count} processes, there are {among.count}"
    if among.count == 1:
        return Ranks(among=among)
    from torch.distributed.device_mesh import init_device_mesh

    shape = (degrees.passes, degrees.ring, degrees.ulysses)
    mesh = init_device_mesh(among.device.type, shape, mesh_dim_names=("pass", "ring", "ulysses"))
    return Ranks(among=among, degrees=degrees, mesh=mesh)


@contextmanager
def sharing_tokens(transformer: Any, mine: Ranks | None) -> Iterator[None]:
    """Within it a forward of `transformer` computes this process's slice of the tokens, and returns the whole prediction.

    transformer: a stock `WanTransformer3DModel` with our processors. All processes that share a pass run the same forwards in it. What
    must see all tokens in one place stays outside: taking reference features. Raises BadRequest for an attention backend that can't.
    """
    if mine is None or mine.degrees.tokens == 1:
        yield
        return
    processors = [block.attn1.processor for block in transformer.blocks]
    if mine.degrees.ulysses > 1:
        for name in {one._attention_backend for one in processors}:
            _check_backend(name, mine.degrees)
    part = mine.slices.get(transformer)
    if part is None:  # the hooks stay and are switched, so that a compiled block sees the same ones in every generation
        part = mine.slices[transformer] = Slice(mine)
        transformer.rope.register_forward_hook(part.cut_positions)
        transformer.blocks[0].register_forward_pre_hook(part.cut_tokens)
        transformer.proj_out.register_forward_hook(part.join)
    scope = {"_parallel_config": part.heads} | ({"gather": part.gather} if mine.degrees.ring > 1 else {})
    before = [{name: getattr(one, name) for name in scope} for one in processors]
    try:
        part.on = True
        for one in processors:
            for name, value in scope.items():
                setattr(one, name, value)
        yield
    finally:
        part.on = False
        for one, kept in zip(processors, before, strict=True):
            for name, value in kept.items():
                setattr(one, name, value)


class Slice:
    """This process's slice of the tokens: hooks that cut it out before the blocks and put the prediction together after them.

    They are torch's hooks, not diffusers' `apply_context_parallel`: those wrap `forward` in the order of their registration, and a step
    cache registered after them would see the tokens uncut.

    The slices of a ring lie side by side, so that keys come together in their own order, also where heads are shared too.

    heads: what diffusers' attention needs to share the heads, or None.
    """

    def __init__(self, mine: Ranks) -> None:
        self.on = False
        self.sizes: list[int] = []
        "tokens of each slice, ring by ring"
        self.ulysses, self.ring = mine.degrees.ulysses, mine.degrees.ring
        self.row, self.column = mine.among.rank % self.ulysses, mine.among.rank // self.ulysses % self.ring
        self.ring_group, self.ulysses_group = mine.mesh["ring"].get_group(), mine.mesh["ulysses"].get_group()
        self.heads: Any = None
        if self.ulysses > 1:
            from diffusers import ContextParallelConfig, ParallelConfig

            mesh = mine.mesh["ring", "ulysses"]
            self.heads = ParallelConfig(context_parallel_config=ContextParallelConfig(ulysses_degree=self.ulysses, mesh=mesh))
            # what `enable_parallelism` does before it, it does for accelerators only
            self.heads.setup(mine.among.rank, mine.among.count, mine.among.device, mesh=mesh)

    def cut_positions(self, _: nn.Module, args: Any, out: tuple[Tensor, Tensor]) -> tuple[Tensor, ...] | None:  # noqa: ARG002
        """After the rotary embedding [1, L, 1, K] was computed; the first to know how many tokens there are."""
        if not self.on:
            return None
        tokens = out[0].shape[1]
        assert tokens % self.ulysses == 0, f"{self.ulysses} that share heads cannot have as many of {tokens} tokens each"
        self.sizes = _sizes(tokens // self.ulysses, self.ring) * self.ulysses
        return tuple(self._mine(one) for one in out)

    def cut_tokens(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Before the first block."""
        return (self._mine(args[0]), *args[1:]) if self.on else None

    def join(self, _: nn.Module, args: Any, out: Tensor) -> Tensor | None:  # noqa: ARG002
        """After the output layer."""
        if not self.on:
            return None
        row = _all(out, 1, self._rows()[self.row], self.ring_group)
        return _all(row, 1, [sum(sizes) for sizes in self._rows()], self.ulysses_group)

    def gather(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a slice, [B, L, N, K] -> of the whole ring."""
        key, value = _all(torch.stack((key, value)), 2, self._rows()[self.row], self.ring_group).unbind(0)
        return key, value

    def _rows(self) -> list[list[int]]:
        """Tokens of each slice, by ring."""
        return [self.sizes[i : i + self.ring] for i in range(0, len(self.sizes), self.ring)]

    def _mine(self, whole: Tensor) -> Tensor:
        turn = self.row * self.ring + self.column
        # a copy: what is compiled for a view depends on where it begins
        return whole.narrow(1, sum(self.sizes[:turn]), self.sizes[turn]).clone(memory_format=torch.contiguous_format)


def _sizes(count: int, parts: int) -> list[int]:
    """`count` things in `parts` shares, the first ones larger by one where it does not divide."""
    return [count // parts + (i < count % parts) for i in range(parts)]


def _all(part: Tensor, dim: int, sizes: Sequence[int], group: Any) -> Tensor:
    """The parts of all in `group` along `dim`, in order; they are exchanged at the size of the largest."""
    if len(sizes) == 1:
        return part
    missing = max(sizes) - part.shape[dim]
    if missing:
        shape = [missing if i == dim else size for i, size in enumerate(part.shape)]
        part = torch.cat((part, part.new_zeros(shape)), dim)
    part = part.contiguous()
    parts = [torch.empty_like(part) for _ in sizes]
    dist.all_gather(parts, part, group=group)
    return torch.cat([one.narrow(dim, 0, size) for one, size in zip(parts, sizes, strict=True)], dim)


def _check_backend(name: str | None, degrees: Degrees) -> None:
    """Refuse an attention backend of diffusers that would attend to the own slice only and say nothing. None: the one by default."""
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    backend = AttentionBackendName(name) if name is not None else _AttentionBackendRegistry.get_active_backend()[0]
    if not _AttentionBackendRegistry._is_context_parallel_available(backend):
        raise BadRequest(
            f"the attention backend {backend.value} can't share heads among {degrees.ulysses} processes: say "
            f"--attention-backend native, or --ulysses-degree 1 --ring-degree {degrees.tokens}."
        )
