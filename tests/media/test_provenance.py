"""Signed clips: what they say, and that no bit of them can change unseen."""

import hashlib
import http.server
import io
import json
import os
import random
import re
import shutil
import socket
import struct
import threading
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import av
import c2pa
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization as form

from lynx_video import __version__
from lynx_video.errors import BadOutput, BadRequest, LynxError
from lynx_video.media import provenance
from lynx_video.media.certificate import DEVELOPMENT, load_signer, native_signer, offline
from lynx_video.media.manifest import C2PA_BOX, Unbound, boxes_digest, has_manifest
from lynx_video.media.provenance import RECORD, TRAINED, read_provenance, sign
from lynx_video.media.video import read_metadata, read_video, write_video

KINDS = ("mp4", "webp")
PAD = b"cpadY"  # key and head of the padding in a COSE header
RECORDED = {
    "prompt": "A person smiles.",
    "seed": 42,
    "guidance_scale": 5.0,
    "portrait_hash": "ab" * 32,
    "versions": {"lynx-video": __version__, "torch": "2.9"},
    "watermark": False,
    "consent": None,
}


def frames(seed=0, count=17):
    """A grey ramp with a block that moves: small files."""
    video = np.tile(np.linspace(40, 200, 64, dtype=np.uint8)[None, None, :, None], (count, 64, 1, 3)).copy()
    for number in range(count):
        video[number, 20:36, 2 * number : 2 * number + 16] = np.random.default_rng(seed).integers(0, 256, 3, np.uint8)
    return video


@pytest.fixture(scope="session")
def pristine(tmp_path_factory):
    """pristine("mp4") is a signed clip, beside it `unsigned.mp4` from which it was made; not to be changed."""
    folder = tmp_path_factory.mktemp("clips")
    for kind in KINDS:
        write_video(folder / f"unsigned.{kind}", frames(), 16, RECORDED)
        shutil.copy(folder / f"unsigned.{kind}", folder / f"signed.{kind}")
        sign(folder / f"signed.{kind}", RECORDED, load_signer())
    return lambda kind: folder / f"signed.{kind}"


@pytest.fixture
def changed(tmp_path):
    """changed(clip, content) is a file with this content and the clip's extension."""

    def make(clip, content):
        file = tmp_path / f"changed{clip.suffix}"
        file.write_bytes(content)
        return file

    return make


def boxes(content):
    """(kind, start, end) of the boxes of an mp4."""
    at = 0
    while at < len(content):
        length, kind = struct.unpack(">I4s", content[at : at + 8])
        if length == 1:
            length = struct.unpack(">Q", content[at + 8 : at + 16])[0]
        yield kind, at, at + length
        at += length


def place_of(kind, content, name):
    """Start and end of a box or chunk; of "manifest" the one that holds the manifest."""
    if kind == "webp":
        at = content.index(b"C2PA" if name == "manifest" else name)
        return at, at + 8 + struct.unpack("<I", content[at + 4 : at + 8])[0]
    wanted = b"uuid" if name == "manifest" else name
    return next((start, end) for found, start, end in boxes(content) if found == wanted)


def plain(content, kind="mp4"):
    """What c2pa alone says of a clip."""
    mime = {"mp4": "video/mp4", "webp": "image/webp"}[kind]
    return c2pa.Reader(mime, io.BytesIO(content), context=offline()).get_validation_state()


@pytest.mark.parametrize("kind", KINDS)
def test_an_untouched_clip_says_what_made_it(pristine, kind):
    clip, signer = pristine(kind), load_signer()
    found = read_provenance(clip)
    assert (found.state, found.every_bit, found.problems) == ("untouched", True, ())
    assert found.record == RECORDED
    assert found.generator == f"lynx-video {__version__}"
    assert found.signed_by == f"{DEVELOPMENT}, development signer"
    leaf, _ = x509.load_pem_x509_certificates(signer.certificate.read_bytes())
    assert found.fingerprint == hashlib.sha256(leaf.public_bytes(form.Encoding.DER)).hexdigest()
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", found.signed_at)
    assert (found.development, found.trusted) == (True, False)
    assert "proves nobody's identity" in found.sentence
    assert found.codes == ("signingCredential.untrusted",)


