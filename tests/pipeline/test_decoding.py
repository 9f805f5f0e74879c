"""Decoding latent frame by latent frame: the same pictures as the stock VAE's, in less memory."""

import copy
import functools
import gc
import inspect
import subprocess
import sys
import weakref

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from lynx_video.media.video import write_video
from lynx_video.nano import model as nano
from lynx_video.pipeline.condition import latent_statistics
from lynx_video.pipeline.decoding import decode, decode_bytes, decode_chunks

WAN_22 = {
    "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "in_channels": 12, "out_channels": 12,
    "patch_size": 2, "scale_factor_spatial": 16, "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48,
}  # fmt: skip


@functools.cache
def made(kind, dtype):
    """A VAE of random weights: golden's (as Wan 2.1's) or nano's (patches, residual), with small tiles."""
    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=4, num_res_blocks=1) if kind == "golden" else nano.vae()
    vae.tile_sample_min_height = vae.tile_sample_min_width = 32
    vae.tile_sample_stride_height = vae.tile_sample_stride_width = 24
    return vae.to(dtype).eval().requires_grad_(False)


def latents_of(vae, frames=4, height=8, width=12):
    return torch.randn(1, vae.config.z_dim, frames, height, width, generator=torch.Generator().manual_seed(frames))


@torch.no_grad()
def stock(vae, latents, *, tiled=False):
    """What `AutoencoderKLWan` makes of the latents at once."""
    mean, std = latent_statistics(vae, latents.device)
    raw = (latents * std + mean).to(vae.device, vae.dtype)
    video = (vae.tiled_decode if tiled else vae.decode)(raw, return_dict=False)[0][0]
    return ((video.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 3, 0)


@pytest.fixture(params=["golden", "nano"])
def kind(request):
    return request.param


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def vae(request, kind):
    return made(kind, request.param)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_frames_equal_stock(vae, frames):
    latents = latents_of(vae, frames)
    expected = stock(vae, latents)
    video = decode(vae, latents)
    assert torch.equal(video, expected)
    assert video.is_contiguous()
    chunks = list(decode_chunks(vae, latents))
    factor = vae.config.scale_factor_temporal
    assert [len(chunk) for chunk in chunks] == [1] + [factor] * (frames - 1)
    assert all(chunk.dtype == torch.uint8 and chunk.device.type == "cpu" and chunk.is_contiguous() for chunk in chunks)
    assert torch.equal(torch.cat(chunks), expected)
    assert expected.unique().numel() > 20


def test_shipped_weights(full):
    from lynx_video import load

    for components in (full, load("nano", device="cpu")):
        latents = latents_of(components.vae, 3)
        assert torch.equal(decode(components.vae, latents), stock(components.vae, latents))


@pytest.mark.parametrize(("height", "width"), [(8, 12), (11, 9), (4, 9), (9, 4)])
def test_tiled_frames_equal_stock_s_tiled(vae, height, width):
    latents = latents_of(vae, 3, height, width)
    expected = stock(vae, latents, tiled=True)
    assert torch.equal(decode(vae, latents, tiling=True), expected)
    assert torch.equal(torch.cat(list(decode_chunks(vae, latents, tiling=True))), expected)
    assert not torch.equal(expected, stock(vae, latents)), "tiles should leave traces, or nothing was tested"


def test_uneven_tiles(vae):
    vae = copy.deepcopy(vae)
    vae.enable_tiling(48, 32, 24, 24)
    latents = latents_of(vae, 2, 13, 11)
    assert torch.equal(decode(vae, latents), stock(vae, latents, tiled=True)), "the VAE's own tiling counts"


@pytest.mark.parametrize("tiling", [False, True])
def test_no_tiles_where_one_is_enough(kind, tiling):
    vae = made(kind, torch.float32)
    side = 32 // vae.config.scale_factor_spatial
    latents = latents_of(vae, 2, side, side)
    assert torch.equal(decode(vae, latents, tiling=tiling), stock(vae, latents))


@pytest.mark.parametrize("tiling", [False, True])
def test_given_up_or_interrupted(kind, tiling):
    """Nothing is left in the VAE, and what else it does between two chunks makes no difference."""
    vae = made(kind, torch.float32)
    latents = latents_of(vae)
    expected = decode(vae, latents, tiling=tiling)
    chunks = decode_chunks(vae, latents, tiling=tiling)
    assert torch.equal(next(chunks), expected[:1])
    chunks.close()
    assert not any(vae._feat_map)
    chunks = decode_chunks(vae, latents, tiling=tiling)
    found = []
    for chunk in chunks:
        found.append(chunk)
        stock(vae, latents_of(vae, 2))
        vae.encode(torch.zeros(1, 3, 1, 32, 32))
    assert torch.equal(torch.cat(found), expected)
    fail = vae.decoder.conv_out.register_forward_hook(lambda *_: next(failures))
    failures = iter([None, None])
    with pytest.raises(RuntimeError, match="StopIteration"):
        list(decode_chunks(vae, latents, tiling=tiling))
    fail.remove()
    assert not any(vae._feat_map)
    assert torch.equal(decode(vae, latents, tiling=tiling), expected)


@pytest.mark.parametrize("tiling", [False, True])
def test_what_a_paused_decode_holds_goes_with_it(tiling):
    vae = made("golden", torch.float32)
    seen = []
    watch = vae.decoder.register_forward_pre_hook(lambda _, __, given: seen.extend(given["feat_cache"]), with_kwargs=True)
    chunks = decode_chunks(vae, latents_of(vae), tiling=tiling)
    next(chunks), next(chunks), next(chunks)
    watch.remove()
    kept = [weakref.ref(one) for one in seen if isinstance(one, torch.Tensor)]
    assert len(kept) > 20
    seen.clear()
    chunks.close()
    gc.collect()
    assert not any(one() is not None for one in kept)


def test_gradients_stay_as_the_consumer_has_them():
    vae = copy.deepcopy(made("golden", torch.float32)).requires_grad_(True)
    for chunk in decode_chunks(vae, latents_of(vae, 2).requires_grad_(True)):
        assert torch.is_grad_enabled()
        assert not chunk.requires_grad


@pytest.mark.parametrize("suffix", ["mp4", "webp"])
def test_streamed_into_a_file(tmp_path, suffix):
    vae = made("nano", torch.float32)
    latents = latents_of(vae, 5, 16, 16)
    write_video(tmp_path / f"whole.{suffix}", decode(vae, latents).numpy(), 8)
    write_video(tmp_path / f"streamed.{suffix}", (frame for chunk in decode_chunks(vae, latents) for frame in chunk.numpy()), 8)
    assert (tmp_path / f"whole.{suffix}").read_bytes() == (tmp_path / f"streamed.{suffix}").read_bytes()


class Held(TorchDispatchMode):
    """Bytes of tensors on a device that are alive, as an allocator would count them: now and at most."""

    def __init__(self, device):
        super().__init__()
        self.device, self.alive, self.most, self.known = device, 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in tree_flatten(out)[0]:
            if isinstance(one, torch.Tensor) and one.device.type == self.device:
                storage = one.untyped_storage()
                if storage._cdata not in self.known:
                    self.known.add(storage._cdata)
                    self.alive += storage.nbytes()
                    self.most = max(self.most, self.alive)
                    weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        return out

    def _free(self, key, size):
        self.known.discard(key)
        self.alive -= size


@pytest.mark.parametrize(("kind", "tiling"), [("golden", False), ("nano", True)])
def test_memory_does_not_grow_with_the_clip(kind, tiling):
    vae = made(kind, torch.float32)

    def peak(work, frames):
        latents = latents_of(vae, frames, 6, 9)
        with Held("cpu") as held:
            work(latents)
        return held.most - 3 * latents.nbytes  # they too are made raw, before and after a convolution

    def stream(latents):
        for _ in decode_chunks(vae, latents, tiling=tiling):
            pass

    assert peak(stream, 12) <= 1.02 * peak(stream, 3)
    whole = functools.partial(stock, vae, tiled=tiling)
    assert peak(whole, 12) > 1.1 * peak(whole, 3), "the VAE's own decode holds the clip"


@pytest.fixture
def device(monkeypatch):
    """ "meta" in the role of a GPU: shapes and devices are real, values are not."""
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: torch.empty_like(self, device="cpu"))
    return "meta"


