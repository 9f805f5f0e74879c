"""Where a clip comes from: a C2PA manifest signed into the file, and what it says when it is read again.

The manifest says that the clip was made by trained algorithmic media, with which program, and holds its record (settings, seed,
versions, hashes of model, adapter and portrait, consent) in an assertion of ours. Signing needs no network and uses none; so no
authority says when it was done, only the signer's own clock.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from lynx_video import __version__
from lynx_video.draft import draft
from lynx_video.errors import BadOutput, BadRequest, LynxError
from lynx_video.media.certificate import DEVELOPMENT, Signer, native_signer, offline, read_anchors
from lynx_video.media.manifest import Unbound, boxes_digest, has_manifest, signed_certificate
from lynx_video.media.video import read_metadata

RECORD = "org.lynx-video.record"
"""Label of our assertion: {"version": 1, "record": JSON as a text, "boxes": digest of what C2PA leaves out of its hash, or null}."""
TRAINED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
State = Literal["untouched", "altered", "unsigned"]
_TYPES = {".mp4": "video/mp4", ".webp": "image/webp"}
_BOUND = {"assertion.bmffHash.match", "assertion.dataHash.match"}
_UNTRUSTED, _EXPIRED = "signingCredential.untrusted", "signingCredential.expired"
_WORDS = {
    "assertion.bmffHash.mismatch": "frames, sound or metadata are not those that were signed",
    "assertion.dataHash.mismatch": "frames or metadata are not those that were signed",
    "assertion.hashedURI.mismatch": "a statement in the manifest was changed after it was signed",
    "claimSignature.mismatch": "the signature is not of this manifest",
    "claimSignature.missing": "the signature cannot be read",
    _EXPIRED: "the signer's certificate is out of date, and no authority says that the clip is older",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """What a file says of where it comes from, and how far that can be believed."""

    state: State
    "untouched: what was signed is as it was; altered: not so, or the manifest is damaged; unsigned: there is no manifest"
    record: dict[str, Any]
    "settings of the clip; of an altered or unsigned file what it claims, which anybody could have written"
    every_bit: bool = False
    "whether untouched holds for every bit, as for clips of ours; C2PA alone leaves some open"
    generator: str = ""
    "the program that wrote the manifest, as it calls itself"
    signed_by: str = ""
    "organisation and name in the signer's certificate, which whoever made it chose; empty if unknown"
    fingerprint: str = ""
    "SHA-256 of that certificate, which nobody else has the key of; empty if unknown"
    signed_at: str = ""
    "when, in ISO 8601: by a time-stamp authority if there was one, else by the signer's own clock"
    trusted: bool = False
    "whether the certificate leads to one of the given trust anchors"
    development: bool = False
    "whether it calls itself a self-made development certificate, which proves no identity"
    problems: tuple[str, ...] = ()
    "what is wrong, in words"
    codes: tuple[str, ...] = ()
    "what is wrong, as C2PA's validation codes"

    @property
    def sentence(self) -> str:
        """State and signer in words."""
        if self.state == "unsigned":
            return "unsigned: nothing tells who made it, nor whether it was altered"
        if self.state == "altered":
            return f"altered: {'; '.join(self.problems)}"
        what = "every bit" if self.every_bit else "all that C2PA covers"
        return f"untouched: {what} is as it was signed by {self.signer}"

    @property
    def signer(self) -> str:
        """Who signed, and what that is worth."""
        if self.trusted:
            worth = "trusted: it leads to a given trust anchor"
        elif self.development:
            worth = "proves nobody's identity: anyone can make such a certificate"
        else:
            worth = "not checked: it leads to none of the given trust anchors"
        return f"{self.signed_by or 'an unknown signer'} ({worth})"


def sign(path: Path, record: Mapping[str, Any], signer: Signer, *, shown: Path | None = None) -> None:
    """Sign a finished .mp4 or .webp in place, with its record in the manifest; the file is replaced whole or stays as it was.

    record: plain JSON values. A true `watermark` in it becomes an action of the manifest, too. A manifest that is in the file is
    replaced. shown: the file's name in messages, if it is a draft.

    Raises:
        BadOutput: another extension, or the file cannot be read or written.
        BadRequest: the signer's files are gone, or no longer what they were.
        LynxError: c2pa cannot sign it, or what it signed does not verify.
        TypeError, ValueError: the record holds something that JSON does not.
    """
    import c2pa

    file, name = Path(path), shown or path
    kind = _TYPES.get(file.suffix.lower())
    if kind is None:
        raise BadOutput(f"{name}: unknown extension {file.suffix!r}; only .mp4 and .webp can be signed.")
    text = json.dumps(dict(record), allow_nan=False)
    signed = io.BytesIO()  # c2pa would hide why a disk cannot be written
    try:
        boxes = boxes_digest(file) if kind == "video/mp4" else None
        with draft(file) as partial:
            with file.open("rb") as source:
                manifest = _manifest(kind, text, boxes, watermarked=bool(record.get("watermark")))
                c2pa.Builder(manifest, context=offline()).sign(native_signer(signer), kind, source, signed)
            partial.write_bytes(signed.getbuffer())
            made = read_provenance(partial)
            if made.state != "untouched" or made.record != json.loads(text):
                raise LynxError(f"{name}: was signed, but is {made.sentence}. Is another c2pa-python installed than we know?")
    except OSError as error:
        raise BadOutput(f"{name}: cannot be signed ({error.strerror or error}).") from error
    except (c2pa.C2paError, Unbound) as error:
        raise LynxError(f"{name}: cannot be signed ({' '.join(str(error).split())}).") from error


def read_provenance(path: Path, anchors: Path | None = None) -> Provenance:
    """What a clip says of where it comes from, checked against its content. Uses no network.

    anchors: PEM file of the roots that are trusted; without it nobody is.

    Raises:
        BadRequest: no such file, neither a video nor a signed one, or no certificates in `anchors`.
    """
    import c2pa

    file = Path(path)
    if not file.is_file():
        raise BadRequest(f"{file}: {'a folder, not a video' if file.is_dir() else 'no such file'}.")
    roots = read_anchors(anchors) if anchors is not None else None
    try:
        with file.open("rb") as stream:
            head = stream.read(12)
            stream.seek(0)
            kind = "image/webp" if head[:4] + head[8:] == b"RIFFWEBP" else "video/mp4"
            report = json.loads(c2pa.Reader(kind, stream, context=offline(roots)).json())
        active = report["manifests"][report["active_manifest"]]
        results = report["validation_results"]["activeManifest"]
    except OSError as error:
        raise BadRequest(f"{file}: cannot be read ({error.strerror or error}).") from error
    except (c2pa.C2paError, ValueError, KeyError) as error:  # of a damaged manifest c2pa's report may be no report
        return _without(file, error)
    failures = {one["code"]: one.get("explanation", "") for one in results["failure"]}
    passed = {one["code"] for one in results["success"]}
    problems = [_WORDS.get(code, f"{said} ({code})") for code, said in failures.items() if code != _UNTRUSTED]
    # Valid is what has been found so, not what nothing was found against; what only ages or is unknown does not touch the bits.
    whole = not set(failures) - {_UNTRUSTED, _EXPIRED} and "claimSignature.validated" in passed and bool(passed & _BOUND)
    whole = whole and (_EXPIRED in failures or report["validation_state"] in ("Valid", "Trusted"))
    ours = _assertion(active, RECORD)
    certificate, unbound = _form(file, kind, ours)
    if ours is not None and unbound:  # what other programs sign may have other forms
        whole = False
        problems.append(unbound)
    if not whole and not problems:
        problems.append("the manifest, or one that it builds on, does not hold")
    record = _record(ours)
    info = active.get("signature_info") or {}  # c2pa calls `issuer` what the certificate says of its own organisation
    return Provenance(
        state="untouched" if whole else "altered",
        record=_metadata(file) if record is None else record,
        every_bit=whole and ours is not None,
        generator=" ".join(str(one) for one in _generator(active)),
        signed_by=", ".join(info[key] for key in ("issuer", "common_name") if info.get(key)),
        fingerprint=hashlib.sha256(certificate).hexdigest() if certificate else "",
        signed_at=info.get("time") or _when(active),
        trusted=whole and report["validation_state"] == "Trusted",
        development=info.get("issuer") == DEVELOPMENT,
        problems=tuple(problems),
        codes=tuple(failures),
    )


def _manifest(kind: str, record: str, boxes: str | None, *, watermarked: bool) -> dict[str, Any]:
    """The manifest as c2pa takes it.

    The record goes in as a text: c2pa would turn long lists of numbers into bytes and round some numbers in their last place.
    """
    agent = {"name": "lynx-video", "version": __version__}
    when = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    actions: list[dict[str, Any]] = [
        {"action": "c2pa.created", "digitalSourceType": TRAINED, "softwareAgent": agent, "when": when}
    ]
    if watermarked:  # unbound: it says that the clip was made, not which manifest is its own
        actions.append({"action": "c2pa.watermarked.unbound", "softwareAgent": agent, "when": when})
    return {
        "claim_generator_info": [agent],
        "format": kind,
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": actions}, "created": True},
            {
                "label": RECORD,
                "kind": "Json",
                "data": {"version": 1, "record": record, "boxes": boxes},
                "created": True,
            },
        ],
    }


def _form(file: Path, kind: str, ours: Mapping[str, Any] | None) -> tuple[bytes, str]:
    """The signer's certificate, and what of the form that we give a file is missing; both empty if unknown."""
    try:
        certificate = signed_certificate(file)
        if ours is not None and kind == "video/mp4" and ours.get("boxes") != boxes_digest(file):
            return certificate, "boxes beside frames and metadata are not those that were signed"
        return certificate, ""
    except Unbound as error:
        return b"", str(error)


