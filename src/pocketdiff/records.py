"""Records of a run and its machine: typed, frozen, the same class for the writer and the reader."""

import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from pocketdiff.frozen import Frozen, Text

Count = Annotated[int, Field(ge=0, lt=2**63)]
Amount = Annotated[float, Field(ge=0, le=1e30, allow_inf_nan=False)]


class Hardware(Frozen):
    """A machine. Family and model tell processors apart that share a name; None where the system does not say."""

    cpu: Text
    vendor: Text | None = None
    family: int | None = None
    model: int | None = None
    threads: Count
    device: Text
    """``cpu``, or the name of the GPU."""
    system: Text

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        return f"{self.cpu if self.device == 'cpu' else self.device}, {threads}"


class Versions(Frozen):
    """Versions of the software that the figures depend on."""

    python: Text
    pocketdiff: Text
    torch: Text
    numpy: Text


class Interval(Frozen):
    """Training since the last line of ``metrics.jsonl``."""

    seen: Count = 0
    """Images seen before it."""
    seconds: Amount = 0.0
    """Training time before it."""
    steps: Count = 0
    sums: dict[str, float] = Field({})
    """The sum of each loss over the steps."""


class Summary(Frozen):
    """``summary.json``: what a finished run took, over all sessions."""

    steps: Count
    images_seen: Count
    parameters: Count
    """Weights that were trained."""
    training_seconds: Amount
    """Time in training steps."""
    other_seconds: Amount
    """Time for everything else: pictures, scores, checkpoints, start."""
    images_per_second: Amount
    peak_memory_bytes: Count | None
    peak_gpu_memory_bytes: Count | None
    fp32_peak_flops: Amount | None = None
    """Measured fp32 peak of the device, in floating-point operations per second."""
    hardware: Hardware
    versions: Versions
    commit: Text | None
    """Of the package's checkout, with ``+`` if its files differ from it; None if it is not a checkout."""


def hardware(device: torch.device | str = "cpu") -> Hardware:
    """The machine at hand, in the system's own words."""
    device, info = torch.device(device), Path("/proc/cpuinfo")
    first = info.read_text().partition("\n\n")[0] if info.exists() else ""
    pairs = (line.partition(":") for line in first.splitlines())
    facts = {name.strip(): value.strip() for name, _, value in pairs}
    family, model = (int(text) if (text := facts.get(key, "")).isdecimal() else None for key in ("cpu family", "model"))
    return Hardware(
        cpu=facts.get("model name") or platform.processor() or platform.machine(),
        vendor=facts.get("vendor_id"),
        family=family,
        model=model,
        threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        system=platform.platform(),
    )


def versions() -> Versions:
    """The versions in use."""
    names = ("pocketdiff", "torch", "numpy")
    return Versions(python=platform.python_version(), **{name: version(name) for name in names})


def peak_memory() -> int | None:
    """The most memory that this process ever held, in bytes; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def fp32_peak(device: torch.device | str = "cpu", seconds: float = 1.0) -> float:
    """The measured fp32 peak in FLOP/s: the better of a matrix product and a convolution, for half the time each."""
    a, x, kernel = (torch.randn(shape, device=device) for shape in ((2048, 2048), (64, 128, 14, 14), (128, 128, 3, 3)))
    x, kernel = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, kernel))
    best = 0.0
    for work, operations in (
        (lambda: a @ a, 2 * 2048**3),
        (lambda: torch.conv2d(x, kernel, padding=1), 2 * 64 * 14 * 14 * 128 * 128 * 9),
    ):
        began = now = time.perf_counter()
        while now - began < seconds / 2:
            work().flatten()[0].item()  # Waits for the device.
            best, now = max(best, operations / (time.perf_counter() - now)), time.perf_counter()
    return best


def commit() -> str | None:
    """The commit of the package's own checkout, with ``+`` if its files were changed; None if it was installed."""
    source = Path(__file__).parent

    def git(*words: str) -> str | None:
        command = ["git", "-C", str(source), *words]
        try:
            return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()  # noqa: S603
        except (OSError, subprocess.SubprocessError):
            return None

    if git("ls-files", "--error-unmatch", __file__) is None:
        return None
    head = git("rev-parse", "HEAD")
    return head and head + ("+" if git("status", "--porcelain", "--", str(source)) else "")
