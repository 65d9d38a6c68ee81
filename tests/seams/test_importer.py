"""Import of what the original script saved: its equations in float32 on one side, pocketdiff's model on the other."""

import struct
import time
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import Tensor, nn

from pocketdiff import checkpoint
from pocketdiff.config import SamplingConfig
from pocketdiff.errors import CheckpointError
from pocketdiff.importer import import_ddpm
from tests.helpers import functional, used_context_unet


class Script(nn.Module):
    """The script's model: the network, and the schedule's tables in float32 as buffers."""

    def __init__(self, n_feat: int, channels: int, classes: int, steps: int, start: float) -> None:
        super().__init__()
        self.nn_model = used_context_unet(n_feat, channels, classes, seed=n_feat)
        beta = (0.02 - start) * torch.arange(0, steps + 1, dtype=torch.float32) / steps + start
        alpha = 1 - beta
        alphabar = torch.cumsum(torch.log(alpha), 0).exp()
        self.register_buffer("alpha_t", alpha)
        self.register_buffer("oneover_sqrta", 1 / torch.sqrt(alpha))
        self.register_buffer("sqrt_beta_t", torch.sqrt(beta))
        self.register_buffer("alphabar_t", alphabar)
        self.register_buffer("sqrtab", torch.sqrt(alphabar))
        self.register_buffer("sqrtmab", torch.sqrt(1 - alphabar))
        self.register_buffer("mab_over_sqrtmab", (1 - alpha) / torch.sqrt(1 - alphabar))


def saved(
    n_feat: int = 8, channels: int = 1, classes: int = 10, steps: int = 30, start: float = 1e-4
) -> dict[str, Tensor]:
    return Script(n_feat, channels, classes, steps, start).state_dict()


@pytest.fixture
def state() -> dict[str, Tensor]:
    return saved()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model_19.pth"


