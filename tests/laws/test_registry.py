"""Everything that a config can name is open to code outside the package, at any time and by name alone."""

import importlib
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from pydantic import ValidationError

import pocketdiff as pd
from pocketdiff import registry
from pocketdiff.checkpoint import RunConfig, load, read_checkpoint, read_run_config, save_checkpoint
from pocketdiff.config import MethodConfig
from pocketdiff.data import Dataset
from pocketdiff.errors import CheckpointError, PluginError
from pocketdiff.evaluation.score import all_metrics
from pocketdiff.folder import RunFolder
from pocketdiff.nets.gan import LOSSES
from pocketdiff.registry import Named, OneOf, Registry
from tests.helpers import metadata, model_of, trained

MODULE = "mine_plugin"
SOURCE = '''
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

import pocketdiff as pd
from pocketdiff import rng
from pocketdiff.config import DenoiserConfig
from pocketdiff.data import Source, Split
from pocketdiff.data.arrays import read_npz
from pocketdiff.denoiser import Scaling
from pocketdiff.frozen import Frozen
from pocketdiff.methods.loop import DenoiserMethod
from pocketdiff.model import DiffusionModel
from pocketdiff.nets.gan import LOSSES, Gan, GanLosses, Verdict
from pocketdiff.samplers import Step
from pocketdiff.schedule import Range


class Net(nn.Module):
    adam_only = ("emb",)

    def __init__(self, shape: tuple[int, int, int], num_classes: int, width: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(num_classes + 1, width)
        self.first, self.last = nn.Conv2d(shape[0], width, 3, padding=1), nn.Conv2d(width, shape[0], 3, padding=1)

    def forward(self, x: Tensor, noise: Tensor, label: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x) + self.emb(label)[:, :, None, None] + noise[:, None, None, None]))


class NetConfig(Frozen):
    kind: Literal["mine"] = "mine"
    width: int = 4

    def build(self, shape: tuple[int, int, int], num_classes: int) -> Net:
        return Net(shape, num_classes, self.width)


class Generator(nn.Module):
    def __init__(self, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.shape, self.layer, self.label = shape, nn.Linear(3, shape[1] * shape[2]), nn.Embedding(num_classes, 3)

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        return self.layer(z + self.label(label)).view(-1, *self.shape).tanh()


class Discriminator(nn.Module):
    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.layer = nn.Linear(shape[1] * shape[2], 1)

    def forward(self, x: Tensor, label: Tensor) -> Verdict:
        return Verdict(self.layer(x.flatten(1))[:, 0], None)


class GanNet(Frozen):
    kind: Literal["mine"] = "mine"
    conditional: ClassVar[bool] = True
    latent: int = 3

    def build(self, shape: tuple[int, int, int], num_classes: int) -> Gan:
        return Gan(Generator(shape, num_classes), Discriminator(shape))


class Linear(Range):
    kind: Literal["mine"] = "mine"

    def __call__(self, u: Tensor) -> Tensor:
        return self.sigma_min + (self.sigma_max - self.sigma_min) * u


def predict_minus_eps(sigma: Tensor, sigma_data: float) -> Scaling:
    return Scaling(torch.ones_like(sigma), sigma, 1 / (1 + sigma))


def twice(sigma: Tensor, scaling: Scaling, sigma_data: float) -> Tensor:
    return torch.full_like(sigma, 2.0)


def jump(denoise, x, sigmas, noise, *, back: float = 0.0):
    for sigma, sigma_next in zip(sigmas, sigmas[1:]):
        x0_hat = denoise(x, sigma).detach()
        x = x0_hat + (back + sigma_next / sigma) * (x - x0_hat)
        yield Step(sigma_next, x, x0_hat)


def upside_down(pixels: Tensor, seed: int, indices: range) -> Tensor:
    return pixels.flip(2)


def hinge(real: Tensor, fake: Tensor) -> GanLosses:
    return GanLosses((1 - real).relu().mean() + (1 + fake).relu().mean(), -fake.mean())


def digits() -> Source:
    pixels = torch.arange(40 * 28 * 28).view(40, 28, 28).remainder(251).to(torch.uint8)
    return Source(Split(pixels, torch.arange(40) % 10))


class Config(DenoiserConfig):
    kind: Literal["mine"] = "mine"
    level: float = 1.0
    """The one noise level of training."""


class OneLevel(DenoiserMethod[Config]):
    config = Config
    presets = {"mine": Config(images=64)}
    advice = "a lower --adam-lr"

    def backward(self, state, batch, config):
        x0 = batch.pixels / 127.5 - 1
        eps = rng.normal(config.seed, rng.Stream.NOISE, batch.indices, tuple(x0.shape[1:]))
        loss = state.net.loss(x0, eps, torch.full((len(x0),), config.level), batch.label).mean()
        loss.backward()
        return {"loss": loss.detach()}

    def model(self, module, config, info):
        return DiffusionModel(module, config, info)


pd.NETS["mine"] = NetConfig
pd.GANS["mine"] = GanNet
LOSSES["mine"] = hinge
pd.SCHEDULES["mine"] = Linear
pd.PARAMETERIZATIONS["mine"] = predict_minus_eps
pd.WEIGHTINGS["mine"] = twice
pd.SAMPLERS["mine"] = jump
pd.AUGMENTATIONS["mine"] = upside_down
pd.DATASETS["mine"] = digits
pd.METHODS["mine"] = OneLevel()
'''
REGISTRIES: dict[str, Registry[Any]] = {
    each.noun: each
    for each in (
        pd.NETS, pd.GANS, LOSSES, pd.SCHEDULES, pd.PARAMETERIZATIONS, pd.WEIGHTINGS, pd.SAMPLERS, pd.AUGMENTATIONS,
        pd.DATASETS, pd.METHODS,
    )
}  # fmt: skip
SMALL: dict[str, Any] = {
    "images": 12, "batch": 6, "net": {"kind": "unet", "widths": [8], "blocks": 1, "embedding": 8},
    "sampling": {"steps": 2},
}  # fmt: skip
PLAIN_GAN: dict[str, Any] = {
    "kind": "gan", "images": 12, "batch": 6, "net": {"kind": "mlp", "generator": [4], "discriminator": [4]},
    "classification": 0,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "network": SMALL | {"net": {"kind": "mine", "width": 8}},
    "schedule": SMALL | {"schedule": {"kind": "mine", "sigma_max": 9.0}},
    "parameterization": SMALL | {"parameterization": "mine"},
    "loss weighting": SMALL | {"loss_weighting": "mine"},
    "sampler": SMALL | {"sampling": {"steps": 2, "sampler": "mine", "options": {"back": 0.1}}},
    "augmentation": SMALL | {"augment": "mine"},
    "method": SMALL | {"kind": "mine", "level": 0.5},
    "GAN": PLAIN_GAN | {"net": {"kind": "mine"}},
    "GAN loss": PLAIN_GAN | {"loss": "mine"},
}
"""A config that names an entry from outside, for each kind of entry."""


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """Removes every entry and module that a test adds."""
    before = {noun: dict(each) for noun, each in REGISTRIES.items()}
    yield
    for noun, each in REGISTRIES.items():
        each.clear()
        each.update(before[noun])
    forget()
    registry._installed.cache_clear()


