"""Fine-tuning: a new run that starts from a model's weights, also on other data with other classes."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pocketdiff.checkpoint import load
from pocketdiff.config import MethodConfig, SamplingConfig
from pocketdiff.data import Dataset
from pocketdiff.errors import CheckpointError, RequestError, RunError
from pocketdiff.importer import import_ddpm
from pocketdiff.methods import METHODS
from pocketdiff.methods.consistency import ConsistencyConfig
from pocketdiff.methods.diffusion import PRESETS, DiffusionConfig
from pocketdiff.model import DiffusionModel
from pocketdiff.nets.unet import UNetConfig
from pocketdiff.run import Run
from tests.helpers import model_of, new_state, trained
from tests.seams.runs import GAN, assert_ends_like, finish, stopped_and_finished
from tests.seams.test_importer import saved

SOURCE = DiffusionConfig(
    images=400, batch=20, net=UNetConfig(widths=(8,), blocks=1, embedding=8), parameterization="v",
    sampling=SamplingConfig(steps=2, scale=1.7), guidance_strengths=(0.0,),
)  # fmt: skip


@pytest.fixture(scope="module")
def source(tiny_data: Dataset, tmp_path_factory) -> Path:
    """A model file of the ten digits."""
    path: Path = tmp_path_factory.mktemp("source") / "digits.safetensors"
    model_of(trained(SOURCE, tiny_data)[0], SOURCE, tiny_data).save(path)
    return path


@pytest.fixture(scope="module")
def other(tiny_data: Dataset) -> Dataset:
    """Other images: 30 x 26 pixels, with the classes "new", "3" and "1"."""
    images = tiny_data.train.pixels
    chosen = (tiny_data.train.labels == 3) | (tiny_data.train.labels == 1) | (tiny_data.train.labels == 9)
    labels = torch.tensor([0, 2, 0, 1, 0, 0, 0, 0, 0, 0])[tiny_data.train.labels[chosen]]
    pixels = torch.nn.functional.pad(images[chosen], (-1, -1, 1, 1))
    return Dataset.from_arrays(pixels, labels, classes=["new", "3", "1"])


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    """A model of the original script, imported."""
    folder: Path = tmp_path_factory.mktemp("script")
    torch.save(saved(), folder / "model.pth")
    import_ddpm(folder / "model.pth").save(folder / "model.safetensors")
    return folder / "model.safetensors"


def completed(config: MethodConfig) -> Any:
    """The config with what it takes from its source."""
    return METHODS.find(config.kind).complete(config, load)


def weights(module: Any) -> dict[str, Tensor]:
    """The tensors of a denoiser's network."""
    found: dict[str, Tensor] = module.net.state_dict()
    return found


def test_the_config_takes_what_the_weights_were_trained_for(source: Path) -> None:
    config = completed(DiffusionConfig(init_from=str(source), images=80))
    for field in ("net", "parameterization", "sigma_data", "black", "schedule", "sampling"):
        assert getattr(config, field) == getattr(SOURCE, field)
    assert (config.images, config.init_from) == (80, str(source))
    assert len(config.init_sha256) == 64
    assert completed(config) == config
    assert completed(PRESETS["quick"].replace(init_from=str(source))).sampling == SOURCE.sampling
    own = SamplingConfig(steps=3, scale=1.0)
    assert completed(DiffusionConfig(init_from=str(source), sampling=own)).sampling == own


@pytest.mark.parametrize("change", [{"net": UNetConfig(widths=(16,))}, {"parameterization": "eps"}, {"black": 0.0}])
def test_a_choice_that_the_weights_do_not_allow_is_one_sentence(change: dict[str, Any], source: Path) -> None:
    (field,) = change
    with pytest.raises(RequestError, match=f"^{field} is that of init_from and cannot be chosen; leave it out$"):
        completed(DiffusionConfig(init_from=str(source), **change))


def test_sampling_that_the_weights_do_not_allow_is_one_sentence(script: Path) -> None:
    config = DiffusionConfig(init_from=str(script), sampling=SamplingConfig(steps=500, schedule=None))
    with pytest.raises(RequestError, match=r"^the config does not fit what is that of init_from: .*500") as error:
        completed(config)
    assert "\n" not in str(error.value)