@torch.no_grad()
@pytest.mark.parametrize(
    ("n_feat", "channels", "classes", "steps", "start"),
    [(8, 1, 10, 30, 1e-4), (16, 3, 4, 7, 1e-3), (8, 1, 2, 1000, 1e-5), (24, 1, 10, 400, 1e-4), (8, 1, 3, 1, 1e-4)],
)
def test_the_imported_models_eps_is_the_scripts(n_feat, channels, classes, steps, start, file, tmp_path) -> None:
    """For every label and the null label, over t from 1 to T, from the model file."""
    state = saved(n_feat, channels, classes, steps, start)
    torch.save(state, file)
    out = tmp_path / "model.safetensors"
    import_ddpm(file).save(out)
    denoiser = checkpoint.load(out).net
    net = {name.removeprefix("nn_model."): tensor for name, tensor in state.items()}
    label = torch.arange(classes + 1)
    context = -torch.eye(classes + 1)[:, :classes]
    generator = torch.Generator().manual_seed(0)
    for t in range(1, steps + 1) if steps <= 30 else (1, 2, 3, steps // 2, steps - 1, steps):
        x_t = torch.randn((classes + 1, channels, 28, 28), generator=generator)
        expected = functional(net, x_t, torch.full((classes + 1, 1), t / steps), context)
        abar = state["alphabar_t"][t].double()
        sigma = ((1 - abar) / abar).sqrt().float().expand(classes + 1)
        x = x_t / state["sqrtab"][t]
        ours = (x - denoiser(x, sigma, label)) / sigma.view(-1, 1, 1, 1)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


def test_the_config_describes_the_file(file: Path) -> None:
    torch.save(saved(16, 1, 4, 50, 2e-4), file)
    model = import_ddpm(file)
    config = model.config.model_dump()
    assert config["net"] == {"kind": "context_unet", "n_feat": 16}
    assert config["schedule"] == {
        "kind": "discrete_beta", "timesteps": 50, "beta_start": 2e-4, "beta_end": 0.02, "zeroth": True,
    }  # fmt: skip
    assert model.classes == ("0", "1", "2", "3")
    assert (model.info.train_images, model.info.sha256) == (None, None)
    assert model.facts()["trained on"].startswith("unknown images")
    assert model.how() == "ancestral_beta, 50 steps, scale 1.5 (w = 0.5)"


def test_the_model_draws_like_any_other(state, file: Path) -> None:
    torch.save(state, file)
    model = import_ddpm(file)
    assert not any(part.training for part in model.net.modules())
    assert model(range(10)).shape == (10, 1, 28, 28)
    few = model.with_sampling(SamplingConfig(sampler="euler", steps=5, schedule=None))
    assert [frame.steps_left for frame in few.frames([3])] == [5, 4, 3, 2, 1, 0]


Change = Callable[[dict[str, Tensor]], object]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("nn_model.up0.0.weight"), "has no 'nn_model.up0.0.weight'"),
        (lambda s: s.pop("nn_model.init_conv.conv1.0.weight"), "has no 'nn_model.init_conv.conv1.0.weight'"),
        (lambda s: s.pop("sqrt_beta_t"), "has no 'sqrt_beta_t'"),
        (lambda s: s.pop("sqrtmab"), "has no 'sqrtmab'"),
        (lambda s: s.update(extra=torch.zeros(1)), "has 'extra'"),
        (lambda s: s.update({"nn_model.extra": torch.zeros(1)}), "has 'nn_model.extra'"),
        (lambda s: s.update({"nn_model.out.3.bias": torch.zeros(2)}), "'nn_model.out.3.bias' has the shape (2,)"),
        (
            lambda s: s.update({"nn_model.out.3.bias": torch.tensor([torch.nan])}),
            "'nn_model.out.3.bias' has invalid values",
        ),
        (
            lambda s: s.update({"nn_model.out.3.bias": torch.tensor([1e300], dtype=torch.float64)}),
            "has invalid values",
        ),
        (lambda s: s["nn_model.up1.model.1.conv1.1.running_var"].neg_(), "running_var' has invalid values"),
        (
            lambda s: s.update({"nn_model.out.3.bias": torch.zeros(1).to(torch.float8_e4m3fn)}),
            "names 'torch._utils _re",
        ),
        (
            lambda s: s.update({"nn_model.out.3.bias": torch.nested.nested_tensor([torch.zeros(1)])}),
            "names 'torch._utils _rebuild_nested_tensor'",
        ),
        (lambda s: setattr(s["nn_model.out.3.bias"], "numel", 3), "names 'torch._tensor _rebuild_from_type_v2'"),
        (lambda s: s.update({"two\nlines": torch.zeros(1)}), "has 'two\\nlines'"),
        (lambda s: s.update(sqrt_beta_t=torch.full((31,), 1e200, dtype=torch.float64)), "cannot be"),
        (lambda s: s.update({"nn_model.out.3.bias": torch.zeros(1, dtype=torch.cfloat)}), "names 'torch Complex"),
        (lambda s: s.update({"nn_model.out.3.bias": torch.zeros(1).to_sparse()}), "names 'torch._utils _rebuild_sp"),
        (
            lambda s: s.update({"nn_model.init_conv.conv1.0.weight": torch.zeros(1).expand(10**9, 1, 3, 3)}),
            "claim more data than it holds",
        ),
        (lambda s: s.update({"nn_model.init_conv.conv1.0.weight": torch.zeros(12, 1, 3, 3)}), "n_feat cannot be 12"),
        (lambda s: s.update({"nn_model.init_conv.conv1.0.weight": torch.zeros(8, 2, 3, 3)}), "2 channels"),
        (lambda s: s.update({"nn_model.init_conv.conv1.0.weight": torch.zeros(8)}), "do not have the script's shapes"),
        (lambda s: s.update({"nn_model.contextembed1.model.0.weight": torch.zeros(16, 0)}), "0 classes"),
        (lambda s: s.update(sqrt_beta_t=torch.zeros(0)), "do not have the script's shapes"),
        (lambda s: s.update(sqrt_beta_t=torch.tensor(0.1)), "do not have the script's shapes"),
        (lambda s: s.update(sqrt_beta_t=s["sqrt_beta_t"] * torch.nan), "beta_start cannot be nan"),
        (lambda s: s.update(sqrt_beta_t=s["sqrt_beta_t"][:1]), "timesteps cannot be 0"),
        (lambda s: s["sqrt_beta_t"].__setitem__(7, 0.01), "'sqrt_beta_t' does not match"),
        (lambda s: s["alphabar_t"].__setitem__(7, 0.5), "'alphabar_t' does not match"),
        (lambda s: s["mab_over_sqrtmab"].mul_(1.1), "'mab_over_sqrtmab' does not match"),
        (lambda s: s.update({3: torch.zeros(1)}), "is not a state dict"),
        (lambda s: s.update(epoch=3), "'epoch' is not a plain tensor"),
    ],
)
def test_a_file_that_is_not_the_scripts_is_refused(change: Change, message: str, state, file: Path) -> None:
    change(state)
    torch.save(state, file)
    refused(file, message)