def forget() -> None:
    """Makes the plug-in unknown again."""
    sys.modules.pop(MODULE, None)
    for each in REGISTRIES.values():
        each.pop("mine", None)


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], ModuleType]:
    """Imports a module outside the package, which registers an entry of each kind."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / f"{MODULE}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(folder)
    return lambda: importlib.import_module(MODULE)


def config_of(noun: str) -> MethodConfig:
    """The config that names an entry of this kind."""
    given = {"kind": "diffusion"} | CONFIGS[noun]
    found: MethodConfig = pd.METHODS.find(given["kind"]).config.model_validate(given)
    return found


# Entries from outside


def test_every_registry_is_tested() -> None:
    assert CONFIGS.keys() | {"data set"} == REGISTRIES.keys()


@pytest.mark.parametrize("noun", CONFIGS)
def test_an_entry_from_outside_trains_is_saved_and_loads(noun: str, plugin, tiny_data: Dataset, tmp_path) -> None:
    """It is registered after the package was imported; the file says what it needs, and imports nothing."""
    with pytest.raises(ValueError, match=f"there is no {noun} 'mine'"):
        config_of(noun)
    plugin()
    config = config_of(noun)
    model = model_of(trained(config, tiny_data)[0], config, tiny_data)
    path = tmp_path / "model.safetensors"
    model.save(path)
    assert metadata(path)["plugins"] == [{"noun": noun, "name": "mine", "module": MODULE, "package": None}]
    loaded = load(path)
    assert loaded.config == config
    labels = [3, 1] if model.conditional else [10, 10]
    assert torch.equal(loaded(labels), model(labels))
    forget()
    with pytest.raises(CheckpointError) as error:
        load(path)
    assert str(error.value) == (
        f"{path}: needs the {noun} 'mine', which is not part of pocketdiff: import the module '{MODULE}' first (on the "
        f"command line: --plugin {MODULE})"
    )
    assert MODULE not in sys.modules
    plugin()
    assert torch.equal(load(path)(labels), model(labels))


def test_entries_of_several_kinds_work_together(plugin, tiny_data: Dataset, tmp_path) -> None:
    plugin()
    given: dict[str, Any] = {}
    for noun in ("network", "schedule", "parameterization", "augmentation", "sampler", "method"):
        given |= {key: value for key, value in CONFIGS[noun].items() if value != SMALL.get(key)}
    config = pd.METHODS.find("mine").config.model_validate(SMALL | given)
    model = model_of(trained(config, tiny_data)[0], config, tiny_data)
    model.save(tmp_path / "model.safetensors")
    recorded = metadata(tmp_path / "model.safetensors")["plugins"]
    assert {plugin["noun"] for plugin in recorded} == {
        "network", "schedule", "parameterization", "augmentation", "sampler", "method",
    }  # fmt: skip
    assert len(recorded) == 6


def test_a_data_set_from_outside_is_known_by_name_and_not_needed_to_draw(plugin, tmp_path) -> None:
    plugin()
    data = pd.load_data("mine")
    assert data.source == "mine"
    config = pd.DiffusionConfig.model_validate(SMALL | {"data": "mine"})
    model_of(trained(config, data)[0], config, data).save(tmp_path / "model.safetensors")
    forget()
    assert load(tmp_path / "model.safetensors").config.data == "mine"
    with pytest.raises(pd.PocketdiffError, match=r"mine: no such file or folder, and no data set \(mnist\)"):
        pd.load_data("mine")


def test_presets_of_a_method_from_outside_are_presets(plugin) -> None:
    assert "mine" not in pd.PRESETS
    plugin()
    assert pd.PRESETS["mine"].images == 64
    assert list(pd.PRESETS)[:2] == ["quick", "laptop"]
    assert len(pd.PRESETS) == len(list(pd.PRESETS))


def test_a_checkpoint_says_what_it_needs(plugin, tiny_data: Dataset, tmp_path) -> None:
    plugin()
    config = config_of("network")
    run_config = RunConfig(train=config, data=tiny_data.info)
    folder = RunFolder(tmp_path / "run")
    path = save_checkpoint(folder, trained(config, tiny_data)[0], run_config)
    folder.config.write_text(run_config.to_json())
    assert read_run_config(folder) == run_config
    forget()
    with pytest.raises(CheckpointError, match=f"needs the network 'mine', .* --plugin {MODULE}"):
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match="there is no network 'mine'; if a plug-in provides it, import it first"):
        read_run_config(folder)


def test_an_installed_plug_in_is_recorded_with_its_version(plugin, tiny_data: Dataset, tmp_path, monkeypatch) -> None:
    plugin()
    monkeypatch.setattr(registry, "packages_distributions", lambda: {MODULE: ["mine-package"]})
    monkeypatch.setattr(registry, "version", lambda name: {"mine-package": "1.2"}[name])
    config, path = config_of("network"), tmp_path / "model.safetensors"
    model_of(trained(config, tiny_data)[0], config, tiny_data).save(path)
    assert metadata(path)["plugins"][0]["package"] == "mine-package==1.2"
    forget()
    with pytest.raises(CheckpointError, match=r"not part of pocketdiff: pip install mine-package==1\.2$"):
        load(path)


def test_the_entries_of_the_package_are_no_plug_ins(tiny_config: MethodConfig) -> None:
    for preset in pd.PRESETS.values():
        assert registry.plugins(preset) == {}


# Entry points of installed packages


@pytest.fixture
def installed(plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plug-in as an installed package that registers nothing by itself, and a second one that is broken."""
    (Path(sys.path[0]) / f"{MODULE}.py").write_text(SOURCE[: SOURCE.index('pd.NETS["mine"]')])
    points = {
        "pocketdiff.nets": "NetConfig", "pocketdiff.gans": "GanNet", "pocketdiff.gan_losses": "hinge",
        "pocketdiff.schedules": "Linear", "pocketdiff.parameterizations": "predict_minus_eps",
        "pocketdiff.weightings": "twice", "pocketdiff.samplers": "jump", "pocketdiff.augmentations": "upside_down",
        "pocketdiff.data": "digits",
    }  # fmt: skip

    def entry_points(group: str) -> list[EntryPoint]:
        found = {"mine": f"{MODULE}:{points[group]}"} if group in points else {}
        return [EntryPoint(name, value, group) for name, value in (found | {"broken": "no_such_module:x"}).items()]

    monkeypatch.setattr(registry, "entry_points", entry_points)
    registry._installed.cache_clear()


