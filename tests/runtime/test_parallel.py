"""Processes that share a generation: who does what, and the result is one process's."""

import functools
import os
import socket
import subprocess
import sys

import pytest
import ranks_worker
import torch
from ranks_worker import CASES
from safetensors.torch import load_file

from lynx_video.errors import BadRequest
from lynx_video.pipeline.guidance import passes
from lynx_video.runtime.parallel import (
    Degrees,
    Processes,
    Ranks,
    choose_degrees,
    processes,
    ranks,
    sharing_tokens,
)

TOLERANCE = 1e-5
EXACT = [name for name in CASES if name.endswith("passes")]
CPU = torch.device("cpu")


def torchrun(count, folder, *asked):
    """Exit status and stderr; the processes end with it, also where they wait for each other."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), "--master-port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, ranks_worker.__file__, str(folder), *asked], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            _, told = process.communicate(timeout=300)
        finally:
            process.terminate()
    return process.returncode, told


@pytest.fixture(scope="module")
def alone():
    """alone(name): the generations of a case in this process, by seed."""
    models = functools.cache(ranks_worker.model)

    @functools.cache
    def make(name, shape, stop):
        case = ranks_worker.Case(name, shape, Degrees(), stop)
        found = {}
        for seed in (0, 1):
            found |= {f"{key} {seed}": value for key, value in ranks_worker.generate(models(name), case, seed=seed).items()}
        return found

    return lambda name: make(CASES[name].model, CASES[name].shape, CASES[name].stop)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """together(name): what each process of a case found; the cases of as many processes run in one go."""

    @functools.cache
    def run(count):
        folder = tmp_path_factory.mktemp(f"ranks{count}")
        asked = [name for name, case in CASES.items() if case.degrees.count == count]
        return folder, torchrun(count, folder, *asked, *(["compiled", "stop"] if count == 2 else []))

    def found(name, count=0):
        count = count or CASES[name].degrees.count
        folder, (status, told) = run(count)
        assert status == 0, told
        return [load_file(folder / f"{name}.{rank}.safetensors") for rank in range(count)]

    return found


def by_count(name):
    return pytest.param(name, marks=pytest.mark.slow) if CASES[name].degrees.count > 3 else name


@pytest.mark.parametrize("name", [by_count(name) for name in CASES])
def test_together_as_alone(name, alone, together, record_property):
    """Two generations one after the other on every process: equal where passes are shared, to 1e-5 where tokens are."""
    one, many = alone(name), together(name)
    assert not torch.equal(one["latents 0"], one["latents 1"])
    for found in many:
        assert found.keys() == one.keys()
        for seed in (0, 1):
            assert torch.equal(found[f"features {seed}"], one["features 0"]), "taken from all tokens, also the second time"
            assert torch.equal(found[f"latents {seed}"], many[0][f"latents {seed}"])
    difference = max(float((many[0][key] - one[key]).abs().max()) for key in ("latents 0", "latents 1"))
    record_property("difference", difference)
    print(f"{name}: {difference:.1e}")
    assert difference <= (0 if name in EXACT else TOLERANCE)


@pytest.mark.parametrize("name", [by_count(name) for name in CASES])
def test_the_work_is_divided(name, alone, together):
    """Each process runs the forwards of its passes with its slice of the tokens; together they are what one does."""
    one, many, degrees = alone(name), together(name), CASES[name].degrees
    whole, parts = one["tokens 0"], [found["tokens 0"] for found in many]
    assert sum(int(part.sum()) for part in parts) == int(whole.sum())
    longest = -(-int(whole[0]) // degrees.tokens)
    assert {int(part.max()) for part in parts} <= {longest, longest - 1}
    steps, stop = ranks_worker.STEPS, CASES[name].stop
    assert max(len(part) for part in parts) == -(-3 // degrees.passes) * stop + steps - stop


def test_a_stop_of_one_stops_all(together):
    assert [found["steps"].tolist() for found in together("stop", 2)] == [[0, 1], [0, 1]]


def test_compiled_blocks_are_compiled_once(together):
    """One graph for the first block, which has a hook, at most one for the others; none for the second generation."""
    for found in together("compiled", 2):
        for name in ("heads", "tokens"):
            assert 1 <= found[f"{name} graphs"][0] <= 2
            assert found[f"{name} graphs"][1] == found[f"{name} graphs"][0]
            assert found[f"{name} difference"] <= TOLERANCE


@pytest.mark.parametrize("backend", ["flex", "_native_efficient"])
def test_an_attention_that_would_see_its_slice_only_is_refused(backend, attached):
    transformer = attached("full").transformer
    for processor in transformer.attn_processors.values():
        processor._attention_backend = backend  # set_attention_backend would make it everybody's default
    mine = Ranks(among=Processes(device=CPU, count=4), degrees=Degrees(ulysses=2, ring=2))
    words = f"the attention backend {backend} can't share heads among 2 processes: .* --ulysses-degree 1 --ring-degree 4"
    with pytest.raises(BadRequest, match=words), sharing_tokens(transformer, mine):
        pass


def test_one_that_fails_ends_all(tmp_path):
    status, told = torchrun(2, tmp_path, "fail")
    assert status != 0
    assert "the second one fell" in told


@pytest.mark.parametrize(
    ("world", "passes_", "heads", "tokens", "expected"),
    [
        (1, 3, 40, 32760, Degrees()),
        (3, 3, 40, 32760, Degrees(passes=3)),
        (6, 3, 40, 32760, Degrees(passes=3, ulysses=2)),
        (2, 2, 40, 48360, Degrees(passes=2)),
        (8, 2, 40, 48360, Degrees(passes=2, ulysses=4)),
        (4, 3, 40, 32760, Degrees(ulysses=4)),
        (8, 3, 40, 32760, Degrees(ulysses=8)),
        (16, 1, 40, 32760, Degrees(ulysses=8, ring=2)),
        (48, 3, 40, 32760, Degrees(passes=3, ulysses=8, ring=2)),
        (7, 3, 40, 32760, Degrees(ring=7)),
        (2, 3, 3, 320, Degrees(ring=2)),
        (3, 2, 3, 384, Degrees(ulysses=3)),
        (3, 2, 3, 320, Degrees(ring=3)),
        (6, 2, 3, 384, Degrees(passes=2, ulysses=3)),
        (4, 1, 4, 45, Degrees(ring=4)),
        (4, 3, 4, 1, None),
    ],
)
def test_chosen_degrees(world, passes_, heads, tokens, expected):
    if expected is None:
        with pytest.raises(BadRequest, match=r"4 processes can't share the work: .* --nproc-per-node 1 or 2 or 3 would work"):
            choose_degrees(world, passes_, heads, tokens)
    else:
        assert choose_degrees(world, passes_, heads, tokens) == expected
        assert expected.count == world


def test_asked_degrees():
    choose = functools.partial(choose_degrees, passes=3, heads=40, tokens=32760)
    assert choose(2, pass_degree=2) == Degrees(passes=2)
    assert choose(4, pass_degree=2) == Degrees(passes=2, ulysses=2)
    assert choose(6, pass_degree=1) == Degrees(ulysses=2, ring=3)
    assert choose(3, ulysses_degree=1) == Degrees(passes=3)
    assert choose(8, ulysses_degree=2, ring_degree=4) == Degrees(ulysses=2, ring=4)
    assert choose(4, ring_degree=1, pass_degree=1) == Degrees(ulysses=4)


@pytest.mark.parametrize(
    ("world", "asked", "words"),
    [
        (
            1,
            {"pass_degree": 3},
            "1 process can't share the work by --pass-degree 3: .* --nproc-per-node 3 or 6 or 9 or 12 would work",
        ),
        (4, {"pass_degree": 3}, "4 processes can't .* --pass-degree 3: .* 3 or 6"),
        (4, {"pass_degree": 4}, "a step has 3 passes .*leave the degrees to be chosen"),
        (3, {"ulysses_degree": 3}, "--ulysses-degree 3: .* 40 heads .*leave the degrees to be chosen"),
        (3, {"ulysses_degree": 2}, "--ulysses-degree 2: .* --nproc-per-node 2 or 4 or 6 or 8 would work"),
        (
            4,
            {"pass_degree": 1, "ulysses_degree": 1, "ring_degree": 2},
            "by --pass-degree 1 --ulysses-degree 1 --ring-degree 2",
        ),
    ],
)
def test_degrees_that_cannot_be(world, asked, words):
    with pytest.raises(BadRequest, match=words):
        choose_degrees(world, 3, 40, 32760, **asked)


@pytest.mark.parametrize(("degree", "expected"), [(1, [3]), (2, [2, 1]), (3, [1, 1, 1])])
def test_every_pass_is_computed_once(degree, expected):
    table = passes(5.0, 2.0)
    degrees = Degrees(passes=degree, ulysses=2)
    shares = [
        Ranks(among=Processes(device=CPU, rank=rank, count=degrees.count), degrees=degrees).share(table)
        for rank in range(degrees.count)
    ]
    assert shares[::2] == shares[1::2], "those that share a pass have the same"
    assert [len(share) for share in shares[::2]] == expected
    assert sum(shares[::2], ()) == table
    lonely = [
        Ranks(among=Processes(device=CPU, rank=rank, count=degree), degrees=Degrees(passes=degree)).share(table[:1])
        for rank in range(degree)
    ]
    assert lonely == [table[:1]] + [()] * (degree - 1)


def test_one_process_changes_nothing(stock_transformer, monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    table, transformer = passes(5.0, 2.0), stock_transformer()
    with ranks("cpu") as mine, sharing_tokens(transformer, mine), sharing_tokens(transformer, None):
        assert mine.first
        assert mine.share(table) == table
        predictions = [torch.ones(2), torch.zeros(2)]
        assert mine.gather(predictions, 2, torch.zeros(2)) == predictions
        assert [mine.agree(stop) for stop in (False, True)] == [False, True]
        assert not torch.distributed.is_initialized()
    assert not transformer.rope._forward_hooks


def test_devices_that_cannot_be_shared(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(BadRequest, match="--device cuda:1: with torchrun say cuda"), processes("cuda:1"):
        pass
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(BadRequest, match="say --nproc-per-node 1 at most"), processes("cuda"):
        pass
    assert not torch.distributed.is_initialized()


def test_what_is_relied_on_in_diffusers(stock_transformer):
    """Names that are not its surface, and where the transformer is cut."""
    from diffusers import ContextParallelConfig, ParallelConfig
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    transformer = stock_transformer()
    assert transformer._cp_plan.keys() == {"rope", "blocks.0", "proj_out", ""}, "cut where diffusers cuts"
    assert {plan.split_dim for plan in transformer._cp_plan["rope"].values()} == {1}
    assert transformer._cp_plan["proj_out"].gather_dim == 1
    assert _AttentionBackendRegistry.get_active_backend()[0] is AttentionBackendName.NATIVE
    able = _AttentionBackendRegistry._is_context_parallel_available
    assert able(AttentionBackendName.NATIVE)
    assert not able(AttentionBackendName.FLEX)
    config = ParallelConfig(context_parallel_config=ContextParallelConfig(ulysses_degree=2))
    assert config.context_parallel_config.ring_degree == 1
