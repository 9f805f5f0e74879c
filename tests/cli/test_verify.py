"""`lynx-video verify`: clips untouched, altered and unsigned, as a person and as a program are told of them."""

import json

import numpy as np
import pytest

from lynx_video.media.certificate import DEVELOPMENT, load_signer
from lynx_video.media.provenance import sign
from lynx_video.media.video import write_video
from lynx_video.media.watermark import mark

RECORD = {
    "model": "nano",
    "arm": "full",
    "preset": "exact",
    "base": "nano base",
    "base_hash": "b" * 64,
    "adapter_hash": "a" * 64,
    "lora_hash": "",
    "portrait_hash": "c" * 64,
    "prompt": "A person smiles.\nAnd waves.",
    "seed": 42,
    "versions": {"lynx-video": "0.1.0", "torch": "2.9.1"},
    "consent": "The sitter, in writing.",
    "watermark": True,
    "private": False,
}


@pytest.fixture
def clip(tmp_path):
    """clip("name.mp4", ...) is a signed clip with the watermark, but for what is changed in its record."""
    rows = np.linspace(60, 190, 64, dtype=np.uint8)
    frames = np.stack([np.roll(np.tile(rows[:, None, None], (1, 64, 3)), number, 0) for number in range(17)])

    def make(name="clip.mp4", *, signed=True, **changes):
        record = {**RECORD, **changes}
        write_video(tmp_path / name, mark(frames) if record["watermark"] else frames, 16, record)
        if signed:
            sign(tmp_path / name, record, load_signer())
        return tmp_path / name

    return make


def flip(file):
    """Change one bit of the frames."""
    content = bytearray(file.read_bytes())
    content[-9] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webp"])
def test_an_untouched_clip(lynx, clip, name):
    file = clip(name)
    done = lynx("verify", file)
    assert (done.code, done.err) == (0, "")
    first, *lines = done.out.splitlines()
    assert first.startswith(f"{file}: untouched: every bit is as it was signed by {DEVELOPMENT}")
    assert "proves nobody's identity" in first
    said = dict(line.strip().split(": ", 1) for line in lines)
    assert said["made with"].startswith("lynx-video ")
    assert said["model"] == "nano, full, exact"
    assert (said["base"], said["adapter"]) == (f"nano base, {'b' * 64}", "a" * 64)
    assert said["portrait"] == "c" * 64
    assert said["prompt"] == "A person smiles. And waves."
    assert (said["seed"], said["consent"]) == ("42", "The sitter, in writing.")
    assert said["versions"] == "lynx-video 0.1.0, torch 2.9.1"
    assert said["signed"].endswith("(by its own account)")
    assert said["watermark"].startswith("found, score ")
    assert "LoRAs" not in said


def test_an_altered_clip(lynx, clip):
    file = clip()
    flip(file)
    done = lynx("verify", file)
    assert done.code == 1
    sentence = f"{file} is altered: frames, sound or metadata are not those that were signed."
    assert done.err == f"error: {sentence}\n"
    assert "anybody could have written it" in done.out
    assert "   seed: 42" in done.out


def test_an_unsigned_clip(lynx, clip):
    file = clip(signed=False)
    done = lynx("verify", file)
    assert done.code == 1
    assert done.err == f"error: {file} is unsigned: nothing tells who made it, nor whether it was altered.\n"
    assert "no manifest: that was never there, or was taken out" in done.out
    assert "watermark: found" in done.out


def test_what_programs_are_told(lynx, clip):
    file = clip()
    facts = json.loads(lynx("verify", file, "--json").out)["clips"]
    assert len(facts) == 1
    assert (facts[0]["clip"], facts[0]["state"], facts[0]["record"]) == (str(file), "untouched", RECORD)
    assert (facts[0]["development"], facts[0]["trusted"]) == (True, False)
    assert facts[0]["watermark"]["found"] is True
    assert facts[0]["watermark"]["score"] >= facts[0]["watermark"]["threshold"]
    flip(file)
    done = lynx("verify", file, "--json", "--no-watermark")
    (fact,) = json.loads(done.out)["clips"]
    assert (done.code, fact["state"], fact["watermark"]) == (1, "altered", None)
    assert "assertion.bmffHash.mismatch" in fact["codes"]


def test_anchors_make_a_signer_trusted(lynx, clip, tmp_path):
    file = clip()
    roots = load_signer().certificate.with_name("development-roots.pem")
    done = lynx("verify", file, "--trust-anchors", roots)
    assert done.code == 0
    assert "(trusted: it leads to a given trust anchor)" in done.out
    wrong = tmp_path / "roots.pem"
    wrong.write_text("nothing")
    done = lynx("verify", file, "--trust-anchors", wrong)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {wrong}: no certificate in PEM form")


def test_several_clips_end_as_the_worst(lynx, clip):
    whole, bare, cut = clip("one.mp4"), clip("two.webp", signed=False), clip("three.mp4")
    flip(cut)
    done = lynx("verify", whole, bare, cut, "--no-watermark")
    assert done.code == 1
    states = [line.split(": ")[1] for line in done.out.splitlines() if not line.startswith(" ")]
    assert states == ["untouched", "unsigned", "altered"]
    assert f"{bare} is unsigned" in done.err
    assert f"{cut} is altered" in done.err
    assert str(whole) not in done.err
    assert len(done.err.splitlines()) == 1


def test_what_is_no_clip(lynx, clip, tmp_path):
    text = tmp_path / "text.mp4"
    text.write_text("hello")
    for file, said in ((tmp_path / "none.mp4", "no such file"), (text, "not a video that can be read"), (tmp_path, "a folder")):
        done = lynx("verify", clip(), file)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith(f"error: {file}: {said}")
    assert lynx("verify").code == 2


def test_a_clip_too_damaged_to_look_into_is_still_told_of(lynx, clip):
    file = clip()
    content = file.read_bytes()
    at = content.index(b"moov")
    file.write_bytes(content[:at] + b"moox" + content[at + 4 :])
    done = lynx("verify", file)
    assert done.code == 1
    assert "watermark: cannot be looked for: " in done.out
    assert done.err.startswith(f"error: {file} is altered")


def test_private_and_unmarked_clips_say_so(lynx, clip):
    private = lynx("verify", clip(prompt=None, private=True, consent=None)).out
    assert "   prompt: private\n" in private
    assert "   consent: none recorded\n" in private
    unmarked = lynx("verify", clip(watermark=False, no_watermark_reason="a test of the camera")).out
    assert "   watermark: not found, score " in unmarked
    assert "(switched off: a test of the camera)" in unmarked


def test_a_clip_has_no_power_over_the_terminal(lynx, clip):
    done = lynx("verify", clip(prompt="\x1b[2Jgone\x07", consent="a\r\nerror: b", arm="\x9b31m"))
    assert done.code == 0
    assert not [letter for letter in done.out if not letter.isprintable() and letter != "\n"]
    assert "   consent: a  error: b\n" in done.out
