"""`lynx-video generate`: parity through the command line, where the clip goes, and what is said."""

import json
import os
import runpy
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lynx_video.config import GenerateConfig
from lynx_video.media.video import read_metadata, read_video

GOLDEN = Path(__file__).parents[1] / "golden"
ROOT = Path(__file__).parents[2]
NAMES = ("num_frames", "seed", "guidance_scale", "num_inference_steps", "width", "height", "ip_scale", "ref_scale")
NAMES += ("prompt", "negative_prompt")


def flags_of(case, record):
    """The reference's own flags, in snake_case, for a golden case."""
    found = ["--subject_image", GOLDEN / "subject.png", "--face_record", record(case["name"])]
    found += ["--base_model_path", GOLDEN / "base", "--adapter_path", GOLDEN / f"lynx_{case['kind']}"]
    for name in NAMES:
        if name in case:
            found += [f"--{name}", case[name]]
    if case["kind"] == "full":
        found += ["--guidance_scale_i", "none" if case["guidance_scale_i"] is None else case["guidance_scale_i"]]
    return [str(one) for one in found]


def assert_golden(file, data):
    """Latents within 5e-4 after the VAE's mean and std are put back, frames within a grey level, the noise equal."""
    made = load_file(file)
    vae = json.loads((GOLDEN / "base" / "vae" / "config.json").read_text())
    mean, std = (torch.tensor(vae[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    assert torch.equal(made["initial_latents"], data["initial_latents"][:1])  # lite has it twice
    assert (made["latents"] * std + mean - data["final_latents_denorm"][:1]).abs().max() < 5e-4
    assert made["frames"].dtype == torch.uint8
    assert (made["frames"].int() - data["frames"].int()).abs().max() <= 1


@pytest.mark.parametrize("name", ["full_three_pass", "full_two_pass"])
def test_parity_through_the_command_line(name, lynx, cases, golden, record, tmp_path):
    tensors = tmp_path / "x.safetensors"
    done = lynx("generate", *flags_of(cases[name], record), "--output", tmp_path / "clip.mp4", "--save_tensors", tensors)
    assert done.code == 0, done.err
    assert_golden(tensors, golden(name))
    assert done.out.startswith(f"{tmp_path / 'clip.mp4'}: ")
    assert f"seed {cases[name]['seed']}" in done.out
    assert "model: " in done.err


def test_the_references_full_command_in_a_process_of_its_own(cases, golden, record, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(ROOT / "infer.py"), *flags_of(cases["full_three_pass"], record)]
    done = subprocess.run(
        [*command, "--save_tensors", "x.safetensors"],
        cwd=tmp_path,
        env=environment | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert_golden(tmp_path / "x.safetensors", golden("full_three_pass"))
    clip = tmp_path / "results" / "subject" / "demo-fr9-s42.mp4"
    frames, fps = read_video(clip)
    assert (frames.shape, fps) == ((9, 96, 160, 3), 16.0)
    settings = read_metadata(clip)
    assert (settings["seed"], settings["prompt"]) == (42, cases["full_three_pass"]["prompt"])
    assert done.stdout.count("\n") == 1
    # notes and a bar, and nothing of the libraries below
    assert [line.split(":")[0].strip() for line in done.stderr.splitlines() if line][:3] == ["model", "warning", "denoising"]


def test_the_references_lite_command(cases, golden, record, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    command = ["infer_lite.py", *flags_of(cases["lite"], record), "--save_tensors", "x.safetensors", "--name", "walk"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "infer_lite.py"), run_name="__main__")
    assert end.value.code == 0, capfd.readouterr().err
    assert_golden(tmp_path / "x.safetensors", golden("lite"))
    clip = tmp_path / "results_lite" / "subject" / "walk-fr9-s42.mp4"
    assert read_video(clip)[1] == 24.0


def test_lite_of_the_reference_ignores_the_identity_guidance(cases, golden, record, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for number, added in enumerate((["--guidance_scale_i", "2.0"], ["--guidance-scale-i=2.0"])):
        command = ["infer_lite.py", *added, *flags_of(cases["lite"], record), "--save_tensors", f"{number}.safetensors"]
        monkeypatch.setattr(sys, "argv", [*command, "-o", f"{number}.mp4"])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "infer_lite.py"), run_name="__main__")
        said = capfd.readouterr().err
        assert end.value.code == 0, said
        assert "warning: --guidance_scale_i 2.0 is ignored" in said
        assert_golden(tmp_path / f"{number}.safetensors", golden("lite"))


def test_options_that_do_nothing_are_named(lynx, request_of, tmp_path):
    def warned(*added, arm="full"):
        done = lynx(*request_of(*added, "-o", tmp_path / "clip.mp4", "--overwrite", "--json", arm=arm))
        assert done.code == 0, done.err
        return [line for line in json.loads(done.out)["warnings"] if "nothing" in line]

    reference = ["--ref-* options do nothing: this adapter has no reference part."]
    assert warned("--ref-scale", 0.5, arm="lite") == warned("--ref-blocks", "0-1", arm="lite") == reference
    assert warned("--ref-scale", 0.5, "--ref-blocks", "0-1", "--ip-blocks", "0") == []
    assert warned(arm="lite") == warned("--ref-scale", 0, arm="lite") == []
    weak = ("--guidance-scale", 1, "--guidance-scale-i", 2)
    assert warned(*weak) == ["--guidance-scale-i does nothing: there is no guidance at --guidance-scale 1."]
    assert len(warned(*weak, "--ip-scale", 0, "--ref-scale", 0)) == 1
    assert warned(*weak[:2], "--guidance-scale-i", "none") == []
    assert warned("--window-overlap", 4) == ["--window-overlap does nothing: the clip is made as one window."]
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "ref_layers.safetensors").symlink_to(GOLDEN / "lynx_full" / "ref_layers.safetensors")
    full, two = GOLDEN / "lynx_full", ("--guidance-scale-i", "none", "-o", tmp_path / "alone.mp4", "--json")
    done = lynx(*(alone if one == full else one for one in request_of("--ip-start", 0.5, *two)))
    assert done.code == 0, done.err
    assert "--ip-* options do nothing: this adapter has no identity part." in json.loads(done.out)["warnings"]


def test_the_settings_say_whose_face_it_is(lynx, request_of, record, tmp_path):
    clip, identity = tmp_path / "clip.mp4", tmp_path / "alice.safetensors"
    assert lynx(*request_of("-o", clip)).code == 0
    keys = ("portrait", "identity_file", "face_index", "face_record")
    assert [read_metadata(clip)[key] for key in keys] == ["subject.png", None, None, True]
    base = ("--base-model-path", GOLDEN / "base", "--adapter-path", GOLDEN / "lynx_lite")
    portrait = GOLDEN / "subject.png"
    assert lynx("enroll", portrait, "--face-record", record("lite"), "-o", identity, *base).code == 0
    tiny = ("--num-frames", 5, "--height", 64, "--width", 64, "--num-inference-steps", 1)
    asked = ("generate", "--identity", identity, *base[:2], "--prompt", "A person smiles.", *tiny)
    facts = json.loads(lynx(*asked, "-o", clip, "--overwrite", "--json").out)
    assert [facts["settings"][key] for key in keys] == [None, "alice.safetensors", None, False]


def test_every_setting_is_an_option_with_its_help(lynx):
    said = lynx("generate", "--help").out
    for one in fields(GenerateConfig):
        assert f"--{one.name.replace('_', '-')}" in said
    assert "weight of the identity adapter" in said


def test_json_is_one_object_and_nothing_else(lynx, request_of, tmp_path):
    done = lynx(*request_of("--json", "--output-dir", tmp_path, "--ext", "webp", "--fps", "10", "--ip_blocks", "0-1,3"))
    facts = json.loads(done.out)
    clip = tmp_path / "subject" / "demo-fr5-s42.webp"
    assert (done.code, done.err, facts["output"]) == (0, "", str(clip))
    assert (facts["frames"], facts["fps"], facts["seed"], facts["similarity"]) == (5, 10.0, 42, None)
    assert facts["settings"]["ip_blocks"] == [0, 1, 3]
    assert "safety" in facts["warnings"][0]
    assert len(read_video(clip)[0]) == 5
    assert read_metadata(clip)["ip_blocks"] == [0, 1, 3]


def test_quiet_says_the_result_and_warnings_alone(lynx, request_of, tmp_path):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("A person nods.\n", encoding="utf-8")
    clip = tmp_path / "clip.mp4"
    done = lynx(*request_of("--quiet", "-o", clip, "--prompt", prompt))
    assert (done.code, done.out.count("\n")) == (0, 1)
    assert done.err == "warning: no safety checker looks at portrait and frames (a toy base).\n"
    assert read_metadata(clip)["prompt"] == "A person nods."


def test_a_clip_is_replaced_only_with_overwrite(lynx, request_of, tmp_path):
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"mine")
    refused = lynx(*request_of("-o", clip))
    assert (refused.code, clip.read_bytes()) == (2, b"mine")
    assert lynx(*request_of("-o", clip, "--overwrite")).code == 0
    assert len(read_video(clip)[0]) == 5
    assert [file.name for file in tmp_path.iterdir()] == ["clip.mp4"]


def latents(lynx, tmp_path, *arguments):
    file = tmp_path / "latents.safetensors"
    done = lynx(*arguments, "-o", tmp_path / "clip.mp4", "--save-tensors", file, "--overwrite")
    assert done.code == 0, done.err
    return load_file(file)["latents"]


def test_an_adapter_at_scale_zero_is_off_and_need_not_be_there(lynx, request_of, tmp_path):
    full, bare = GOLDEN / "lynx_full", tmp_path / "bare"
    bare.mkdir()
    for name in ("resampler.safetensors", "ip_layers.safetensors"):
        (bare / name).symlink_to(full / name)
    two = ("--guidance-scale-i", "none")
    with_file = latents(lynx, tmp_path, *request_of("--ref-scale", 0, *two))
    without = latents(
        lynx, tmp_path, *request_of("--ref-scale", 0, *two, "--adapter-path", bare / "ip_layers.safetensors")[:-2]
    )
    assert torch.equal(with_file, without)
    arguments = [bare if one == full else one for one in request_of("--ref-scale", 0, *two)]
    assert torch.equal(latents(lynx, tmp_path, *arguments), with_file)
    nobody = latents(lynx, tmp_path, *request_of("--ip-scale", 0, "--ref-scale", 0, *two))
    assert torch.equal(latents(lynx, tmp_path, *request_of("--ip-scale", 0, *two, arm="lite")), nobody)
    assert not torch.equal(with_file, nobody)


def test_an_identity_file_needs_neither_portrait_nor_adapter(lynx, request_of, record, tmp_path):
    identity, portrait = tmp_path / "alice.safetensors", GOLDEN / "subject.png"
    base = ("--base-model-path", GOLDEN / "base")
    enrolled = lynx(
        *("enroll", portrait, "--face-record", record(), "-o", identity, "--consent", "public domain"),
        *(*base, "--adapter-path", GOLDEN / "lynx_full", "--json"),
    )
    assert enrolled.code == 0, enrolled.err
    assert json.loads(enrolled.out)["output"] == str(identity)
    tiny = ("--num-frames", 5, "--height", 64, "--width", 64, "--num-inference-steps", 2, "--negative-prompt", "static")
    kept = latents(lynx, tmp_path, "generate", "--identity", identity, *base, "--prompt", "A person smiles.", *tiny)
    anew = latents(lynx, tmp_path, *request_of("--reference-latent", "mean"))
    assert torch.equal(kept, anew)
    again = lynx("enroll", portrait, "--face-record", record(), "-o", identity, *base, "--adapter-path", GOLDEN / "lynx_full")
    assert again.code == 2
    assert "overwrite" in again.err


def test_several_photos_make_one_identity_and_strangers_are_noticed(lynx, golden, record, tmp_path):
    from lynx_video.pipeline.enrol import load_enrolment

    other = tmp_path / "other.json"
    data = json.loads(record().read_text())
    data["embedding"] = [-value for value in reversed(data["embedding"])]
    other.write_text(json.dumps(data))
    portrait, identity = GOLDEN / "subject.png", tmp_path / "two.safetensors"
    done = lynx(
        *("enroll", portrait, portrait, "--face-record", record(), "--face-record", other, "-o", identity),
        *("--base-model-path", GOLDEN / "base", "--adapter-path", GOLDEN / "lynx_lite"),
    )
    assert done.code == 0, done.err
    assert "is it the same person?" in done.err
    first, second = golden("full_three_pass")["face_embedding"], torch.tensor(data["embedding"])
    mean = (first + second) / 2
    assert torch.allclose(load_enrolment(identity).identity.embedding, mean / mean.norm(), atol=1e-6)


def test_interrupted_leaves_nothing(lynx, request_of, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("lynx_video.pipeline.generate.denoise", interrupted)
    done = lynx(*request_of("--output-dir", tmp_path / "out", "--save-tensors", tmp_path / "x.safetensors"))
    assert done.code == 130
    assert "Traceback" not in done.err
    assert not list(tmp_path.iterdir())


def test_a_fault_of_ours_is_one_sentence_and_the_way_to_the_traceback(lynx, request_of, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("by\nnothing")

    monkeypatch.setattr("lynx_video.pipeline.generate.denoise", broken)
    done = lynx(*request_of("-o", tmp_path / "clip.mp4", "--quiet"))
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("warning: no safety checker")
    assert done.err.splitlines()[1:] == [
        "internal error: ZeroDivisionError: by nothing (LYNX_VIDEO_DEBUG=1 shows the traceback)"
    ]
    monkeypatch.setenv("LYNX_VIDEO_DEBUG", "1")
    assert "Traceback" in lynx(*request_of("-o", tmp_path / "clip.mp4", "--quiet")).err


def save_classifier(folder, logit):
    """A toy ViT that gives every picture the same `nsfw` logit."""
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 16}
    model = ViTForImageClassification(ViTConfig(**sizes, patch_size=8, id2label={0: "normal", 1: "nsfw"}))
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, logit]))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 16, "width": 16}}))
    return folder


