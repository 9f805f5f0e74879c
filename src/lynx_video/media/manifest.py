"""The bytes of a signed clip that neither the C2PA signature nor the C2PA hash holds fast, and what holds them here.

C2PA leaves some bytes of a file free to change: in an mp4 whole boxes (`ftyp`, `free`, `skip`, `mfra`), and in every manifest
names, flags, lengths and padding around what is hashed and signed. A clip of ours has none such: the boxes are in a digest that
`provenance` signs (`boxes_digest`), and the manifest must have the one form in which it was written (`signed_certificate`).

    mp4   uuid box, second in the file:  id, version 0, "manifest", 0, store
    webp  C2PA chunk:                    store
    store                                jumb c2pa > jumb urn:c2pa:... > jumb c2pa.assertions > jumb ..., one for each assertion
                                                                         jumb c2pa.claim.v2 > cbor
                                                                         jumb c2pa.signature > cbor (COSE: header, padding, signature)

Source: C2PA specification 2.1, sections 11 (manifests), 13 (cryptography), 18.6 (BMFF-based hash), appendix A (embedding).
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

C2PA_BOX = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
UNHASHED = (b"ftyp", b"free", b"skip", b"mfra")
"""Boxes that the C2PA hash of an mp4 leaves out, beside the manifest's own."""
_TYPE = bytes.fromhex("00110010800000aa00389b71")  # what follows the four letters in the id of a JUMBF type


class Unbound(ValueError):
    """Something in the file is not in the form in which it was signed."""


class Box(NamedTuple):
    """A box of an mp4 file: its kind, where it begins, where its body begins, where it ends."""

    kind: bytes
    start: int
    body: int
    end: int


def has_manifest(path: Path) -> bool:
    """Whether there is a C2PA manifest, or what is left of one, anywhere in a file."""
    with path.open("rb") as stream:
        try:
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return any(content.find(mark) >= 0 for mark in (_TYPE, C2PA_BOX))
        except ValueError:  # an empty file
            return False


def boxes_digest(path: Path) -> str:
    """SHA-256 of the order and sizes of an mp4's boxes and of the content of those that C2PA does not hash; the manifest apart.

    Raises Unbound if the boxes do not add up to the file.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for box in _boxes(stream):
            if _is_manifest(stream, box):
                continue
            digest.update(box.kind + struct.pack(">Q", box.end - box.start))
            if box.kind in UNHASHED:
                stream.seek(box.start)
                digest.update(stream.read(box.end - box.start))
    return digest.hexdigest()


def signed_certificate(path: Path) -> bytes:
    """The signer's certificate (DER) in the manifest of a clip. Raises Unbound if the manifest has another form than ours."""
    with path.open("rb") as stream:
        head = stream.read(12)
        store = _webp_store(stream) if head[:4] == b"RIFF" else _mp4_store(stream)
    manifest = _only(_jumbf(_only([store], b"jumb"), b"c2pa", b"c2pa"), b"jumb")
    parts = _jumbf(manifest, b"c2ma", None)
    if [kind for kind, _ in parts] != [b"jumb"] * 3:
        raise Unbound("the manifest does not consist of assertions, claim and signature")
    assertions, claim, signature = (body for _, body in parts)
    for kind, assertion in _jumbf(assertions, b"c2as", b"c2pa.assertions"):
        form = assertion[8:12]
        if kind != b"jumb" or form not in (b"cbor", b"json"):
            raise Unbound("an assertion is neither cbor nor json")
        _only(_jumbf(assertion, form, None), form)
    _only(_jumbf(claim, b"c2cl", b"c2pa.claim.v2"), b"cbor")
    return _cose_certificate(_only(_jumbf(signature, b"c2cs", b"c2pa.signature"), b"cbor"))


def _boxes(stream: BinaryIO) -> Iterator[Box]:
    size, at = stream.seek(0, 2), 0
    while at < size:
        stream.seek(at)
        head = stream.read(16)
        if len(head) < 8:
            raise Unbound("there is something behind the last box")
        length, kind = struct.unpack(">I4s", head[:8])
        body = at + 8
        if length == 1 and len(head) == 16:
            length, body = struct.unpack(">Q", head[8:])[0], at + 16
        if not body - at <= length <= size - at:
            raise Unbound("the boxes do not add up to the file")
        yield Box(kind, at, body, at + length)
        at += length


def _is_manifest(stream: BinaryIO, box: Box) -> bool:
    if box.kind != b"uuid":
        return False
    stream.seek(box.body)
    return stream.read(16) == C2PA_BOX


