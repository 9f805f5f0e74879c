"""What a forward's matrix products and attention take apart, at its very shapes: no arrangement of these kernels can beat it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lynx_video.bench.way import Clock

if TYPE_CHECKING:
    from lynx_video.runtime.flops import Shape, Terms


@dataclass(kw_only=True, slots=True)
class Kernels:
    """Seconds of one forward by turn, under the names that `flops.forward` has for its terms; attention by the kernel of `exact`."""

    shape: Shape
    tokens: int
    terms: Terms
    dtype: torch.dtype
    backend: Any = None
    seconds: dict[str, list[float]] = field(default_factory=dict)

    @torch.no_grad()
    def time(self, clock: Clock) -> None:
        """One more turn: each kernel once, counted as often as it comes."""
        shape, terms = self.shape, self.terms
        products = sum(
            count * self._once(clock, F.linear, (1, self.tokens, into), (out, into), (out,))
            for count, into, out in (
                (6, shape.width, shape.width),
                (1, shape.width, shape.inner),
                (1, shape.inner, shape.width),
            )
        )
        self.seconds.setdefault("linear layers", []).append(shape.blocks * products)
        for name, blocks, keys in (
            ("self-attention", shape.blocks, self.tokens),
            ("text attention", shape.blocks, terms.text),
            ("identity attention", terms.identity_blocks, terms.identity),
            ("reference attention", terms.reference_blocks, terms.reference),
        ):
            heads = (shape.heads, shape.head_width)
            if blocks:
                spent = self._once(clock, self._attend, (1, self.tokens, *heads), (1, keys, *heads), (1, keys, *heads))
                self.seconds.setdefault(name, []).append(blocks * spent)

    def of(self, names: Iterable[str]) -> float:
        """Seconds of these terms together, each the median over turns."""
        return sum(statistics.median(self.seconds[name]) for name in names if name in self.seconds)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Any:
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        return dispatch_attention_fn(query, key, value, backend=self.backend)

    def _once(self, clock: Clock, run: Callable[..., Any], *shapes: tuple[int, ...]) -> float:
        """The second of two runs on random numbers; the first one may choose a kernel."""
        inputs = [torch.randn(shape, device=clock.device).to(self.dtype) for shape in shapes]
        run(*inputs)
        return clock.seconds(lambda: run(*inputs))
