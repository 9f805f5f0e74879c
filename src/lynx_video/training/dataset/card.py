"""The card of a training set: what is in it, from what, how it was made, and what was left out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lynx_video.training.dataset.encode import Job
    from lynx_video.training.dataset.pairing import Role
    from lynx_video.training.dataset.source import Drop


def make_card(
    made_with: Mapping[str, Any], seen: int, roles: Sequence[Role], jobs: Sequence[Job], drops: Iterable[Drop]
) -> dict[str, Any]:
    """The card as plain values; `write_shards` adds format and number of examples.

    made_with: model and settings. seen: items, and what could not become one. roles: the items that stayed. jobs: those of the
    examples that are in the set.
    """
    dropped = Counter(drop.reason for drop in drops)
    targets = {job.item.key for job in jobs}
    return {
        **made_with,
        "counts": {
            "seen": seen,
            "targets": len(targets),
            "clips": len({job.item.key for job in jobs if job.kind == "clip"}),
            "references_only": len(roles) - len(targets),
            "dropped": dropped.total(),
            "people": len({job.person for job in jobs}),
            "people_named": len({job.person for job in jobs if job.item.person is not None}),
        },
        "examples_by_bucket": _sorted(Counter(str(job.view.bucket) for job in jobs)),
        "examples_by_references": _sorted(Counter(str(len(job.references)) for job in jobs)),
        "people_by_examples": _sorted(Counter(str(count) for count in Counter(job.person for job in jobs).values())),
        "dropped_by_reason": dict(sorted(dropped.items(), key=lambda pair: (-pair[1], pair[0]))),
    }


def to_markdown(card: Mapping[str, Any]) -> str:
    """The card for people."""
    counts, model, settings = card["counts"], card["model"], card["settings"]
    lines = ["# Training set", ""]
    lines += _table(
        ("", "count"),
        [
            ("items seen", counts["seen"]),
            ("learned from (targets)", counts["targets"]),
            ("of them clips", counts["clips"]),
            ("references only", counts["references_only"]),
            ("dropped", counts["dropped"]),
            ("people", counts["people"]),
            ("of them named by the source", counts["people_named"]),
        ],
    )
    lines += ["## Examples", ""]
    lines += _table(("frames x height x width", "examples"), card["examples_by_bucket"].items())
    lines += _table(("references of an example", "examples"), card["examples_by_references"].items())
    lines += _table(("examples of a person", "people"), card["people_by_examples"].items())
    lines += ["## Dropped", ""]
    lines += _table(("reason", "items"), card["dropped_by_reason"].items()) if card["dropped_by_reason"] else ["Nothing.", ""]
    lines += ["Each by name and with what exactly: `dropped.jsonl`.", ""]
    lines += ["## Made with", ""]
    lines += _table(("", ""), [*((f"model: {name}", value) for name, value in model.items()), *settings.items()])
    lines += ["## Licence and consent", "", settings["licence"] or "Nothing was noted.", ""]
    return "\n".join(lines)


def _table(head: tuple[str, str], rows: Iterable[tuple[str, Any]]) -> list[str]:
    cells = [head, *((str(name), _cell(value)) for name, value in rows)]
    widths = [max(len(row[column]) for row in cells) for column in (0, 1)]
    lines = [f"| {name:<{widths[0]}} | {value:<{widths[1]}} |" for name, value in cells]
    return [lines[0], f"| {'-' * widths[0]} | {'-' * widths[1]} |", *lines[1:], ""]


def _cell(value: Any) -> str:
    text = ", ".join(str(one) for one in value) if isinstance(value, (list, tuple)) else str(value)
    return text.replace("|", "/").replace("\n", " ")


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    """By the numbers in the names."""
    return dict(sorted(counts.items(), key=lambda pair: [int(part) for part in pair[0].split("x")]))
