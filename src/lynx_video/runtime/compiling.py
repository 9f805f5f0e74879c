"""Compilation block by block: one full graph serves every block, step, pass and scale.

compile_(transformer); with count_compilations() as count: transformer(...); assert count.graphs <= 2

What runs in a block is compiled as it is when it first runs, and again only for what changes its course: whether a memory is in scope,
whether a LoRA is on, and the shapes. Embeddings and the output layers stay as they are. Hooks put on a block afterwards (offload,
context parallel, step cache) stay outside of the compiled function.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lynx_video.errors import BadRequest, LynxError

GRAPHS = 64
"how many graphs one kind of block may have: on and off of two terms and of LoRAs, for some eight sizes of clips"


class _Compiled:
    """The forward of one block, through a compiled function that all blocks of its class share."""

    def __init__(self, block: Any, function: Callable[..., Any]) -> None:
        self.block, self.function = block, function
        functools.update_wrapper(self, type(block).forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

        try:
            with torch._dynamo.config.patch(recompile_limit=GRAPHS, fail_on_recompile_limit_hit=True, suppress_errors=False):
                return self.function(self.block, *args, **kwargs)
        except FailOnRecompileLimitHit as error:
            raise LynxError(
                f"the blocks were compiled for {GRAPHS} different shapes and settings in this process; start a new one, or leave out "
                "--compile."
            ) from error
        except TorchDynamoException as error:
            cause = getattr(error, "inner_exception", error)  # a compiler's own error, inside of torch's
            reason = f"{type(cause).__name__}: {str(cause).strip()}".partition("\n")[0]
            raise LynxError(f"the blocks cannot be compiled here ({reason}); leave out --compile.") from error


def compile_(transformer: Any, *, backend: str | Callable[..., Any] = "inductor", fullgraph: bool = True) -> None:
    """Compile the blocks, each when it first runs; blocks compiled already stay as they are.

    backend: of torch.compile; "eager" captures the graph and runs it as it is. fullgraph: refuse code that does not fit in one graph.
    Call it after quantization and LoRAs, before hooks are put on the blocks. Raises BadRequest for layers whose hooks cannot be
    compiled.
    """
    shared: dict[type, Callable[..., Any]] = {}
    for block in transformer.blocks:
        if _compiled(block) is not None:
            continue
        assert "forward" not in vars(block), "compile the blocks before putting hooks on them"
        hooked = next((name for name, one in block.named_modules() if name and _has_hooks(one)), None)
        if hooked is not None:
            raise BadRequest(
                f"{hooked} of a block has a hook of diffusers (layerwise casting, offload of single layers), which cannot be compiled: "
                "compile first, or leave out --compile."
            )
        kind = type(block)
        if kind not in shared:
            shared[kind] = torch.compile(kind.forward, fullgraph=fullgraph, dynamic=False, backend=backend)
        block.forward = _Compiled(block, shared[kind])


def uncompile_(transformer: Any) -> None:
    """Undo `compile_`. Hooks that were put on the blocks afterwards must be off again."""
    for block in transformer.blocks:
        forward = vars(block).get("forward")
        assert forward is None or isinstance(forward, _Compiled), "take the hooks off before undoing the compilation"
        if forward is not None:
            del block.forward


def is_compiled(transformer: Any) -> bool:
    """Whether `compile_` was called, whatever hooks came later."""
    return any(_compiled(block) is not None for block in transformer.blocks)


def _compiled(block: Any) -> _Compiled | None:
    forward = vars(block).get("forward")
    while forward is not None and not isinstance(forward, _Compiled):
        forward = getattr(forward, "__wrapped__", None)
    return forward


def _has_hooks(module: Any) -> bool:
    registry = getattr(module, "_diffusers_hook", None)
    return registry is not None and bool(registry.hooks)


class Compilations:
    """What torch.compile did in a scope; it can be read within it and afterwards.

    graphs: graphs captured. again: how often that was because those before did not fit. breaks: places where a graph had to end before
    the function did. reasons: the guards that did not fit.
    """

    def __init__(self) -> None:
        self.again = 0
        self._before = _totals()
        self._after: tuple[int, int, tuple[str, ...]] | None = None

    @property
    def graphs(self) -> int:
        return self._now()[0] - self._before[0]

    @property
    def breaks(self) -> int:
        return self._now()[1] - self._before[1]

    @property
    def reasons(self) -> tuple[str, ...]:
        known = Counter(self._before[2])
        return tuple((Counter(self._now()[2]) - known).elements())

    def recompiled(self) -> None:
        """One more graph is made beside others of its function."""
        self.again += 1

    def close(self) -> None:
        """What comes from here on does not count."""
        self._after = _totals()

    def _now(self) -> tuple[int, int, tuple[str, ...]]:
        return self._after or _totals()

    def __repr__(self) -> str:
        return "\n  ".join([f"{self.graphs} graphs ({self.again} again), {self.breaks} breaks", *self.reasons])


@contextmanager
def count_compilations() -> Iterator[Compilations]:
    """Count what torch.compile does within it, wherever in this process."""
    from torch._dynamo.callback import callback_handler

    count = Compilations()

    def note(about: Any) -> None:
        if about.compile_id.partition("/")[2].partition("_")[0] not in ("", "0"):  # "3/1": the fourth function's second graph
            count.recompiled()

    callback_handler.register_start_callback(note)
    try:
        yield count
    finally:
        callback_handler.remove_start_callback(note)
        count.close()


def _totals() -> tuple[int, int, tuple[str, ...]]:
    """Graphs and graph breaks since the process began, and why graphs did not fit."""
    from torch._dynamo.utils import counters, guard_failures

    reasons = tuple(reason.partition("\n")[0] for failures in guard_failures.values() for reason in failures)
    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values()), reasons