def test_other_models_are_refused(source: Path, tiny_data: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    consistency = completed(ConsistencyConfig(teacher=str(source), images=8))
    for config in (GAN, consistency):
        model_of(new_state(config, tiny_data), config, tiny_data).save(path)
        with pytest.raises(RequestError, match=f": is a {config.kind} model; give a diffusion model$"):
            completed(DiffusionConfig(init_from=str(path)))
    with pytest.raises(CheckpointError, match="no such file; give a model file, the folder of a finished run"):
        completed(DiffusionConfig(init_from=str(tmp_path / "none")))
    colour = Dataset.from_arrays(tiny_data.train.pixels.repeat(1, 3, 1, 1), tiny_data.train.labels)
    with pytest.raises(RequestError, match="learned grey images, and these are RGB; convert them"):
        Run(DiffusionConfig(init_from=str(source)), colour, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Weights


def test_the_same_data_start_with_the_same_weights(source: Path, tiny_data: Dataset) -> None:
    before = torch.get_rng_state()
    config = completed(DiffusionConfig(init_from=str(source)))
    state = new_state(config, tiny_data)
    assert torch.equal(torch.get_rng_state(), before)
    theirs = weights(load(source).net)
    assert weights(state.net).keys() == theirs.keys()
    for module in (state.net, state.ema):
        assert [name for name, tensor in weights(module).items() if not torch.equal(tensor, theirs[name])] == []
        assert not any(part.training for part in module.modules())
    assert [next(module.parameters()).requires_grad for module in (state.net, state.ema)] == [True, False]
    assert next(state.net.parameters()).data_ptr() != next(state.ema.parameters()).data_ptr()


@pytest.mark.parametrize("kind", ["unet", "script"])
def test_labels_with_the_same_name_keep_their_weights(kind: str, source: Path, script: Path, other: Dataset) -> None:
    """And the null label; those of other classes are new, and all else is the source's."""
    path = source if kind == "unet" else script
    config = completed(DiffusionConfig(init_from=str(path)))
    fresh = weights(METHODS["diffusion"].build(config, other.info))
    theirs = weights(load(path).net)
    state = new_state(config, other)
    if kind == "unet":  # One row for each label and for the null label.
        names, rows = {"embedding.label.weight"}, {0: None, 1: 3, 2: 1, 3: 10}
    else:  # One-hot inputs, zero for the null label.
        names, rows = {"contextembed1.model.0.weight", "contextembed2.model.0.weight"}, {0: None, 1: 3, 2: 1}
    assert {name for name, tensor in theirs.items() if tensor.shape != fresh[name].shape} == names
    for module in (state.net, state.ema):
        for name, tensor in weights(module).items():
            if name not in names:
                assert torch.equal(tensor, theirs[name])
                continue
            mine, old, new = (each if kind == "unet" else each.T for each in (tensor, theirs[name], fresh[name]))
            assert len(mine) == len(rows)
            for row, known in rows.items():
                assert torch.equal(mine[row], new[row] if known is None else old[known])


def test_classes_without_a_common_name_keep_the_null_label_only(source: Path, tiny_data: Dataset) -> None:
    data = Dataset.from_arrays(tiny_data.train.pixels, tiny_data.train.labels, classes=list("abcdefghij"))
    config = completed(DiffusionConfig(init_from=str(source)))
    rows, theirs = (weights(each)["embedding.label.weight"] for each in (new_state(config, data).net, load(source).net))
    assert (rows == theirs).all(1).tolist() == [False] * 10 + [True]


def loss_of(config: DiffusionConfig, data: Dataset) -> float:
    """The mean loss of the first four steps, with a learning rate of almost zero."""
    still = config.replace(images=80, batch=20, muon_lr=1e-9, adam_lr=1e-9)
    _, reports = trained(still, data)
    return sum(report.losses["loss"].item() for report in reports) / len(reports)


def test_training_starts_at_the_sources_loss(source: Path, tiny_data: Dataset) -> None:
    """On its own data and with other classes; a new network begins far above."""
    tuned, fresh = completed(DiffusionConfig(init_from=str(source))), SOURCE
    _, reports = trained(SOURCE, tiny_data)
    end = sum(report.losses["loss"].item() for report in reports[-5:]) / 5
    assert loss_of(tuned, tiny_data) == pytest.approx(end, rel=0.15)
    renamed = Dataset.from_arrays(tiny_data.train.pixels, tiny_data.train.labels, classes=list("abcdefghij"))
    for data in (tiny_data, renamed):
        assert loss_of(tuned, data) < 0.6 * loss_of(fresh, data)


def test_an_imported_model_can_be_trained_further(script: Path, other: Dataset, tmp_path: Path) -> None:
    config = DiffusionConfig(init_from=str(script), images=16, batch=8, gif_steps=2, guidance_strengths=(0.0,))
    run = finish(Run(config, other, tmp_path / "run"))
    assert (run.config.net, run.config.black) == (load(script).config.net, 0.0)  # type: ignore[attr-defined]
    assert run.model.how() == load(script).how()
    assert run.model([0, 1, 2]).shape == (3, 1, 30, 26)


# Runs


def test_a_stop_changes_nothing(source: Path, other: Dataset, tmp_path: Path) -> None:
    """A model that changed meanwhile is refused; the finished model needs none."""
    begin = tmp_path / "source.safetensors"
    shutil.copy(source, begin)
    config = DiffusionConfig(init_from=str(begin), images=48, batch=8, gif_steps=2, guidance_strengths=(0.0,))
    whole = finish(Run(config, other, tmp_path / "whole"))
    assert_ends_like(stopped_and_finished(config, other, tmp_path / "broken", (1, 4)), whole)
    model: DiffusionModel = load(source)  # type: ignore[assignment]
    with torch.no_grad():
        next(model.net.parameters()).add_(1)
    model.save(begin)
    with pytest.raises(RunError, match="holds a run that differs in init_sha256"):
        Run(config, other, tmp_path / "whole")
    begin.unlink()
    assert torch.equal(load(tmp_path / "whole")([0, 1]), whole.model([0, 1]))