@pytest.mark.parametrize("kind", KINDS)
def test_it_says_so_in_the_words_of_c2pa_too(pristine, kind):
    report = json.loads(c2pa.Reader(pristine(kind), context=offline()).json())
    manifest = report["manifests"][report["active_manifest"]]
    said = {one["label"]: one for one in manifest["assertions"]}
    (created,) = said["c2pa.actions.v2"]["data"]["actions"]
    assert (created["action"], created["digitalSourceType"]) == ("c2pa.created", TRAINED)
    assert created["softwareAgent"] == {"name": "lynx-video", "version": __version__}
    assert json.loads(said[RECORD]["data"]["record"]) == RECORDED
    assert all(one["created"] for one in manifest["assertions"])  # the signer's own statements
    assert "thumbnail" not in manifest


def test_a_watermark_is_an_action(pristine, tmp_path):
    file = shutil.copy(pristine("mp4"), tmp_path / "marked.mp4")
    sign(file, {**RECORDED, "watermark": True}, load_signer())
    report = json.loads(c2pa.Reader(file, context=offline()).json())
    actions = report["manifests"][report["active_manifest"]]["assertions"]
    named = [one["action"] for each in actions if each["label"] == "c2pa.actions.v2" for one in each["data"]["actions"]]
    assert named == ["c2pa.created", "c2pa.watermarked.unbound"]
    assert report["validation_state"] == "Valid"


@pytest.mark.parametrize("kind", KINDS)
def test_frames_metadata_and_the_order_of_boxes_stay(pristine, kind):
    clip = pristine(kind)
    before = clip.with_name(f"unsigned.{kind}")
    for one, other in zip(read_video(clip), read_video(before), strict=True):
        assert np.array_equal(one, other)
    assert read_metadata(clip) == read_metadata(before) == RECORDED
    if kind == "mp4":
        whole, rest = clip.read_bytes(), before.read_bytes()
        assert [box for box, _, _ in boxes(rest)] == [b"ftyp", b"moov", b"free", b"mdat"]
        assert [box for box, _, _ in boxes(whole)] == [b"ftyp", b"uuid", b"moov", b"free", b"mdat"]
        start, end = place_of(kind, whole, "manifest")
        without = whole[:start] + whole[end:]
        differing = {at for at in range(len(rest)) if rest[at] != without[at]}
        assert len(rest) == len(without)
        offsets = rest.index(b"stco")
        assert differing <= set(range(offsets + 12, offsets + 16))  # where the frames begin


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("region", ["head", "frames", "metadata", "manifest"])
def test_no_changed_bit_goes_unseen(pristine, changed, kind, region):
    clip = pristine(kind)
    content = clip.read_bytes()
    names = {"frames": (b"mdat", b"ANMF"), "metadata": (b"moov", b"XMP ")}
    place = (0, 40) if region == "head" else place_of(kind, content, *[names.get(region, ("manifest",) * 2)[kind == "webp"]])
    rng = random.Random(region)
    for _ in range(400 if region == "manifest" else 80):
        at, bit = rng.randrange(*place), rng.randrange(8)
        flipped = bytearray(content)
        flipped[at] ^= 1 << bit
        found = read_provenance(changed(clip, flipped))
        assert found.state == "altered", f"bit {bit} of byte {at}"
        assert found.problems
        assert not found.trusted


@pytest.mark.parametrize("kind", KINDS)
def test_no_changed_bit_in_the_frame_of_the_manifest_goes_unseen(pristine, changed, kind):
    """Lengths, kinds and flags of its boxes, byte by byte: a sample would miss some of them, c2pa misses many."""
    clip = pristine(kind)
    content = clip.read_bytes()
    start, end = place_of(kind, content, "manifest")
    heads = [found.start() - 4 for found in re.finditer(rb"(jumb|jumd|cbor|json|c2sh)", content) if start < found.start() < end]
    flags = [content.index(b"\x38\x9b\x71", head) + 3 for head in heads if content[head + 4 : head + 8] == b"jumd"]
    assert len(flags) == 8  # store, manifest, assertions, three of them, claim, signature
    rng, valid = random.Random(kind), 0
    for at in sorted({at for head in heads for at in range(head, head + 8)} | set(flags)):
        flipped = bytearray(content)
        flipped[at] ^= 1 << rng.randrange(8)
        found = read_provenance(changed(clip, flipped))
        assert found.state == "altered", at
        valid += set(found.codes) <= {"signingCredential.untrusted"} and "damaged" not in found.problems[0]
    assert valid > 5


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_byte_outside_the_frames_changes_unseen(pristine, changed, kind):
    """One bit of each byte; with EVERY_BIT set in the environment each of its eight, which takes eight times as long."""
    clip = pristine(kind)
    content = clip.read_bytes()
    skipped = range(*place_of(kind, content, b"mdat" if kind == "mp4" else b"ANMF"))
    rng = random.Random(kind)
    for at in (at for at in range(len(content)) if at not in skipped or at - skipped.start < 8):
        for bit in range(8) if "EVERY_BIT" in os.environ else (rng.randrange(8),):
            flipped = bytearray(content)
            flipped[at] ^= 1 << bit
            assert read_provenance(changed(clip, flipped)).state == "altered", f"bit {bit} of byte {at}"