def _mp4_store(stream: BinaryIO) -> tuple[bytes, bytes]:
    """The manifest store, a box."""
    boxes = list(_boxes(stream))
    if [number for number, box in enumerate(boxes) if _is_manifest(stream, box)] != [1]:
        raise Unbound("the manifest is not the second box, or there are two")
    stream.seek(boxes[1].body)
    body = stream.read(boxes[1].end - boxes[1].body)
    # Version and flags 0, and no Merkle tree.
    around, store = C2PA_BOX + bytes(4) + b"manifest\0" + bytes(8), _split(body[37:])
    if boxes[1].body - boxes[1].start != 8 or not body.startswith(around) or len(store) != 1:
        raise Unbound("there is something around the manifest")
    return store[0]


def _webp_store(stream: BinaryIO) -> tuple[bytes, bytes]:
    """The manifest store, a box; all around its chunk is in the C2PA hash."""
    size, at, found = stream.seek(0, 2), 12, list[bytes]()
    while at < size:
        stream.seek(at)
        kind, length = struct.unpack("<4sI", stream.read(8).ljust(8, b"\0"))
        if kind == b"C2PA":
            found.append(stream.read(length))
        at += 8 + length + length % 2
    store = _split(b"".join(found))
    if len(found) != 1 or len(store) != 1:
        raise Unbound("there is not one manifest")
    return store[0]


def _split(data: bytes) -> list[tuple[bytes, bytes]]:
    """The boxes that data consists of: kind and content."""
    parts, at = [], 0
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8].ljust(8, b"\0"))
        if not 8 <= length <= len(data) - at:
            raise Unbound("the boxes of the manifest do not add up")
        parts.append((kind, data[at + 8 : at + length]))
        at += length
    return parts


def _only(boxes: list[tuple[bytes, bytes]], kind: bytes) -> bytes:
    """The content of the one box that there is, of this kind."""
    if [found for found, _ in boxes] != [kind]:
        raise Unbound(f"there is not just one {kind.decode()} box where it should be")
    return boxes[0][1]


def _jumbf(body: bytes, form: bytes, label: bytes | None) -> list[tuple[bytes, bytes]]:
    """The boxes within a JUMBF box of this form, and label if one is given."""
    described, *content = _split(body)
    description = described[1]
    name, _, private = description[17:].partition(b"\0")
    salt = [kind for kind, _ in _split(private)]
    if described[0] != b"jumd" or description[:16] != form + _TYPE or (label is not None and name != label):
        raise Unbound(f"the {form.decode()} box is called otherwise")
    if salt not in ([], [b"c2sh"]) or description[16] != (0x13 if salt else 0x03):
        raise Unbound(f"the {form.decode()} box has other flags")
    return content


def _cose_certificate(data: bytes) -> bytes:
    """The signer's certificate in a COSE_Sign1 whose unprotected header holds nothing but zeros."""
    if data[:2] != b"\xd2\x84":
        raise Unbound("the signature is no COSE_Sign1")
    header, at = _text(data, 2, 2)
    entries, at = _head(data, at, 5)
    for _ in range(entries):
        name, at = _text(data, at, 3)
        padding, at = _text(data, at, 2)
        if name not in (b"pad", b"pad2") or any(padding):
            raise Unbound("there is something in the padding of the signature")
    if data[at : at + 1] != b"\xf6" or _text(data, at + 1, 2)[1] != len(data):
        raise Unbound("there is something beside the signature")
    return _certificate(header)


def _certificate(header: bytes) -> bytes:
    """The first certificate of a protected COSE header, which holds the algorithm (1, a number) and the chain (33)."""
    entries, at = _head(header, 0, 5)
    for _ in range(entries):
        key, at = _head(header, at, 0)
        if key == 1:
            _, at = _head(header, at, 1)
        elif key == 33:
            if header[at] >> 5 == 4:
                _, at = _head(header, at, 4)
            return _text(header, at, 2)[0]
    raise Unbound("the signature names no certificate")


def _head(data: bytes, at: int, major: int) -> tuple[int, int]:
    """The number in the head of a CBOR item of this major type, and where the head ends."""
    if at >= len(data) or data[at] >> 5 != major or data[at] & 31 > 27:
        raise Unbound("the signature has another form")
    number = data[at] & 31
    if number < 24:
        return number, at + 1
    length = 1 << (number - 24)
    return int.from_bytes(data[at + 1 : at + 1 + length], "big"), at + 1 + length


def _text(data: bytes, at: int, major: int) -> tuple[bytes, int]:
    """A CBOR byte (2) or text (3) string, and where it ends."""
    length, at = _head(data, at, major)
    if at + length > len(data):
        raise Unbound("the signature is cut")
    return data[at : at + length], at + length