def refused(file: Path, message: str) -> None:
    with pytest.raises(CheckpointError) as error:
        import_ddpm(file)
    assert str(error.value).startswith(f"{file}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_dict_with_own_attributes_is_read(state, file: Path) -> None:
    dressed = OrderedDict(state)
    dressed.keys = 3  # type: ignore[method-assign, assignment]
    torch.save(dressed, file)
    assert import_ddpm(file).classes == tuple("0123456789")


class Evil:
    """Runs code where a pickle is trusted."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("owned"),))


@pytest.mark.parametrize(
    "what", [[torch.zeros(3)], torch.zeros(3), {"model": {"a": torch.zeros(1)}}, Evil(), "text", None]
)
def test_other_content_is_refused_and_never_run(what: object, file: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(what, file)
    refused(file, "script's torch.save")
    assert not Path("owned").exists()


def zipped(file: Path, pickle: bytes, members: dict[str, bytes] | None = None, compression: int = 0) -> None:
    """An archive as torch.save writes it, with this pickle."""
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in {"data.pkl": pickle, **(members or {})}.items():
            archive.writestr(f"model/{name}", content)


def claimed_size(file: Path) -> None:
    """The directory of the archive claims that a member has 3 GB."""
    zipped(file, b"\x80\x02}.", {"data/0": bytes(10)})
    content = file.read_bytes()
    at = content.rindex(b"PK\x01\x02")
    file.write_bytes(content[: at + 20] + struct.pack("<II", 3 << 30, 3 << 30) + content[at + 28 :])


LARGE = b"\x8a\x05\x00\xca\x9a\x3b\x00"  # 10**9
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"
TENSOR = b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\x00%sttRs."
NESTED = b"\x80\x02}X\x01\x00\x00\x00a" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(64)) + b"K\x00s."
BOMBS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a call": (lambda f: zipped(f, b"c__builtin__\nbytearray\n" + LARGE + b"\x85R."), "names '__builtin__ bytearray'"),
    "a call without an archive": (
        lambda f: f.write_bytes(b"c__builtin__\nbytearray\n" + LARGE + b"\x85R."), "of PyTorch 1.6 or newer"),
    "a found global": (lambda f: zipped(f, b"\x8c\x08builtins\x8c\x03int\x93."), "operation SHORT_BINUNICODE"),
    "deflated": (lambda f: zipped(f, b"}.", {"data/0": bytes(2**28)}, zipfile.ZIP_DEFLATED), "is compressed"),
    "a deflated pickle": (lambda f: zipped(f, bytes(2**28), compression=zipfile.ZIP_DEFLATED), "is compressed"),
    "a large pickle": (lambda f: zipped(f, b"N" * 2**21 + b"."), "has a pickle of 2,097,153 bytes"),
    "a member of 3 GB": (claimed_size, "claims more data than it holds"),
    "nested tuples": (lambda f: zipped(f, NESTED), "is not a state dict"),
    "a large shape": (
        lambda f: zipped(f, TENSOR % (b"(" + LARGE + b"t(K\x00"), {"data/0": bytes(4)}), "claim more data"),
    "a tuple in a shape": (lambda f: zipped(f, TENSOR % (b"(" + LARGE + b"K\x01\x85t(K\x00")), "something else than"),
    "a large memo": (lambda f: zipped(f, b"}r\xff\xff\xff\xffX\x01\x00\x00\x00aNs."), "'a' is not a plain tensor"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_at_once_and_without_memory(name: str, file: Path) -> None:
    write, message = BOMBS[name]
    write(file)
    began = time.perf_counter()
    tracemalloc.start()
    refused(file, message)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.perf_counter() - began < 1
    assert peak < 20e6


def test_files_without_a_state_dict_are_refused(file: Path, tmp_path: Path) -> None:
    refused(file, "no such file")
    refused(tmp_path, "is a folder")
    file.write_bytes(b"")
    refused(file, "cannot be read as a state dict")
    file.write_text("<html>404</html>")
    refused(file, "cannot be read as a state dict")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_damage_gives_a_model_or_one_sentence(data, tmp_path_factory) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.pth"
    good = tmp_path_factory.getbasetemp() / "good.pth"
    if not good.exists():
        torch.save(saved(), good)
    content = bytearray(good.read_bytes())
    if data.draw(st.booleans()):
        content = bytearray(data.draw(st.binary(max_size=200)))
    else:
        # The pickle comes first, the directory of the archive last; the tensors are between them.
        at = data.draw(st.integers(0, 12_000) | st.integers(len(content) - 12_000, len(content) - 1))
        content[at : at + data.draw(st.integers(1, 4))] = data.draw(st.binary(max_size=4))
    path.write_bytes(content)
    try:
        denoiser = import_ddpm(path).denoiser
    except CheckpointError as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017 (both ways are right)
    else:
        assert all(tensor.isfinite().all() for tensor in denoiser.state_dict().values())