def _without(file: Path, error: Exception) -> Provenance:
    """What is known of a file whose manifest c2pa does not find, or cannot read."""
    if has_manifest(file):
        said = " ".join(str(error).split())
        return Provenance(state="altered", record=_metadata(file), problems=(f"the manifest is damaged ({said})",))
    record = read_metadata(file)  # raises if it is no video
    versions = record.get("versions")
    ours = isinstance(versions, dict) and "lynx-video" in versions
    lost = "it has the settings of a clip of lynx-video, but no manifest: that was never there, or was taken out"
    return Provenance(state="unsigned", record=record, problems=(lost,) if ours else ())


def _metadata(file: Path) -> dict[str, Any]:
    try:
        return read_metadata(file)
    except BadRequest:  # too damaged to be a video
        return {}


def _assertion(manifest: Mapping[str, Any], label: str) -> dict[str, Any] | None:
    found = [one.get("data") for one in manifest.get("assertions", ()) if one.get("label") == label]
    return found[0] if len(found) == 1 and isinstance(found[0], dict) else None


def _record(ours: Mapping[str, Any] | None) -> dict[str, Any] | None:
    try:
        record = json.loads((ours or {}).get("record", ""))
    except (ValueError, TypeError):
        return None
    return record if isinstance(record, dict) else None


def _generator(manifest: Mapping[str, Any]) -> list[str]:
    program = (manifest.get("claim_generator_info") or [{}])[0]
    return [program[key] for key in ("name", "version") if program.get(key)]


def _when(manifest: Mapping[str, Any]) -> str:
    """The time of the first action."""
    actions = (_assertion(manifest, "c2pa.actions.v2") or {}).get("actions")
    first = actions[0] if isinstance(actions, list) and actions else None
    return str(first.get("when") or "") if isinstance(first, dict) else ""