def test_what_c2pa_leaves_open_is_closed(pristine, changed, tmp_path):
    """Each of these is valid for c2pa alone; without that, the test shows nothing."""
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(pristine("mp4").with_name("unsigned.mp4").read_bytes() + b"\0\0\0\x10free" + b"whatever")
    sign(clip, RECORDED, load_signer())
    content = clip.read_bytes()
    start, end = place_of("mp4", content, "manifest")
    free = b"\0\0\0\x10free" + b"12345678"
    longer = struct.pack(">I", end - start + 8) + content[start + 4 : end] + b"\0\0\0\x08free"
    padding = content.index(PAD) + 300
    cases = {
        "brand": content.replace(b"ftypisom", b"ftypmp42"),
        "content of a free box": content.replace(b"freewhatever", b"freewhatsoev"),
        "appended free box": content + free,
        "appended skip box": content + free.replace(b"free", b"skip"),
        "appended mfra box": content + b"\0\0\0\x08mfra",
        "second manifest box": content + b"\0\0\0\x28uuid" + C2PA_BOX + b"\0\0\0\0strange\0\0\0\0\0",
        "padding of the signature": content[:padding] + b"!" + content[padding + 1 :],
        "name of the assertions": content.replace(b"c2pa.assertions\0", b"c2pa.assertionz\0", 1),
        "version of the box": content[: start + 24] + b"\1" + content[start + 25 :],
        "behind the manifest": content[:start] + longer + content[end:],
    }
    for what, other in cases.items():
        assert other != content, what
        if what not in ("name of the assertions", "behind the manifest"):
            assert plain(other) == "Valid", what
        found = read_provenance(changed(clip, other))
        assert found.state == "altered", what
        assert found.record == RECORDED


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_or_longer_file_is_altered(pristine, changed, kind):
    clip = pristine(kind)
    content = clip.read_bytes()
    start, end = place_of(kind, content, "manifest")
    for length in {len(content) - 1, len(content) - 100, (start + end) // 2, start + 300, (len(content) + end) // 2 - 20}:
        assert read_provenance(changed(clip, content[:length])).state == "altered", length
    with pytest.raises(BadRequest, match="not a video"):  # nor the manifest is left of it
        read_provenance(changed(clip, content[: min(start, 900)]))
    for more in (b"\0", b"x" * 100, content[-1000:]):
        assert read_provenance(changed(clip, content + more)).state == "altered"
    assert read_provenance(changed(clip, content)).state == "untouched"


def test_changed_metadata_is_seen(pristine, changed):
    for kind, written in (("mp4", b'"seed": 42'), ("webp", b'"seed": 42')):
        clip = pristine(kind)
        content = clip.read_bytes()
        assert content.count(written) == 1
        file = changed(clip, content.replace(written, b'"seed": 43'))
        assert read_metadata(file)["seed"] == 43
        found = read_provenance(file)
        assert found.state == "altered"
        assert found.record["seed"] == 42
        assert re.search("metadata are not those that were signed", found.sentence)


def test_a_changed_record_is_seen(pristine, changed):
    for kind in KINDS:
        clip = pristine(kind)
        content = clip.read_bytes()
        assert content.count(rb"\"seed\": 42") == 1
        found = read_provenance(changed(clip, content.replace(rb"\"seed\": 42", rb"\"seed\": 43")))
        assert found.state == "altered"
        assert "a statement in the manifest was changed after it was signed" in found.problems
        assert found.record["seed"] == 43  # what it claims


def _remuxed(source, target, *, drop):
    """The same packets in a new file, without the last `drop`."""
    with av.open(str(source)) as old, av.open(str(target), "w", format="mp4", options={"movflags": "+faststart"}) as new:
        new.metadata.update(old.metadata)
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [packet for packet in old.demux(video=0) if packet.dts is not None]
        for packet in packets[: len(packets) - drop]:
            packet.stream = stream
            new.mux(packet)


def test_a_cut_frame_is_seen_with_and_without_the_manifest(pristine, tmp_path):
    clip, cut = pristine("mp4"), tmp_path / "cut.mp4"
    _remuxed(clip, cut, drop=1)
    assert len(read_video(cut)[0]) == len(read_video(clip)[0]) - 1
    found = read_provenance(cut)
    assert (found.state, found.record) == ("unsigned", RECORDED)
    assert "no manifest" in found.problems[0]
    content, rest = clip.read_bytes(), cut.read_bytes()
    start, end = place_of("mp4", content, "manifest")
    box, head = content[start:end], rest.index(b"moov") - 4
    cut.write_bytes(rest[:head] + box + rest[head:])
    assert read_provenance(cut).state == "altered"
    write_video(cut, read_video(clip)[0][:-1], 16, RECORDED)  # encoded again
    assert read_provenance(cut).state == "unsigned"


@pytest.mark.parametrize("kind", KINDS)
def test_the_manifest_of_another_clip_is_seen(pristine, tmp_path, kind):
    one, other = pristine(kind), tmp_path / f"other.{kind}"
    write_video(other, frames(seed=1), 16, RECORDED)
    sign(other, RECORDED, load_signer())
    first, second = one.read_bytes(), other.read_bytes()
    (start, end), (begin, stop) = place_of(kind, first, "manifest"), place_of(kind, second, "manifest")
    assert end - start == stop - begin
    swapped = tmp_path / f"swapped.{kind}"
    for content in (first[:start] + second[begin:stop] + first[end:], second[:begin] + first[start:end] + second[stop:]):
        swapped.write_bytes(content)
        assert read_provenance(swapped).state == "altered"


def test_two_manifests_are_one_too_many(pristine, changed):
    clip = pristine("mp4")
    content = clip.read_bytes()
    start, end = place_of("mp4", content, "manifest")
    file = changed(clip, content + content[start:end])
    assert read_provenance(file).state == "altered"


def test_unsigned_clips_and_what_is_no_clip(tmp_path, pristine):
    foreign = tmp_path / "foreign.mp4"
    write_video(foreign, frames(), 16)
    found = read_provenance(foreign)
    assert (found.state, found.record, found.problems, found.signed_by) == ("unsigned", {}, (), "")
    lost = read_provenance(pristine("webp").with_name("unsigned.webp"))
    assert (lost.state, lost.record) == ("unsigned", RECORDED)
    assert "was never there, or was taken out" in lost.problems[0]
    text = tmp_path / "text.mp4"
    for content in (b"hello", b"", bytes(10_000), pristine("mp4").with_name("unsigned.mp4").read_bytes()[:500]):
        text.write_bytes(content)
        with pytest.raises(BadRequest, match=r"text\.mp4: not a video"):
            read_provenance(text)
    with pytest.raises(BadRequest, match="no such file"):
        read_provenance(tmp_path / "none.mp4")
    with pytest.raises(BadRequest, match="a folder"):
        read_provenance(tmp_path)


@pytest.mark.parametrize("kind", ["es256", "es384", "es512", "ed25519", "ps256"])
def test_ones_own_key_by_path(pristine, tmp_path, issue, kind):
    papers, other = issue(kind=kind), issue("other")
    for extension in KINDS:
        file = shutil.copy(pristine(extension), tmp_path / f"own.{extension}")
        sign(file, RECORDED, load_signer(papers.key, papers.certificate))
        found = read_provenance(file, papers.root)
        assert (found.state, found.trusted, found.development) == ("untouched", True, False)
        assert found.signed_by == "Example Studio, signer"
        assert found.codes == ()
        assert "trusted: it leads to a given trust anchor" in found.sentence
        for anchors in (None, other.root):
            found = read_provenance(file, anchors)
            assert (found.state, found.trusted) == ("untouched", False)
            assert "not checked: it leads to none of the given trust anchors" in found.sentence


def test_a_development_certificate_is_trusted_where_its_root_is_an_anchor(pristine):
    roots = load_signer().certificate.with_name("development-roots.pem")
    found = read_provenance(pristine("mp4"), roots)
    assert (found.trusted, found.development) == (True, True)


def test_one_who_signs_an_altered_clip_anew_is_shown(pristine, tmp_path, issue):
    """Under the very names of the first signer: names prove nothing, fingerprint and anchors do."""
    first, thief = issue("signer"), issue("thief")
    mine, theirs = tmp_path / "mine.mp4", tmp_path / "theirs.mp4"
    shutil.copy(pristine("mp4"), mine)
    sign(mine, RECORDED, load_signer(first.key, first.certificate))
    write_video(theirs, frames(seed=5), 16, RECORDED)
    again = issue("signer")  # the same names, another key
    sign(theirs, RECORDED, load_signer(again.key, again.certificate))
    assert thief.root.read_bytes() != again.root.read_bytes()
    found = read_provenance(theirs)
    assert (found.state, found.signed_by) == ("untouched", read_provenance(mine).signed_by)
    assert found.fingerprint != read_provenance(mine).fingerprint


def test_a_certificate_that_ends_after_signing_leaves_the_bits_untouched(pristine, tmp_path, issue):
    for seconds in (3, 12, 48):  # on a busy machine a short life is over before the clip is signed
        end = time.monotonic() + seconds
        papers = issue(until=timedelta(seconds=seconds))
        file = Path(shutil.copy(pristine("mp4"), tmp_path / "old.mp4"))
        with suppress(BadRequest):
            sign(file, RECORDED, load_signer(papers.key, papers.certificate))
            if read_provenance(file, papers.root).trusted:
                break
    else:
        pytest.fail("nothing could be signed in 48 s")
    time.sleep(max(0.0, end - time.monotonic()) + 1.1)  # certificates count whole seconds
    found = read_provenance(file, papers.root)
    assert (found.state, found.trusted) == ("untouched", False)
    assert "out of date" in found.problems[0]
    assert "signingCredential.expired" in found.codes
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert read_provenance(file, papers.root).state == "altered"
    with pytest.raises(BadRequest, match="is not now"):
        load_signer(papers.key, papers.certificate)


def test_a_record_comes_back_exactly(pristine, tmp_path):
    rng = random.Random(0)
    record = {
        "floats": [rng.random() * 10.0 ** rng.randrange(-9, 9) for _ in range(500)] + [1e22, -0.0, 5e-324],
        "integers": [0, 2**53 + 1, 2**63 - 1, 2**80, -(2**63)],
        "steps": list(range(300)),
        "text": 'ü\u0000\u2028 😀 "quoted" \\ </x:xmpmeta>',
        "nothing": None,
        "nested": {"z": [{}], "a": True},
    }
    file = shutil.copy(pristine("webp"), tmp_path / "clip.webp")
    sign(file, record, load_signer())
    assert read_provenance(file).record == record
    assert list(read_provenance(file).record) == list(record)


def test_signing_again_replaces_the_manifest(pristine, tmp_path):
    for kind in KINDS:
        file = shutil.copy(pristine(kind), tmp_path / f"clip.{kind}")
        sign(file, {"seed": 7}, load_signer())
        assert read_provenance(file).record == {"seed": 7}
        mark = C2PA_BOX if kind == "mp4" else b"C2PA"
        assert file.read_bytes().count(mark + (b"\0\0\0\0manifest" if kind == "mp4" else b"")) == 1


def test_nothing_but_the_record_tells_of_the_maker(tmp_path):
    file = tmp_path / "a-name-that-nobody-should-know.mp4"
    private = {**RECORDED, "prompt": None, "private": True}
    write_video(file, frames(), 16, private)
    sign(file, private, load_signer())
    content = file.read_bytes()
    assert read_provenance(file).record["prompt"] is None
    for told in ("smiles", file.stem, str(tmp_path), str(Path.home()), socket.gethostname()):
        assert told.encode() not in content or len(told) < 5  # as short as "vm" it is found in any file


def test_a_file_that_cannot_be_signed_stays_as_it_was(pristine, tmp_path, issue, monkeypatch):
    file = shutil.copy(pristine("mp4").with_name("unsigned.mp4"), tmp_path / "clip.mp4")
    before, papers = file.read_bytes(), issue()
    signer = load_signer(papers.key, papers.certificate)
    there = sorted(tmp_path.iterdir())

    def refused(error, said, record=RECORDED, target=file):
        with pytest.raises(error, match=said):
            sign(target, record, signer)
        assert file.read_bytes() == before

    refused(ValueError, "not JSON compliant", {"similarity": float("nan")})
    refused(TypeError, "not JSON serializable", {"portrait": b"picture"})
    other = tmp_path / "clip.avi"
    refused(BadOutput, r"clip\.avi: unknown extension '\.avi'", target=other)
    refused(BadOutput, r"none\.mp4: cannot be signed \(No such file", target=tmp_path / "none.mp4")
    with monkeypatch.context() as patch:

        def full(*_):
            raise OSError(28, "No space left on device")

        patch.setattr(Path, "write_bytes", full)
        refused(BadOutput, r"clip\.mp4: cannot be signed \(No space left on device\)")
    with monkeypatch.context() as patch:  # a c2pa that signs something else than it is told
        patch.setattr(
            provenance,
            "boxes_digest",
            lambda file: boxes_digest(file)[::-1] if file == tmp_path / "clip.mp4" else boxes_digest(file),
        )
        refused(LynxError, "was signed, but is altered")
    key = papers.key.read_bytes()
    papers.key.unlink()
    refused(BadRequest, "the key cannot be read")
    papers.key.write_bytes(key)
    assert sorted(tmp_path.iterdir()) == there
    sign(file, RECORDED, signer)
    assert read_provenance(file).state == "untouched"
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(before[:700])
    with pytest.raises(LynxError, match=r"shown\.mp4: cannot be signed \(the boxes do not add up"):
        sign(broken, RECORDED, signer, shown=Path("shown.mp4"))
    assert broken.read_bytes() == before[:700]


def test_boxes_of_more_than_4_gib_have_another_head(pristine, tmp_path):
    """ffmpeg leaves an empty box before the frames, so that a long length has room."""
    content = pristine("mp4").with_name("unsigned.mp4").read_bytes()
    start, _ = place_of("mp4", content, b"free")
    head = struct.pack(">I4sQ", 1, b"mdat", len(content) - start)
    file = tmp_path / "long.mp4"
    file.write_bytes(content[:start] + head + content[start + 16 :])
    assert np.array_equal(read_video(file)[0], frames_of(pristine("mp4")))
    sign(file, RECORDED, load_signer())
    assert read_provenance(file).state == "untouched"
    assert np.array_equal(read_video(file)[0], frames_of(pristine("mp4")))
    with pytest.raises(Unbound):
        boxes_digest(shutil.copy(pristine("webp"), tmp_path / "no.mp4"))


def frames_of(clip):
    return read_video(clip)[0]


def signed_elsewhere(content, *, remote=None):
    """A clip with a manifest of another program."""
    manifest = {
        "claim_generator_info": [{"name": "Another Editor", "version": "9"}],
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": TRAINED}]}}
        ],
    }
    builder = c2pa.Builder(manifest, context=offline())
    if remote:
        builder.set_no_embed()
        builder.set_remote_url(remote)
    out = io.BytesIO()
    builder.sign(native_signer(load_signer()), "video/mp4", io.BytesIO(content), out)
    return out.getvalue()


