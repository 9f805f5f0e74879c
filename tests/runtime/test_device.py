"""What is said of a device: looked at, and measured once."""

import math

import torch

from lynx_video.runtime import device
from lynx_video.runtime.device import Device, device_of, host_bytes, measure, peak_memory


def test_rates_are_measured_once():
    found = measure("cpu", torch.float32)
    assert measure("cpu", torch.float32) is found
    assert measure("cpu", torch.bfloat16) is not found
    for name in ("matmul", "attention", "convolution", "traffic"):
        assert 1e7 < getattr(found, name) < 1e15, name
    assert 0 < found.start < 0.1
    assert math.isinf(found.link)


def test_seconds_are_those_of_the_best_run(monkeypatch):
    clock = iter([0.0, 0.0, 5.0, 5.0, 6.0, 6.0, 9.0])
    monkeypatch.setattr(device, "PROBE_SECONDS", 8)
    monkeypatch.setattr(device.time, "perf_counter", lambda: next(clock))
    runs = []
    assert device._seconds(lambda: runs.append(1), torch.device("cpu")) == 1.0
    assert len(runs) == 1 + 3


def test_this_machine():
    found = device_of("cpu")
    total, free = host_bytes()
    assert 0 < free <= total
    assert (found.kind, found.memory, found.host_memory) == ("cpu", total, total)
    assert found.name
    assert not found.apart
    assert not found.fp8


def test_what_a_gpu_multiplies():
    def gpu(*capability):
        return Device(name="", kind="cuda", memory=1, free=1, host_memory=1, host_free=1, capability=capability)

    assert [gpu(*one).fp8 for one in ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (12, 0))] == [False] * 3 + [True] * 3
    assert [gpu(*one).bf16 for one in ((7, 5), (8, 0), (9, 0))] == [False, True, True]
    assert gpu(8, 0).apart


def test_a_container_has_its_share(monkeypatch):
    files = {
        "/proc/meminfo": "MemTotal: 900 kB\nMemAvailable: 800 kB\n",
        "/sys/fs/cgroup/memory.max": "500\n",
        "/sys/fs/cgroup/memory.current": "300\n",
        "/sys/fs/cgroup/memory.stat": "anon 100\ninactive_file 150\n",
    }
    monkeypatch.setattr(device.Path, "read_text", lambda self, **_: files[str(self)])
    assert host_bytes() == (500, 350)
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert host_bytes()[1] == 800 * 1024


def test_the_peak_of_a_cpu_is_not_counted():
    with peak_memory("cpu") as peak:
        torch.zeros(10)
    assert (peak.allocated, peak.reserved) == (None, None)
