"""The toy models: the very classes of the real system, at a size that two CPU cores train in an hour.

Only configurations live here. Shapes: a clip of 9 frames at 64 x 64 px is 5 x 16 x 16 latents of 12 channels, that is 320
video tokens; a still is 64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lynx_video.nano import captions

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
    from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

SIZE = 64  # pixels, height and width of a clip
REFERENCE = 64  # pixels of the reference crop
FRAMES = 9
FPS = 8.0
TEXT_TOKENS = 48
LATENT_CHANNELS = 12
HEADS, HEAD_WIDTH, BLOCKS = 3, 64, 6
TEXT_WIDTH = 64
FLOW_SHIFT = 1.5


def vae() -> AutoencoderKLWan:
    """4x in space (patches of 2, then one downsampling), 2x in time."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=32,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[True],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=4,
        scale_factor_temporal=2,
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
    )


def transformer() -> WanTransformer3DModel:
    """3 heads of 64, 6 blocks."""
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_WIDTH,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_WIDTH,
        freq_dim=64,
        ffn_dim=4 * HEADS * HEAD_WIDTH,
        num_layers=BLOCKS,
        cross_attn_norm=True,
        rope_max_seq_len=64,
    )


def text_encoder() -> UMT5EncoderModel:
    """Two layers over the caption words."""
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=len(captions.WORDS),
        d_model=TEXT_WIDTH,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        tie_word_embeddings=False,
    )
    return UMT5EncoderModel(config)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, lower case, `</s>` at the end, as UMT5's but with a vocabulary of a hundred words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words: Any = Tokenizer(models.WordLevel({word: i for i, word in enumerate(captions.WORDS)}, unk_token="<unk>"))
    words.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("removed")])
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=TEXT_TOKENS
    )


def scheduler() -> UniPCMultistepScheduler:
    """UniPC with flow prediction, configured as Wan's."""
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT, num_train_timesteps=1000
    )