@pytest.mark.parametrize("noun", [noun for noun in CONFIGS if noun != "method"])
def test_an_installed_entry_is_imported_when_it_is_named(noun: str, installed: None) -> None:
    assert REGISTRIES[noun].names()[-2:] == ["mine", "broken"]
    config = pd.DiffusionConfig()
    assert config.net.kind == "unet"
    assert MODULE not in sys.modules
    config_of(noun)
    assert MODULE in sys.modules
    assert "mine" in REGISTRIES[noun]


def test_an_installed_data_set_is_read_by_name(installed: None) -> None:
    assert pd.load_data("mine").info.train_images == 30
    with pytest.raises(PluginError, match="the data set 'broken' cannot be imported"):
        pd.load_data("broken")


@pytest.mark.parametrize("noun", CONFIGS)
def test_a_broken_plug_in_is_one_sentence_and_only_if_it_is_named(noun: str, installed: None) -> None:
    with pytest.raises(PluginError) as error:
        REGISTRIES[noun].find("broken")
    assert str(error.value) == (
        f"the {noun} 'broken' cannot be imported from no_such_module:x: No module named 'no_such_module'"
    )
    pd.DiffusionConfig.model_validate(SMALL)


def test_presets_kinds_and_metrics_leave_out_a_broken_plug_in(installed: None) -> None:
    """Its name is still listed, and naming it says what is wrong."""
    assert "quick" in pd.PRESETS
    assert OneOf(pd.NETS).kinds().keys() == {"unet", "context_unet", "mine"}
    assert "broken" in pd.NETS.names()
    assert "broken" in pd.METRICS.names()
    assert "broken" not in all_metrics()


