"""Attention kernels by name: which there are, whether one can run here, and putting it on a transformer.

name = choose_backend("auto", device, dtype, head_width); set_backend_(transformer, name, device)

Names are ours (the first rows of the table) or diffusers' own. What this machine and model cannot do is refused before a weight is
loaded. All kernels but sage's compute the same up to rounding; sage's hold the scores in 8 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from lynx_video.errors import BadRequest, MissingDependency


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """What a kernel comes in. module: what is imported; least: its oldest version that serves; install: the arguments of pip."""

    module: str
    install: str
    distribution: str = ""
    least: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend:
    """One kernel and what it asks for.

    diffusers: its name there. device: the only kind it runs on. half: takes bfloat16 and float16 only. capability: least CUDA compute
    capability. widest, multiple: of the head width. compiled: whether the block it is in must be compiled, must not, or may.
    """

    diffusers: str
    exact: bool = True
    device: Literal["cuda", "npu", "xla"] | None = None
    half: bool = False
    capability: tuple[int, int] = (0, 0)
    widest: int | None = None
    multiple: int = 1
    package: Package | None = None
    compiled: Literal["must", "may", "never"] = "may"


AUTO = "auto"
_KERNELS = Package(module="kernels", install="'kernels>=0.12.3'", least=(0, 12, 3))
_FLASH_2 = Package(module="flash_attn", install="flash-attn --no-build-isolation", distribution="flash-attn", least=(2, 6, 3))
_FLASH_3 = Package(
    module="flash_attn_interface",
    install="--no-build-isolation 'git+https://github.com/Dao-AILab/flash-attention#subdirectory=hopper'",
)
_SAGE = Package(
    module="sageattention",
    install="--no-build-isolation git+https://github.com/thu-ml/SageAttention",
    distribution="sageattention",
    least=(2, 1, 1),
)
_XFORMERS = Package(module="xformers", install="xformers", distribution="xformers", least=(0, 0, 29))


def _cuda(diffusers: str, least: tuple[int, int] = (8, 0), **rest: Any) -> Backend:
    return Backend(diffusers=diffusers, device="cuda", half=True, capability=least, **rest)


BACKENDS: dict[str, Backend] = {
    "native": Backend(diffusers="native"),
    "cudnn": _cuda("_native_cudnn", widest=128, multiple=8),
    "flash": _cuda("_native_flash", widest=256),  # torch's own build of FlashAttention 2
    "flash3": _cuda("_native_flash", (9, 0), widest=256, package=_FLASH_3),  # in the place of torch's own
    "flex": Backend(diffusers="flex", device="cuda", compiled="must"),
    "sage": _cuda("sage", exact=False, widest=128, package=_SAGE),
    "xformers": Backend(diffusers="xformers", device="cuda", package=_XFORMERS),
    # the other names of diffusers
    "_native_cudnn": _cuda("_native_cudnn", widest=128, multiple=8),
    "_native_flash": _cuda("_native_flash", widest=256),
    "_native_efficient": Backend(diffusers="_native_efficient", device="cuda"),
    "_native_math": Backend(diffusers="_native_math"),
    "_native_npu": Backend(
        diffusers="_native_npu", device="npu", half=True, package=Package(module="torch_npu", install="torch_npu")
    ),
    "_native_xla": Backend(diffusers="_native_xla", device="xla", package=Package(module="torch_xla", install="torch_xla")),
    "flash_hub": _cuda("flash_hub", widest=256, package=_KERNELS),
    "flash_varlen": _cuda("flash_varlen", widest=256, package=_FLASH_2, compiled="never"),
    "flash_varlen_hub": _cuda("flash_varlen_hub", widest=256, package=_KERNELS),
    "flash_4_hub": _cuda("flash_4_hub", (9, 0), widest=128, package=_KERNELS),
    "_flash_3": _cuda("_flash_3", (9, 0), widest=256, package=_FLASH_3),
    "_flash_varlen_3": _cuda("_flash_varlen_3", (9, 0), widest=256, package=_FLASH_3, compiled="never"),
    "_flash_3_hub": _cuda("_flash_3_hub", (9, 0), widest=256, package=_KERNELS),
    "_flash_3_varlen_hub": _cuda("_flash_3_varlen_hub", (9, 0), widest=256, package=_KERNELS),
    "aiter_fa2_hub": _cuda("aiter_fa2_hub", (0, 0), package=_KERNELS),
    "sage_hub": _cuda("sage_hub", exact=False, widest=128, package=_KERNELS),
    "sage_blackwell_hub": _cuda("sage_blackwell_hub", (12, 0), exact=False, widest=128, multiple=64, package=_KERNELS),
    "sage_varlen": _cuda("sage_varlen", exact=False, widest=128, package=_SAGE, compiled="never"),
    "_sage_qk_int8_pv_fp8_cuda": _cuda("_sage_qk_int8_pv_fp8_cuda", (9, 0), exact=False, widest=128, package=_SAGE),
    "_sage_qk_int8_pv_fp8_cuda_sm90": _cuda("_sage_qk_int8_pv_fp8_cuda_sm90", (9, 0), exact=False, widest=128, package=_SAGE),
    "_sage_qk_int8_pv_fp16_cuda": _cuda("_sage_qk_int8_pv_fp16_cuda", exact=False, widest=128, package=_SAGE),
    "_sage_qk_int8_pv_fp16_triton": _cuda("_sage_qk_int8_pv_fp16_triton", exact=False, widest=128, package=_SAGE),
}
SHORT = ("auto", "native", "cudnn", "flash", "flash3", "flex", "sage", "xformers")


def choose_backend(
    name: str, device: torch.device | str, dtype: torch.dtype, head_width: int, *, compiled: bool = False
) -> str:
    """The kernel to run: `name` itself where it can, and for "auto" the fastest exact one that is here.

    compiled: whether the blocks will be. Raises BadRequest for a name nobody knows and for what the device, the dtype or the head width
    rules out, MissingDependency for a package that is not installed.
    """
    device = torch.device(device)
    if name == AUTO:
        return next(
            one
            for one in ("flash3", "cudnn", "flash", "native")
            if _is_best(one, device) and _runs(one, device, dtype, head_width)
        )
    _check(name, device, dtype, head_width)
    needs = _backend(name).compiled
    if needs == "must" and not compiled:
        raise BadRequest(
            f"--attention-backend {name} needs --compile: without it the whole matrix of scores is held in memory."
        )
    if needs == "never" and compiled:
        raise BadRequest(
            f"--attention-backend {name} waits for the device in every block and cannot be compiled; say flash, or leave out --compile."
        )
    return name


def set_backend_(transformer: Any, name: str, device: torch.device | str | None = None) -> None:
    """Put a kernel on every attention of a transformer, before or after adapters are attached; "auto" is chosen here.

    device: where it will run; None: where it is. flash3 replaces FlashAttention 2 of torch in the whole process. Raises as
    `choose_backend`, BadRequest for a kernel that cannot share tokens on a transformer that does, and MissingDependency for a package
    that is there and cannot be loaded.
    """
    from diffusers.models.attention_dispatch import AttentionBackendName

    config = transformer.config
    where = torch.device(device if device is not None else transformer.device)
    if name == AUTO:
        name = choose_backend(name, where, transformer.dtype, config.attention_head_dim)
    _check(name, where, transformer.dtype, config.attention_head_dim)
    processors = transformer.attn_processors.values()
    if not can_share_tokens(name) and any(one._parallel_config is not None for one in processors):
        raise BadRequest(f"--attention-backend {name} cannot share the tokens of a pass among processes; say native.")
    _load(name)
    for one in processors:
        one._attention_backend = AttentionBackendName(_backend(name).diffusers)


def is_exact(name: str) -> bool:
    """Whether a kernel computes what the plain formula does, up to rounding. Raises BadRequest for a name nobody knows."""
    return name == AUTO or _backend(name).exact


def can_share_tokens(name: str) -> bool:
    """Whether diffusers can split the tokens of a pass among processes with it; true of what "auto" chooses."""
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    return name == AUTO or _backend(name).diffusers in _AttentionBackendRegistry._supports_context_parallel


def _backend(name: str) -> Backend:
    if name not in BACKENDS:
        others = ", ".join(sorted(set(BACKENDS) - set(SHORT)))
        raise BadRequest(f"unknown attention backend {name!r}; say one of {', '.join(SHORT)}, or of diffusers' {others}.")
    return BACKENDS[name]


def _is_best(name: str, device: torch.device) -> bool:
    """Whether "auto" would take it on this device, if it runs."""
    if name == "native":
        return True
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    major = torch.cuda.get_device_capability(device)[0]
    return {"flash3": major == 9, "cudnn": major in (9, 10), "flash": True}[name]


def _runs(name: str, device: torch.device, dtype: torch.dtype, head_width: int) -> bool:
    try:
        _check(name, device, dtype, head_width)
        _load(name)
    except (BadRequest, MissingDependency):
        return False
    return True


def _load(name: str) -> None:
    """Load a kernel, here and not in the first forward. Raises MissingDependency for a package that is there and cannot be loaded."""
    from diffusers.models.attention_dispatch import attention_backend

    try:
        if name == "flash3":
            torch.nn.attention.activate_flash_attention_impl("FA3")
        with attention_backend(_backend(name).diffusers):
            pass
    except (RuntimeError, ImportError, OSError, AttributeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise MissingDependency(f"the attention backend {name} cannot be loaded ({reason}); say native.") from error


def _check(name: str, device: torch.device, dtype: torch.dtype, head_width: int) -> None:
    """Raise what `choose_backend` does, but for compilation."""
    one = _backend(name)
    if one.device is not None and device.type != one.device:
        raise BadRequest(f"--attention-backend {name} runs on {one.device}, the model is on {device.type}; say auto or native.")
    if one.half and dtype not in (torch.bfloat16, torch.float16):
        given = str(dtype).removeprefix("torch.")
        raise BadRequest(f"--attention-backend {name} takes bfloat16 and float16, the model is in {given}; say auto or native.")
    if head_width > (one.widest or head_width) or head_width % one.multiple:
        heads = f"heads up to {one.widest} wide" + (f", in steps of {one.multiple}" if one.multiple > 1 else "")
        raise BadRequest(f"--attention-backend {name} takes {heads}, this model's are {head_width}; say auto or native.")
    _check_cuda(name, one, device)
    if one.package is not None:
        _check_package(name, one.package)


def _check_cuda(name: str, one: Backend, device: torch.device) -> None:
    if one.device != "cuda":
        return
    has = torch.cuda.get_device_capability(device)
    if one.capability > has:
        major, minor = one.capability
        raise BadRequest(
            f"--attention-backend {name} needs a GPU of compute capability {major}.{minor}, this one has {has[0]}.{has[1]}; "
            "say auto or native."
        )
    if one.diffusers == "_native_cudnn" and not torch.backends.cudnn.is_available():
        raise BadRequest(f"--attention-backend {name}: this torch was built without cuDNN; say auto or native.")
    if one.diffusers == "_native_flash" and not torch.backends.cuda.is_flash_attention_available():
        raise BadRequest(f"--attention-backend {name}: this torch was built without FlashAttention; say auto or native.")
    if name == "flash3":
        listed: list[str] = getattr(torch.nn.attention, "list_flash_attention_impls", list)()
        if "FA3" not in listed:
            raise BadRequest(f"--attention-backend flash3 needs a newer torch than {torch.__version__}; say _flash_3 or auto.")
        if has[0] != 9:
            raise BadRequest(
                f"--attention-backend flash3 is made for Hopper GPUs (9.0), this one has {has[0]}.{has[1]}; say auto."
            )


def _check_package(name: str, package: Package) -> None:
    import importlib.metadata
    import importlib.util

    found = importlib.util.find_spec(package.module) is not None
    if found and package.least:
        try:
            version = importlib.metadata.version(package.distribution or package.module)
            found = tuple(int(part) for part in version.partition("+")[0].split(".")[:3] if part.isdigit()) >= package.least
        except importlib.metadata.PackageNotFoundError:
            found = False
    if not found:
        least = f" {'.'.join(map(str, package.least))} or newer" if package.least else ""
        raise MissingDependency(
            f"the attention backend {name} needs {package.module}{least}, which is not installed: pip install {package.install}"
        )
