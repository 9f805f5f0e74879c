"""Prompts and reference crops as the transformer sees them."""

import pytest
import torch

from lynx_video.errors import BadRequest, LynxWarning
from lynx_video.pipeline.condition import (
    REFERENCE_PROMPT,
    clean_prompt,
    encode_prompt,
    latent_statistics,
    read_prompt,
    read_prompt_file,
    reference_latents,
)
from lynx_video.pipeline.decoding import decode

NASTY = [
    "",
    "   \n\t ",
    "A person waves.",
    "  two   spaces\n\nand\tlines  ",
    "caf\u00c3\u00a9 mojibake",
    "&amp;lt;b&amp;gt; twice &quot;escaped&quot;",
    "\u201ccurly\u201d \u2018quotes\u2019 \u2026",
    "\ufb01gure ligature",
    "full\u3000width \uff21\uff22\uff23",
    "zero\u200bwidth\u00a0space",
    "emoji \U0001f600 and \u4f60\u597d",
    "\x1b[31mred\x1b[0m \x00 control",
    "e\u0301 combining",
    "a\r\nb\rc\u2028d",
    "&#x41;&#66;",
    "1 < 2 &amp;amp; &amp;lt;3",  # a bare < keeps ftfy from unescaping
]


@pytest.mark.parametrize("prompt", NASTY)
def test_cleaned_as_wan_does(prompt):
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    assert clean_prompt(prompt) == prompt_clean(prompt)


def test_a_prompt_may_be_a_file(tmp_path, monkeypatch):
    file = tmp_path / "prompt.txt"
    file.write_text("\ufeffA person waves.\nTwice.\n", encoding="utf-8")
    assert read_prompt(str(file)) == read_prompt_file(file) == "A person waves.\nTwice."
    monkeypatch.chdir(tmp_path)
    assert read_prompt("prompt.txt") == "A person waves.\nTwice."
    for text in ("A person waves.", "", ".", "a\x00b", "line\nline", "x" * 5000, "x" * 300):
        assert read_prompt(text) == text


@pytest.mark.parametrize(
    ("content", "word"), [(b"", "empty"), (b" \n", "empty"), (b"\xff\xfe\x00bad", "UTF-8"), (None, "can't be read")]
)
def test_prompt_files_that_are_none(content, word, tmp_path):
    file = tmp_path / "prompt.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(BadRequest, match=word) as caught:
        read_prompt_file(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("case", ["full_three_pass", "full_two_pass", "lite"])
def test_embeddings_equal_the_reference_s(case, golden, cases, full):
    data, settings = golden(case), cases[case]
    for key, prompt in (("prompt_embeds", settings["prompt"]), ("negative_prompt_embeds", settings["negative_prompt"])):
        ours = encode_prompt(full.tokenizer, full.text_encoder, prompt, 512)
        torch.testing.assert_close(ours, data[key], rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [512, 16])
def test_the_end_of_a_prompt_that_is_too_long_is_named(length, full):
    with pytest.warns(LynxWarning, match=rf"4001 tokens, the model reads the first {length}"):
        ours = encode_prompt(full.tokenizer, full.text_encoder, "word " * 2000, length)
    assert (ours.abs().sum(-1) > 0).all()


@pytest.mark.parametrize("prompt", ["", REFERENCE_PROMPT])
def test_embeddings_are_zero_after_the_last_token(prompt, full):
    ours = encode_prompt(full.tokenizer, full.text_encoder, prompt, 512)
    length = min(512, len(full.tokenizer(clean_prompt(prompt)).input_ids))
    assert ours.shape == (1, 512, 48)
    assert ours[:, length:].abs().sum() == 0
    assert (ours[:, :length].abs().sum(-1) > 0).all()
    assert encode_prompt(full.tokenizer, full.text_encoder, prompt, 16).shape == (1, 16, 48)


def test_sampled_latents_belong_to_their_seed(full, sitter):
    crop = sitter().crop
    first, again, other = (reference_latents(full.vae, crop, 256, seed) for seed in (1, 1, 2))
    assert first.shape == (1, 16, 1, 32, 32)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_mean_latents_have_no_seed(full, sitter):
    crop = sitter().crop
    mean = reference_latents(full.vae, crop, 256, None)
    torch.manual_seed(5)
    assert torch.equal(mean, reference_latents(full.vae, crop, 256, None))
    samples = torch.cat([reference_latents(full.vae, crop, 256, seed) for seed in range(24)])
    spread = samples.std(0)
    assert ((samples.mean(0) - mean[0]).abs() <= 6 * spread / 24**0.5 + 1e-4).float().mean() > 0.99


def test_nobody_is_mid_grey(full):
    import numpy as np

    nobody = reference_latents(full.vae, None, 64, None)
    assert nobody.shape == (1, 16, 1, 8, 8)
    grey = reference_latents(full.vae, np.full((64, 64, 3), 127, dtype=np.uint8), 64, None)
    black = reference_latents(full.vae, np.zeros((64, 64, 3), dtype=np.uint8), 64, None)
    assert (grey - nobody).abs().max() < 0.1 * (black - nobody).abs().max()


def test_statistics_are_the_vae_s(full):
    mean, std = latent_statistics(full.vae, "cpu")
    assert mean.flatten().tolist() == pytest.approx(full.vae.config.latents_mean)
    assert std.flatten().tolist() == pytest.approx(full.vae.config.latents_std)


def test_decoded_frames(full):
    frames = decode(full.vae, torch.randn(1, 16, 2, 4, 6, generator=torch.Generator().manual_seed(0)))
    assert frames.shape == (5, 32, 48, 3)
    assert frames.dtype == torch.uint8
