"""The check before the race: what is wrong ends with exit code 1 and no file."""

import pytest
import torch

from lynx_video.bench import check as module
from lynx_video.bench.check import BACKENDS, QUANTIZED, Finding, main
from lynx_video.runtime.attention import BACKENDS as KNOWN
from lynx_video.runtime.quantize import KINDS

CPU = torch.device("cpu")


def test_no_number_is_wrong():
    assert Finding(name="", most=1.0, difference=float("nan")).wrong
    assert Finding(name="", most=0.0, difference=1e-9).wrong
    assert not Finding(name="", most=0.0, difference=0.0).wrong
    assert not Finding(name="", most=0.0, missing="no package").wrong


def test_it_tries_what_there_is():
    assert set(QUANTIZED) == set(KINDS)
    assert set(BACKENDS) <= set(KNOWN)


@pytest.mark.parametrize("wrong", [False, True])
def test_exit_code_and_file(monkeypatch, tmp_path, capsys, wrong):
    findings = [
        Finding(name="passes", most=1e-5, difference=1e-3 if wrong else 1e-6),
        Finding(name="fp8", most=1e-1, missing="no GPU"),
    ]
    monkeypatch.setattr(module, "check", lambda *_: findings)
    file = tmp_path / "check.md"
    assert main(["--device", "cpu", "--output", str(file)]) == int(wrong)
    said = capsys.readouterr()
    assert file.exists() != wrong
    assert f"| passes | 1.0e-0{3 if wrong else 6} | 1e-05 | {'**wrong**' if wrong else 'right'} |" in said.out
    assert "| fp8 | not run: no GPU | 0.1 |  |" in said.out
    assert ("1 of 2 checks failed: passes." in said.err) == wrong


def test_what_breaks_down_is_wrong_unless_it_is_one_of_many():
    def breaks():
        raise RuntimeError("CUDA error:\nno kernel image")

    finding = module._find("compiled", 1e-5, breaks)
    assert finding.wrong
    assert "RuntimeError: CUDA error: no kernel image" in module._line(finding)
    assert not module._find("flash3", 1e-5, breaks, optional=True).wrong


def test_a_moved_model_keeps_what_stays_in_float32(made):
    held, blueprint = module.moved(*made("full"), CPU, torch.bfloat16)
    assert held.dtype == blueprint.dtype == torch.bfloat16
    assert held.transformer.scale_shift_table.dtype == torch.float32
    assert held.transformer.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert made("full")[0].transformer.blocks[0].attn1.to_q.weight.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of torch, by torch
@pytest.mark.parametrize("arm", ["full", "lite"])
def test_everything_is_right_here(arm, tmp_path):
    found = list(module._of_arm(arm, CPU, tmp_path))
    assert [one.name for one in found if one.wrong] == []
    made = {one.name.partition(": ")[2] for one in found if not one.missing}
    assert {"as a batch", "compiled", "blocks offloaded", "int8", "nf4", "attention by native"} <= made
    assert len({one.name for one in found}) == len(found)


@pytest.mark.slow
def test_a_fault_is_seen(monkeypatch, tmp_path):
    """A processor that drops the identity term: every comparison with what is plain must say so."""
    from lynx_video.adapters.attention import Attention

    monkeypatch.setattr(Attention, "_attend_memory", lambda _, query, *__: torch.zeros_like(query).flatten(2))
    wrong = {one.name.partition(": ")[2] for one in module._of_arm("lite", CPU, tmp_path) if one.wrong}
    assert {"passes, from the CPU's plain ones", "passes, from plain ones here"} <= wrong
