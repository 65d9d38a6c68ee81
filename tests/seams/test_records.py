"""Records of a machine and a run."""

import re
import time
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from pocketdiff.methods.diffusion import PRESETS
from pocketdiff.nets.unet import UNetConfig
from pocketdiff.records import Hardware, Summary, Versions, commit, fp32_peak, hardware, peak_memory, versions

SUMMARY = Summary(
    steps=3, images_seen=24, parameters=100, training_seconds=1.5, other_seconds=0.5, images_per_second=16.0,
    peak_memory_bytes=None, peak_gpu_memory_bytes=None, fp32_peak_flops=1.2e11,
    hardware=Hardware(cpu="A CPU", vendor="V", family=6, model=85, threads=2, device="cpu", system="Linux"),
    versions=Versions(python="3.11", pocketdiff="0.1", torch="2.10", numpy="2.0"), commit="abc+",
)  # fmt: skip


def test_a_summary_survives_json() -> None:
    assert Summary.model_validate_json(SUMMARY.model_dump_json()) == SUMMARY


def test_a_summary_of_the_first_version_is_read() -> None:
    """It had no peak, and no vendor, family and model of the processor."""
    old = SUMMARY.model_dump(exclude={"fp32_peak_flops": True, "hardware": {"vendor", "family", "model"}})
    found = Summary.model_validate(old)
    assert (found.fp32_peak_flops, found.hardware.vendor, found.hardware.model) == (None, None, None)


@pytest.mark.parametrize(
    "change",
    [{"steps": -1}, {"training_seconds": float("nan")}, {"commit": "a\x1b[2J"}, {"extra": 1}, {"versions": {}}],
)
def test_a_summary_with_impossible_values_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Summary.model_validate(SUMMARY.model_dump() | change)


def test_the_machine_is_described_in_the_systems_words() -> None:
    found = hardware()
    assert found.cpu
    assert found.threads == torch.get_num_threads()
    assert found.device == "cpu"
    assert str(found) == f"{found.cpu}, {found.threads} thread{'s' * (found.threads != 1)}"
    info = Path("/proc/cpuinfo")
    if info.exists() and "vendor_id" in (text := info.read_text()):
        assert found.vendor == re.search(r"vendor_id\s*: (.*)", text)[1]  # type: ignore[index]
        assert found.family == int(re.search(r"cpu family\s*: (\d+)", text)[1])  # type: ignore[index]
        assert found.model == int(re.search(r"^model\s*: (\d+)", text, re.MULTILINE)[1])  # type: ignore[index]
    assert versions().torch == torch.__version__.partition("+")[0] or versions().torch == torch.__version__


def test_without_proc_the_machine_still_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: False)
    found = hardware()
    assert found.cpu
    assert (found.vendor, found.family, found.model) == (None, None, None)


def test_the_fp32_peak_is_measured_in_the_given_time() -> None:
    fp32_peak(seconds=0.05)  # The first call also starts the kernels.
    began = time.perf_counter()
    peak = fp32_peak(seconds=0.05)
    assert time.perf_counter() - began < 5
    assert 1e9 < peak < 1e14


def test_memory_and_commit() -> None:
    peak = peak_memory()
    assert peak is None or 50e6 < peak < 64e9
    found = commit()
    assert found is None or re.fullmatch(r"[0-9a-f]{40}\+?", found)


# Copies with other values


def test_replace_checks_names_and_values() -> None:
    """``model_copy`` would take both mistakes silently."""
    assert SUMMARY.replace(steps=4) == SUMMARY.model_copy(update={"steps": 4})
    assert SUMMARY.steps == 3
    for wrong, fault in (({"stesp": 4}, "stesp"), ({"steps": -1}, "steps"), ({"hardware": {"cpu": 1}}, "hardware")):
        with pytest.raises(ValidationError, match=fault):
            SUMMARY.replace(**wrong)


def test_replace_keeps_nested_configs_and_clears_what_a_field_excludes() -> None:
    config = PRESETS["quick"].replace(net=UNetConfig(widths=(8,)), sampling={"steps": 3})
    assert (config.net, config.sampling.steps) == (UNetConfig(widths=(8,)), 3)
    for given, length in (({"epochs": 2}, (None, 2)), ({"images": 5}, (5, None)), ({"seed": 1}, (22_000, None))):
        changed = config.replace(**given)
        assert (changed.images, changed.epochs) == length
        assert changed.replace(images=7).images == 7
    with pytest.raises(ValidationError, match="either in images or in epochs"):
        config.replace(images=5, epochs=5)
