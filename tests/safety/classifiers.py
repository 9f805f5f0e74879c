"""Classifiers of toy size, saved the way the published ones are: a ViT that calls red pictures nsfw, a BERT that knows one bad word."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

RED = np.full((50, 70, 3), (230, 20, 20), np.uint8)
BLUE = np.full((50, 70, 3), (20, 20, 230), np.uint8)
WORDS = ("the", "person", "smiles", "walks", "sits", "in", "a", "garden", "and", "looks", "up", "slowly")
BAD_WORD = "zorble"
WINDOW = 16


def expected_input(picture: np.ndarray) -> torch.Tensor:
    from PIL import Image

    small = np.asarray(Image.fromarray(picture).resize((16, 16), Image.Resampling.BILINEAR)) / 255
    return torch.from_numpy((small - [0.5, 0.4, 0.3]) / [0.5, 0.25, 0.2]).float().permute(2, 0, 1)[None]


def save_picture_classifier(folder: Path, labels: tuple[str, ...] = ("normal", "nsfw")) -> Path:
    """A ViT whose second label means red: its weights are random, its last layer is fitted to tell red from blue."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    model = ViTForImageClassification(config).eval()
    with torch.no_grad():
        red, blue = (model.vit(pixel_values=expected_input(each)).last_hidden_state[0, 0] for each in (RED, BLUE))
        direction = (red - blue) / (red - blue).square().sum()
        model.classifier.weight.zero_()
        model.classifier.bias.zero_()
        model.classifier.weight[1] = 8 * direction
        model.classifier.bias[1] = float(-4 * direction @ (red + blue))
    model.save_pretrained(folder)
    settings = {"do_resize": True, "size": {"height": 16, "width": 16}, "resample": 2, "image_mean": [0.5, 0.4, 0.3]}
    settings |= {"image_std": [0.5, 0.25, 0.2], "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def save_text_classifier(folder: Path, labels: tuple[str, ...] = ("safe", "NSFW")) -> Path:
    """A BERT of one layer that reads 16 tokens, trained to find one word among others."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, BAD_WORD]
    backend = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=WINDOW,
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=WINDOW,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    model = BertForSequenceClassification(config)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        ids = torch.randint(4, 4 + len(WORDS), (64, WINDOW), generator=generator)
        ids[:, 0] = 2
        lengths = torch.randint(3, WINDOW + 1, (64,), generator=generator)
        ids[torch.arange(64), lengths - 1] = 3
        mask = torch.arange(WINDOW) < lengths[:, None]
        bad = torch.rand(64, generator=generator) < 0.5
        place = (1 + torch.rand(64, generator=generator) * (lengths - 2)).long()
        ids[bad, place[bad]] = len(tokens) - 1
        ids[~mask] = 0
        loss = model(input_ids=ids, attention_mask=mask.long(), labels=bad.long()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder)
    return folder


def with_weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[bytes], bytes]:
    """A change of a safetensors file's tensors, as a change of its bytes."""
    from safetensors.torch import load, save

    def changed(content: bytes) -> bytes:
        tensors = load(content)
        change(tensors)
        return save(tensors, {"format": "pt"})

    return changed