def test_a_broken_plug_in_in_a_config_is_a_plugin_error(installed: None) -> None:
    with pytest.raises(PluginError, match="the sampler 'broken' cannot be imported"):
        pd.SamplingConfig(sampler="broken")


# Names and kinds


@pytest.mark.parametrize(
    ("given", "where", "message"),
    [
        ({"net": {"kind": "mlp"}}, ("net",), "there is no network 'mlp'; use unet, context_unet"),
        ({"net": {}}, ("net",), "the kind of the network is missing; use unet, context_unet"),
        ({"net": 3}, ("net",), "the kind of the network is missing; use unet, context_unet"),
        ({"net": pd.Karras()}, ("net",), "there is no network 'karras'; use unet, context_unet"),
        ({"parameterization": "y"}, ("parameterization",), "there is no parameterization 'y'; use eps, x0, v, flow"),
        ({"loss_weighting": "x"}, ("loss_weighting",), "there is no loss weighting 'x'; use uniform, min_snr, edm"),
        ({"augment": "turn"}, ("augment",), "there is no augmentation 'turn'; use none, flip"),
        ({"sampling": {"sampler": "ddim"}}, ("sampling", "sampler"), "there is no sampler 'ddim'; use euler, heun, "),
        ({"schedule": {"kind": "x"}}, ("schedule",), "there is no schedule 'x'; use "),
    ],
)
def test_an_unknown_name_is_told_the_known_ones(given: dict[str, Any], where: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        pd.DiffusionConfig(**given)
    (fault,) = error.value.errors()
    assert fault["loc"] == where
    assert fault["msg"].removeprefix("Value error, ").startswith(message)


def test_a_fault_inside_a_kind_is_located_without_the_kind() -> None:
    with pytest.raises(ValidationError) as error:
        pd.DiffusionConfig.model_validate(SMALL | {"net": {"kind": "unet", "widths": [7], "block": 2}})
    assert {fault["loc"] for fault in error.value.errors()} == {("net", "widths"), ("net", "block")}


def test_a_config_object_of_another_class_is_refused(plugin) -> None:
    """Its kind is known, its class is not the registered one."""
    mine = plugin().NetConfig()
    pd.NETS["mine"] = pd.UNetConfig
    with pytest.raises(ValidationError, match="must be a UNetConfig"):
        pd.DiffusionConfig(net=mine)


def test_a_replaced_entry_is_used_at_once() -> None:
    original = pd.SAMPLERS["euler"]
    pd.SAMPLERS["euler"] = pd.heun
    assert pd.SamplingConfig(sampler="euler").rule().func is pd.heun  # type: ignore[attr-defined]
    pd.SAMPLERS["euler"] = original


def test_registries_are_dictionaries_with_a_noun_and_a_group() -> None:
    nouns = {each.noun for each in REGISTRIES.values()}
    groups = {each.group for each in REGISTRIES.values()}
    assert len(nouns) == len(groups) == len(REGISTRIES)
    assert all(group.startswith("pocketdiff.") for group in groups)
    assert all(isinstance(each, dict) for each in REGISTRIES.values())
    empty = Registry[int]("number", "pocketdiff.numbers")
    with pytest.raises(ValueError, match="there is no number 'one'"):
        empty.find("one")
    empty["one"] = 1
    assert (empty.find("one"), empty.names()) == (1, ["one"])


def test_fields_say_which_registry_they_belong_to() -> None:
    """The flag generator and the record of plug-ins read these marks."""
    marks = {
        name: [mark.registry.noun for mark in registry.marks(field.annotation, field.metadata)]
        for name, field in (pd.DiffusionConfig.model_fields | pd.SamplingConfig.model_fields).items()
    }
    assert {name: nouns for name, nouns in marks.items() if nouns} == {
        "net": ["network"], "schedule": ["schedule"], "parameterization": ["parameterization"],
        "loss_weighting": ["loss weighting"], "augment": ["augmentation"], "sampler": ["sampler"],
    }  # fmt: skip
    assert OneOf(pd.NETS).kinds() == {"unet": pd.UNetConfig, "context_unet": pd.NETS["context_unet"]}
    assert OneOf(pd.METHODS).kinds()["gan"] is pd.GanConfig
    assert Named(pd.SAMPLERS).registry is pd.SAMPLERS