def test_manifests_of_other_programs_are_read_too(pristine, tmp_path):
    file = tmp_path / "foreign.mp4"
    content = signed_elsewhere(pristine("mp4").with_name("unsigned.mp4").read_bytes())
    file.write_bytes(content)
    found = read_provenance(file)
    assert (found.state, found.generator, found.every_bit) == ("untouched", "Another Editor 9", False)
    assert "all that C2PA covers is as it was signed" in found.sentence
    assert found.record == RECORDED  # of the container: the manifest has none of ours
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert read_provenance(file).state == "altered"


@pytest.fixture
def listener():
    """The address of a server at this machine, and the requests that reached it."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def handle(self):
            asked.append(self.rfile.readline())

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", asked
    server.shutdown()
    server.server_close()


def test_neither_signing_nor_reading_asks_the_network(pristine, tmp_path, issue, listener):
    address, asked = listener
    papers = issue(url=address)  # where its revocation could be asked
    file = shutil.copy(pristine("mp4"), tmp_path / "clip.mp4")
    sign(file, RECORDED, load_signer(papers.key, papers.certificate))
    assert read_provenance(file, papers.root).trusted
    away = tmp_path / "away.mp4"
    away.write_bytes(signed_elsewhere(pristine("mp4").with_name("unsigned.mp4").read_bytes(), remote=address))
    assert read_provenance(away).state == "unsigned"
    assert asked == []
    with pytest.raises(c2pa.C2paError):  # but c2pa would ask, if it were let
        c2pa.Reader("video/mp4", io.BytesIO(away.read_bytes()), context=c2pa.Context.from_dict({}))
    assert len(asked) == 1


def test_has_manifest(pristine):
    assert has_manifest(pristine("mp4"))
    assert has_manifest(pristine("webp"))
    assert not has_manifest(pristine("mp4").with_name("unsigned.mp4"))
