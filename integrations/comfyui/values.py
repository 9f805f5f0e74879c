"""What travels between the nodes, and how our warnings reach ComfyUI's log."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lynx_video.pipeline.components import Blueprint, Components
    from lynx_video.safety import Gate
    from lynx_video.studio.setup import ModelFlags
    from lynx_video.types import Clip


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model in memory. LYNX_MODEL."""

    components: Components
    blueprint: Blueprint
    flags: ModelFlags


@dataclass(frozen=True, kw_only=True)
class Guard:
    """A gate, and the model whose needs it was made for. LYNX_GATE."""

    gate: Gate
    model: Loaded

    def before(self, model: Loaded) -> Gate:
        """The gate. Raises BadRequest where it was made for another model, which may need less of one."""
        from lynx_video.errors import BadRequest

        if self.model is not model:
            raise BadRequest("gate: it was made for another model; connect gate, identity and clip to the same loaded model.")
        return self.gate


@dataclass(frozen=True, kw_only=True)
class Film:
    """A clip that the gate let through, and what is known of it beside its settings. LYNX_CLIP."""

    clip: Clip
    facts: dict[str, Any]
    consent: str


@contextmanager
def told() -> Iterator[None]:
    """Within it, what our functions warn of goes to ComfyUI's log, once each time."""
    from lynx_video.errors import LynxWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=LynxWarning)
        yield
    for one in caught:
        logging.warning(str(one.message))