def test_the_safety_checker_refuses_with_3_and_writes_nothing(lynx, request_of, tmp_path, monkeypatch):
    strict, mild = save_classifier(tmp_path / "strict", 5.0), save_classifier(tmp_path / "mild", -5.0)
    out = ("--output-dir", tmp_path / "out", "--quiet")
    refused = lynx(*request_of(*out, "--safety-checker", strict))
    assert refused.code == 3
    assert refused.err.startswith("error: the portrait was refused")
    passed = lynx(*request_of(*out, "--safety-checker", mild, "--json"))
    assert json.loads(passed.out)["warnings"] == []

    monkeypatch.setattr("lynx_video.safety.picture.check_portrait", lambda *_, **__: 0.0)
    frames = lynx(*request_of(*out, "--safety-checker", strict, "--seed", 1))
    assert frames.code == 3
    assert "the video was refused" in frames.err
    assert len(list((tmp_path / "out" / "subject").iterdir())) == 1


def test_a_real_base_insists_on_the_safety_checker(lynx, request_of, tmp_path, monkeypatch):
    monkeypatch.setattr("lynx_video.studio.gate.REAL_WIDTH", 96)  # the golden base counts as a real one
    for model in ("nano", "lynx-full"):
        request = request_of("--model", model, "--models", tmp_path / "models", "-o", tmp_path / "clip.mp4", "--quiet")
        refused = lynx(*request)
        assert refused.code == 1
        assert "lynx-video download safety" in refused.err
        assert not list(tmp_path.iterdir())
    off = lynx(*request, "--safety-checker", "off", "--json")
    assert "switched off" in json.loads(off.out)["warnings"][0]
