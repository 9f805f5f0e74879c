"""A training set on disk: WebDataset shards, an index that finds each example in them, and what stands for a dropped condition.

    FOLDER/dataset.json            the card for programs: format, model, counts, what was dropped and why
    FOLDER/index.jsonl             a line an example: where it lies and how large it is
    FOLDER/conditions.safetensors  empty_text, reference_text, nobody_reference
    FOLDER/shards/00000.tar ...    KEY.safetensors (tensors of the example) and KEY.json (the rest), in the order of the keys

The tars are plain WebDataset shards and can be read as a stream. Training reads them in an order of its own: the index says at which
byte an example begins, so a shuffle over the whole set needs no buffer and its place can be written in a checkpoint as one number.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_video.draft import draft
from lynx_video.errors import BadData
from lynx_video.types import Example

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
CARD, INDEX, CONDITIONS, SHARDS = "dataset.json", "index.jsonl", "conditions.safetensors", "shards"
SHARD_BYTES = 256 * 2**20
_TENSORS = ("latents", "text", "faces", "references")
_WORDS = ("key", "frames", "height", "width", "caption", "person", "source", "sources")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """Where an example lies, and what must be known of it before it is read.

    offset, size: bytes of its safetensors in the shard. latent: T, h, w. text_tokens: S. The rest as in `Example`.
    """

    key: str
    shard: str
    offset: int
    size: int
    latent: tuple[int, int, int]
    text_tokens: int
    frames: int
    height: int
    width: int
    caption: str
    person: str
    source: str
    sources: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """What stands in the place of a condition that is dropped.

    empty_text: embeddings [S, D] of the empty prompt; S is the base's number of prompt tokens, zeros after the last real one.
    reference_text: [S, D] of the reference prompt. nobody_reference: [C, 1, h, w], normalised latents of an all-grey crop.
    """

    empty_text: Tensor
    reference_text: Tensor
    nobody_reference: Tensor


class Shards:
    """A training set, opened. Raises BadData for a folder that is none, of another format, or with a shard cut short."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.card = _read_card(folder)
        self.entries = _read_index(folder / INDEX)
        self.conditions = _read_conditions(folder / CONDITIONS)
        self._check_shards()

    @property
    def card_hash(self) -> str:
        """sha256 of the card, hex."""
        return hashlib.sha256((self.folder / CARD).read_bytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, entry: Entry) -> Example:
        """Read one example. Raises BadData if its bytes are not what the index says."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        file = self.folder / SHARDS / entry.shard
        try:
            with file.open("rb") as stream:
                stream.seek(entry.offset)
                tensors = load(stream.read(entry.size))
            values: dict[str, Any] = {name: tensors[name] for name in _TENSORS}
            return Example(**values, **{name: getattr(entry, name) for name in _WORDS})
        except (OSError, SafetensorError, KeyError) as error:
            raise BadData(f"{file}: example {entry.key} can't be read ({error}); build the set again.") from error

    def _check_shards(self) -> None:
        ends: dict[str, int] = {}
        for entry in self.entries:
            ends[entry.shard] = max(ends.get(entry.shard, 0), entry.offset + entry.size)
        for name, end in ends.items():
            file = self.folder / SHARDS / name
            if not file.is_file():
                raise BadData(f"{file} is not there, though {INDEX} names it; copy the whole folder, or build the set again.")
            if file.stat().st_size < end:
                raise BadData(
                    f"{file} is cut short: {file.stat().st_size} bytes, and its last example ends at {end}; copy it again, or "
                    f"build the set again."
                )


def write_shards(
    folder: Path, examples: Iterable[Example], conditions: Conditions, card: dict[str, Any], *, shard_bytes: int = SHARD_BYTES
) -> int:
    """Write a training set from examples in the order of their keys; the number written.

    The same examples give the same bytes. The card is written last: a folder without one is not a finished set.
    Raises ValueError for a key that comes twice, OSError if the disk is full.
    """
    from safetensors.torch import save

    (folder / SHARDS).mkdir(parents=True, exist_ok=True)
    (folder / CARD).unlink(missing_ok=True)
    for old in (folder / SHARDS).glob("*.tar"):
        old.unlink()
    entries: dict[str, Entry] = {}
    source = iter(examples)
    waiting = next(source, None)
    for number in count():
        if waiting is None:
            break
        name = f"{number:05d}.tar"
        with draft(folder / SHARDS / name) as partial, tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
            written = 0
            while waiting is not None and (written == 0 or written < shard_bytes):
                if waiting.key in entries:
                    raise ValueError(f"two examples have the key {waiting.key!r}")
                entries[waiting.key] = entry = _add(tar, name, waiting)
                written += entry.size
                waiting = next(source, None)
    with draft(folder / CONDITIONS) as partial:
        # Not by safetensors' own save_file: its errors do not say that the disk is full, and its files are closed to others.
        partial.write_bytes(save({one.name: getattr(conditions, one.name).contiguous() for one in fields(Conditions)}))
    with draft(folder / INDEX) as partial:
        partial.write_text("".join(json.dumps(asdict(entry)) + "\n" for entry in entries.values()), encoding="utf-8")
    with draft(folder / CARD) as partial:
        text = json.dumps({"format": FORMAT, "examples": len(entries), **card}, indent=2, sort_keys=True)
        partial.write_text(text + "\n", encoding="utf-8")
    return len(entries)


def _add(tar: tarfile.TarFile, shard: str, example: Example) -> Entry:
    from safetensors.torch import save

    tensors = save({name: getattr(example, name).contiguous() for name in _TENSORS})
    words = {name: getattr(example, name) for name in _WORDS}
    offset = 0
    for suffix, data in (("safetensors", tensors), ("json", json.dumps(words, sort_keys=True).encode())):
        member = tarfile.TarInfo(f"{example.key}.{suffix}")
        member.size = len(data)
        if suffix == "safetensors":
            offset = tar.offset + tarfile.BLOCKSIZE
        tar.addfile(member, io.BytesIO(data))
    _, frames, height, width = example.latents.shape
    return Entry(
        shard=shard, offset=offset, size=len(tensors), latent=(frames, height, width), text_tokens=len(example.text), **words
    )


def _read_card(folder: Path) -> dict[str, Any]:
    file = folder / CARD
    if not file.is_file():
        raise BadData(f"{folder} is not a finished training set: it has no {CARD}; make one with `lynx-video dataset build`.")
    try:
        card: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        found = card["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadData(f"{file} is not the card of a training set ({error!r}); build the set again.") from error
    if found != FORMAT:
        raise BadData(f"{file}: format {found!r}, this version reads format {FORMAT}; build the set again.")
    return card


def _read_index(file: Path) -> list[Entry]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        values = [json.loads(line) for line in lines]
        return [Entry(**{**value, "latent": tuple(value["latent"]), "sources": tuple(value["sources"])}) for value in values]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadData(f"{file} is not the index of a training set ({error}); build the set again.") from error


def _read_conditions(file: Path) -> Conditions:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return Conditions(**load_file(file))
    except (OSError, SafetensorError, TypeError) as error:
        raise BadData(f"{file} does not hold the conditions of a training set ({error}); build the set again.") from error
