"""Bad requests end in one sentence that names what is wrong, with exit code 2, no traceback and nothing left behind."""

import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from lynx_video.media.image import write_picture
from lynx_video.pipeline.models import NANO

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = ("--num-frames", 5, "--height", 64, "--width", 64, "--num-inference-steps", 2)


def png(width, height):
    """A PNG of that size as far as its header tells; there are no pixels in it."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def cut(source, target):
    data = source.read_bytes()
    target.write_bytes(data[: len(data) // 2])


@pytest.fixture
def world(tmp_path):
    """A folder with everything that is wrong in it."""
    files = tmp_path / "in"
    files.mkdir()
    (files / "text.png").write_text("no picture")
    (files / "empty.png").write_bytes(b"")
    (files / "pixel.png").write_bytes(png(1, 1))
    (files / "huge.png").write_bytes(png(10_000, 10_000))
    cut(GOLDEN / "subject.png", files / "cut.png")
    write_picture(files / "wall.png", np.full((128, 128, 3), 90, np.uint8))
    (files / "there.mp4").write_bytes(b"mine")
    (files / "blank.txt").write_text(" \n")
    (files / "bytes.txt").write_bytes(b"\xff\xfe\x00\x9f")
    (files / "record.json").write_text('{"points": []}')
    for name in ("cut", "mixed", "lacking"):
        shutil.copytree(GOLDEN / "lynx_full", files / name)
    cut(GOLDEN / "lynx_full" / "ip_layers.safetensors", files / "cut" / "ip_layers.safetensors")
    shutil.copy(GOLDEN / "lynx_lite" / "resampler.safetensors", files / "mixed" / "resampler.safetensors")
    (files / "lacking" / "ref_layers.safetensors").unlink()
    for name in ("cut_base", "other_base", "foreign_base"):
        shutil.copytree(GOLDEN / "base", files / name)
    weights = Path("transformer") / "diffusion_pytorch_model.safetensors"
    cut(GOLDEN / "base" / weights, files / "cut_base" / weights)
    config = files / "other_base" / "transformer" / "config.json"
    config.write_text(config.read_text().replace('"attention_head_dim": 24', '"attention_head_dim": 12'))
    config = files / "foreign_base" / "transformer" / "config.json"
    config.write_text(config.read_text().replace("WanTransformer3DModel", "FluxTransformer2DModel"))
    locked = files / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    return files


def listing(folder):
    return sorted((str(file.relative_to(folder)), file.stat().st_size) for file in folder.rglob("*"))


def bad_additions(files):
    """(name, what spoils a good request to `generate`, what the sentence names)."""
    picture, base, output, absent = "--subject-image", "--base-model-path", "--output", files / "absent"
    yield from (
        ("picture missing", [picture, absent], "absent: no such file"),
        ("picture a folder", [picture, files], "a folder, not a picture"),
        ("picture empty", [picture, files / "empty.png"], "empty.png"),
        ("picture no picture", [picture, files / "text.png"], "text.png: not a picture"),
        ("picture cut", [picture, files / "cut.png"], "cut.png"),
        ("picture of a pixel", [picture, files / "pixel.png"], "1x1"),
        ("picture of 100 megapixels", [picture, files / "huge.png"], "megapixels"),
        ("prompt empty", ["--prompt", "  "], "the prompt is empty"),
        ("prompt a missing file", ["--prompt", "prompts/absent.txt"], "prompts/absent.txt"),
        ("prompt an empty file", ["--prompt", files / "blank.txt"], "blank.txt is empty"),
        ("prompt no text", ["--prompt", files / "bytes.txt"], "bytes.txt"),
        ("prompt twice", ["--prompt-file", files / "blank.txt"], "--prompt-file"),
        (
            "height off the grid",
            ["--height", 70],
            "height must be a multiple of 16, got 70; the nearest good values are 64 or 80",
        ),
        ("width off the grid", ["--width", 8], "width must be a multiple of 16, got 8"),
        (
            "frames not 4k + 1",
            ["--num-frames", 80],
            "num_frames must be 4k + 1, got 80; the nearest good values are 77 or 81",
        ),
        ("frames none", ["--num-frames", 0], "num_frames"),
        ("steps negative", ["--num-inference-steps", -3], "num_inference_steps"),
        ("steps no number", ["--num-inference-steps", "many"], "--num-inference-steps"),
        ("seed random in the reference", ["--seed", -1], "no seed is drawn at random here; name one"),
        ("seed negative", ["--seed", -2], "seed"),
        ("fps none", ["--fps", 0], "fps"),
        ("guidance no number", ["--guidance-scale-i", "some"], "neither a number nor none"),
        ("guidance not finite", ["--guidance-scale", "nan"], "guidance_scale"),
        ("scale not finite", ["--ip-scale", "inf"], "scale"),
        ("window backwards", ["--ip-start", 0.8, "--ip-stop", 0.2], "window"),
        ("blocks no list", ["--ip-blocks", "3-1"], "'3-1'"),
        ("block beyond the base", ["--ref-blocks", "0-9"], "--ref-blocks: block 9 does not exist"),
        ("dtype unknown", ["--torch-dtype", "int7"], "int7"),
        ("device unknown", ["--device", "abacus"], "abacus"),
        ("device not there", ["--device", "cuda:99"], "cuda:99"),
        ("model unknown", ["--model", "lynx-huge"], "lynx-huge"),
        ("option unknown", ["--gidance-scale", 5], "no such option --gidance-scale; did you mean --guidance-scale?"),
        ("option without value", ["--seed"], "--seed"),
        ("argument too many", ["portrait.png"], "portrait.png"),
        ("face record missing", ["--face-record", absent], "absent"),
        ("face record of another shape", ["--face-record", files / "record.json"], "record.json"),
        ("face index with a record", ["--face-index", 1], "--face-index"),
        ("base missing", [base, absent], "absent/transformer/config.json is not there"),
        ("base without weights", [base, files / "cut_base"], "cut_base/transformer"),
        ("base of another width", [base, files / "other_base"], "this base has width 48"),
        ("base of another kind", [base, files / "foreign_base"], "FluxTransformer2DModel"),
        ("safety checker missing", ["--safety-checker", absent], "absent: no such folder"),
        ("output there", [output, files / "there.mp4"], "there.mp4: exists already; use --overwrite"),
        ("output of unknown kind", [output, files / "clip.gif"], "clip.gif: unknown extension"),
        ("output a folder", [output, files / "cut"], "cut"),
        ("output below a file", [output, files / "there.mp4" / "clip.mp4"], "there.mp4 is a file"),
        ("output name too long", [output, files / f"{'x' * 300}.mp4"], "long"),
        ("output of another kind", ["--ext", "avi"], "avi"),
        ("name a path", ["--name", "../up"], "../up"),
        ("tensors of unknown kind", ["--save-tensors", files / "x.pt"], "x.pt"),
        ("portrait and identity", ["--identity", files / "there.mp4"], "--identity"),
    )
    if os.access(files, os.W_OK) and not os.access(files / "locked", os.W_OK):  # nothing is locked for root
        yield "output unwritable", [output, files / "locked" / "clip.mp4"], "no permission to write"


def bad_commands(files, record):
    """(name, a whole command, what the sentence names)."""
    picture, adapter, base, absent = "--subject-image", "--adapter-path", "--base-model-path", files / "absent"
    good = ["generate", picture, GOLDEN / "subject.png", "--prompt", "A person smiles.", base, GOLDEN / "base", *TINY]
    record = ["--face-record", record]
    yield from (
        ("adapter missing", [*good, *record, adapter, absent], "absent is not there"),
        ("adapter cut", [*good, *record, adapter, files / "cut"], "cut/ip_layers.safetensors"),
        ("adapter mixed", [*good, *record, adapter, files / "mixed"], "mixed"),
        ("adapter file missing", [*good, *record, adapter, files / "lacking"], "ref_layers.safetensors is missing"),
        ("adapter not named", [*good, *record], "give an adapter with the base"),
        ("nobody", ["generate", "--prompt", "A person smiles."], "--subject-image PORTRAIT or --identity FILE"),
        ("nothing to do", ["generate", picture, GOLDEN / "subject.png"], "--prompt TEXT or --prompt-file FILE"),
        ("prompt file missing", ["generate", picture, GOLDEN / "subject.png", "--prompt-file", absent], "absent"),
        ("identity missing", ["generate", "--identity", absent, "--prompt", "A person smiles."], "absent is not there"),
        (
            "identity no identity",
            ["generate", "--identity", GOLDEN / "lite.safetensors", "--prompt", "A person smiles."],
            "no identity file",
        ),
        ("detector missing", [*good, adapter, GOLDEN / "lynx_full", "--face-detector", absent], "absent"),
        (
            "real model not there",
            ["generate", "--model", "lynx-full", *good[1:5], "--models", absent],
            "lynx-video download",
        ),
        ("command unknown", ["generat"], "did you mean generate?"),
        ("faces without a picture", ["faces", absent], "absent: no such file"),
        ("faces to nowhere", ["faces", GOLDEN / "subject.png", "-o", files / "x.tiff"], "x.tiff: unknown extension"),
        ("enroll to nowhere", ["enroll", GOLDEN / "subject.png"], "-o FILE.safetensors"),
        ("enroll nobody", ["enroll", "-o", files / "x.safetensors"], "PORTRAITS"),
        ("download unknown", ["download", "everything"], "'everything'"),
        ("demo of nobody", ["demo", "--seed", -1], "seed"),
    )
    if (NANO / "face" / "detector.safetensors").is_file():
        wall = ["generate", picture, files / "wall.png", "--prompt", "A person smiles."]
        yield "no face", wall, "wall.png: No face was found"
        yield "faces of a wall", ["faces", files / "wall.png"], "wall.png: No face was found"


def test_bad_requests(lynx, request_of, record, world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    requests = [(name, request_of(*added), named) for name, added, named in bad_additions(world)]
    requests += bad_commands(world, record())
    before = listing(tmp_path)
    for name, command, named in requests:
        done = lynx(*command)
        assert done.code == 2, f"{name}: {done}"
        assert done.out == "", f"{name}: {done}"
        assert done.err.count("\n") == 1, f"{name}: {done}"
        assert done.err.startswith("error: "), f"{name}: {done}"
        assert named in done.err, f"{name}: {done}"
        assert listing(tmp_path) == before, name
    assert len(requests) > 60


def test_what_is_not_the_requests_fault_ends_with_1(lynx, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lynx_video.pipeline.models.NANO", tmp_path / "nano")
    done = lynx("faces", GOLDEN / "subject.png")
    assert (done.code, done.err.count("\n"), list(tmp_path.iterdir())) == (1, 1, [])
    assert "make nano" in done.err