@pytest.mark.filterwarnings("ignore:.*should be kept in float32")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("config", "tiling"),
    [({}, False), ({}, True), (WAN_22, False), (WAN_22, True), (None, False)],
    ids=["Wan 2.1", "Wan 2.1 in tiles", "Wan 2.2 5B", "Wan 2.2 5B in tiles", "nano"],
)
def test_estimate(device, config, dtype, tiling):
    """Within a factor of 1.5 of what tensors hold, and not below: the convolutions' own copies come on top."""
    with torch.device(device):
        vae = (AutoencoderKLWan(**config) if config is not None else nano.vae()).to(dtype)
    sizes = [(64, 64), (64, 96)] if config is None else [(288, 272)] if tiling else [(288, 272), (480, 832)]
    for height, width in sizes:
        shape = (size // vae.config.scale_factor_spatial for size in (height, width))
        with Held(device) as held:
            for _ in decode_chunks(vae, torch.empty(1, vae.config.z_dim, 3, *shape, device=device), tiling=tiling):
                pass
        estimate = decode_bytes(height, width, tiling, vae.config, dtype)
        assert 0.95 * held.most <= estimate <= 1.5 * held.most
        if tiling:
            assert held.most < 0.8 * decode_bytes(height, width, False, vae.config, dtype)


def test_estimate_of_a_short_configuration():
    """What a configuration leaves out is the stock class's default."""
    vae = made("golden", torch.float32)
    short = {"base_dim": 4, "num_res_blocks": 1}
    assert decode_bytes(64, 96, False, short, torch.float32) == decode_bytes(64, 96, False, vae.config, torch.float32)
    assert decode_bytes(64, 96, True, {}, torch.float32) == decode_bytes(64, 96, False, {}, torch.float32)


MEASURE = """
import gc, sys, torch
from pathlib import Path
from diffusers import AutoencoderKLWan
from lynx_video.pipeline.decoding import decode_bytes, decode_chunks

def resident(key):
    return int(Path("/proc/self/status").read_text().partition(key + ":")[2].split()[0]) * 1024

torch.set_num_threads(1)
dtype = getattr(torch, sys.argv[1])
vae = AutoencoderKLWan(base_dim=48).to(dtype)
list(decode_chunks(vae, torch.randn(1, 16, 2, 2, 2)))
gc.collect()
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
list(decode_chunks(vae, torch.randn(1, 16, 3, 24, 32)))
print((resident("VmHWM") - before) / decode_bytes(192, 256, False, vae.config, dtype))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_estimate_against_the_process(dtype):
    if dtype == "bfloat16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("without bf16 instructions torch unfolds each convolution, which takes many times the memory")
    done = subprocess.run([sys.executable, "-c", MEASURE, dtype], capture_output=True, text=True, check=True)
    assert 1 / 1.5 < float(done.stdout.split()[-1]) < 1.5


@pytest.mark.parametrize("level", ["block_level", "leaf_level"])
@pytest.mark.parametrize("tiling", [False, True])
def test_group_offload(kind, level, tiling, tmp_path, monkeypatch):
    """Weights that lie on disk between their turns: without the hooks there would be none."""
    from diffusers.hooks.group_offloading import ModuleGroup

    vae = copy.deepcopy(made(kind, torch.float32))
    latents = latents_of(vae, 3)
    expected = decode(vae, latents, tiling=tiling)
    vae.enable_group_offload(
        onload_device=torch.device("cpu"), offload_type=level, num_blocks_per_group=1, offload_to_disk_path=str(tmp_path)
    )
    brought, plain = [], ModuleGroup.onload_
    monkeypatch.setattr(ModuleGroup, "onload_", lambda group: (brought.append(group), plain(group))[1])
    assert torch.equal(stock(vae, latents, tiled=tiling), expected)
    theirs = list(brought)
    assert torch.equal(decode(vae, latents, tiling=tiling), expected)
    assert len(brought) == 2 * len(theirs) > 0


def test_offload_as_a_whole(kind):
    """`enable_model_cpu_offload` of diffusers: the hook that vae.decode sets off brings the VAE to its device."""
    from accelerate.hooks import CpuOffload, add_hook_to_module

    vae = copy.deepcopy(made(kind, torch.float32))
    latents = latents_of(vae, 2)
    expected, seen = stock(vae, latents), []

    class Watched(CpuOffload):
        def pre_forward(self, module, *args, **kwargs):
            seen.append(module)
            return super().pre_forward(module, *args, **kwargs)

    add_hook_to_module(vae, Watched("cpu"))
    assert torch.equal(decode(vae, latents), expected)
    assert seen == [vae]


def test_offload_layer_by_layer(kind):
    """`enable_sequential_cpu_offload` of diffusers: between their turns the weights are on no device at all."""
    from accelerate import cpu_offload

    vae = copy.deepcopy(made(kind, torch.float32))
    latents = latents_of(vae, 2)
    expected = stock(vae, latents)
    cpu_offload(vae, "cpu", offload_buffers=True)
    assert vae.device.type == "meta"
    assert torch.equal(decode(vae, latents), expected)
    assert torch.equal(decode(vae, latents, tiling=True), decode(made(kind, torch.float32), latents, tiling=True))


def test_what_we_rely_on(vae):
    """Private names of `AutoencoderKLWan`: when one of these fails, decoding must follow."""
    vae.clear_cache()
    convolutions = [one for one in vae.decoder.modules() if type(one).__name__ == "WanCausalConv3d"]
    assert vae._feat_map == [None] * len(convolutions)
    assert list(inspect.signature(vae.decoder.forward).parameters) == ["x", "feat_cache", "feat_idx", "first_chunk"]
    for name in ("blend_v", "blend_h"):
        assert list(inspect.signature(getattr(vae, name)).parameters) == ["a", "b", "blend_extent"]
    assert vae._skip_keys == ["feat_cache", "feat_idx"], "hooks must hand the cache on, not a copy"
    stock_tiles = AutoencoderKLWan(base_dim=4, num_res_blocks=0)
    for direction in ("height", "width"):
        assert getattr(stock_tiles, f"tile_sample_min_{direction}") == 256
        assert getattr(stock_tiles, f"tile_sample_stride_{direction}") == 192
    cache, index = [None] * len(convolutions), [0]
    latents = latents_of(vae, 2).to(vae.dtype)
    with torch.no_grad():
        first = vae.decoder(latents[:, :, :1], feat_cache=cache, feat_idx=index, first_chunk=True)
        second = vae.decoder(latents[:, :, 1:], feat_cache=cache, feat_idx=[0])
    assert (first.shape[2], second.shape[2]) == (1, 2 ** sum(vae.config.temperal_downsample))
    assert 0 < index[0] <= len(cache)
    assert {one.shape[2] for one in cache if isinstance(one, torch.Tensor)} == {2}
    assert vae._feat_map == [None] * len(convolutions), "the cache is the caller's"
