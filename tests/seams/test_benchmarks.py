"""The benchmarks explain themselves before they do anything, and measure what they say."""

import ast
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import pocketdiff as pd
from pocketdiff.methods.loop import batches
from pocketdiff.model import DiffusionModel, build_denoiser

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(path.name for path in BENCHMARKS.glob("*.py") if "__main__" in path.read_text())


@pytest.fixture(autouse=True)
def _importable(monkeypatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.fixture
def tiny_run(tmp_path: Path, monkeypatch, capsys):
    """Runs a benchmark with --tiny, and gives its JSON and what it printed."""

    def run(name: str, *flags: str) -> tuple[dict[str, Any], str]:
        monkeypatch.setattr(sys, "argv", [str(BENCHMARKS / f"{name}.py"), *flags, "--tiny", "--out", str(tmp_path)])
        runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
        found = json.loads((tmp_path / f"{name}.json").read_text())
        assert found["command"].startswith(f"python benchmarks/{name}.py ")
        assert found["hardware"]["threads"] > 0
        assert found["versions"]["torch"] == torch.__version__
        assert "commit" in found
        return found, capsys.readouterr().out

    return run


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_is_an_answer_without_any_work(name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(BENCHMARKS / name), run_name="__main__")
    assert left.value.code == 0
    summary = str(ast.get_docstring(ast.parse((BENCHMARKS / name).read_text()))).splitlines()[0]
    text = capsys.readouterr().out
    assert text.startswith(f"usage: {name} ")
    assert summary in text
    assert list(tmp_path.iterdir()) == []


def test_there_are_benchmarks() -> None:
    assert {"equal_time.py", "judge.py", "on_gpu.py", "presets.py", "throughput.py"} <= set(SCRIPTS)


@pytest.mark.slow
def test_throughput_takes_turns_and_compares_with_the_peak_of_the_same_round(tiny_run, tmp_path: Path) -> None:
    found, printed = tiny_run("throughput")
    names = ["laptop", "ddpm", "gan-conditional", "diffusers"]
    assert found["order"] == [*names, "peak"] * 2
    assert list(found["contenders"]) == names
    peaks, first = found["fp32_peak_flops"]["rounds"], found["contenders"]["laptop"]["images_per_second"]["rounds"]
    for one in found["contenders"].values():
        speeds = one["images_per_second"]["rounds"]
        assert min(speeds) > 0
        assert one["share_of_peak"]["rounds"] == [
            s * one["flops_per_image"] / p for s, p in zip(speeds, peaks, strict=True)
        ]
        assert one["ratio"]["rounds"] == [ours / theirs for ours, theirs in zip(first, speeds, strict=True)]
    assert "| `diffusers` | " in printed
    assert (tmp_path / "throughput.svg").read_text().startswith("<svg")


def test_work_is_counted_as_by_torchs_own_counter_and_with_the_gans_penalty() -> None:
    from training import Preset, changed, mnist, tiny

    data = mnist(small=True)
    denoiser = Preset(tiny(changed("quick")), data)
    batch = next(batches(denoiser.config, data.train, denoiser.state))
    with FlopCounterMode(display=False) as counter:
        denoiser.method.backward(denoiser.state, batch, denoiser.config)
    assert denoiser.flops() == counter.get_total_flops() / len(batch.indices)
    gan = tiny(changed("gan-conditional"))
    assert Preset(gan, data).flops() > Preset(gan.replace(gradient_penalty=0.0), data).flops() > 0


@pytest.mark.slow
def test_time_to_quality_trains_in_turn_and_scores_at_the_given_seconds(tiny_run, tmp_path: Path) -> None:
    names = ["quick", "ddpm", "gan", "diffusers"]
    found, printed = tiny_run("time_to_quality", "--contenders", *names)
    turns = [name for name, _, _ in found["slices"]]
    assert turns[:4] == names  # Nobody gets a second slice before everyone had a first.
    assert all(seconds > 0 and images > 0 for _, seconds, images in found["slices"])
    for name, one in found["contenders"].items():
        trained = [(seconds, images) for who, seconds, images in found["slices"] if who == name]
        last = one["points"][-1]
        assert last["seconds"] == pytest.approx(sum(seconds for seconds, _ in trained))
        assert last["seen"] == sum(images for _, images in trained)
        assert last["metrics"]["frechet_train"] > 0 or last["fault"]
    assert len(found["contenders"]["ddpm"]["points"]) == 1
    assert found["contenders"]["diffusers"]["points"][-1]["how"].startswith(("euler, 1 step,", "dpmpp_2m, 2 steps,"))
    assert found["contenders"]["gan"]["points"][-1]["metrics"].get("accuracy") is None
    assert found["real_images"]["frechet_train"] > 0
    assert "| `quick` | " in printed
    assert (tmp_path / "time_to_quality.svg").exists()


def test_an_interrupt_of_time_to_quality_loses_no_score(tiny_run, tmp_path: Path, monkeypatch) -> None:
    import training

    calls = []

    def score(*_: Any) -> dict[str, Any]:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return {"how": "1 step", "nfe": 1, "metrics": {"frechet_train": 3.0}}

    monkeypatch.setattr(training, "score", score)
    with pytest.raises(KeyboardInterrupt):
        tiny_run("time_to_quality", "--contenders", "gan", "quick")
    found = json.loads((tmp_path / "time_to_quality.json").read_text())
    assert [len(one["points"]) for one in found["contenders"].values()] == [1, 0]


def test_the_time_to_a_distance_is_interpolated_and_a_ratio_without_it_is_a_lower_bound() -> None:
    script = runpy.run_path(str(BENCHMARKS / "time_to_quality.py"))

    def curve(*points: tuple[float, float | None]) -> dict[str, Any]:
        rows = [{"seconds": at, "metrics": {} if d is None else {"frechet_train": d}} for at, d in points]
        return {"points": rows}

    found = {
        "laptop": curve((5, None), (10, 4.0), (40, 1.0)),
        "quick": curve((7, 1.5)),
        "gan": curve((10, 50.0), (80, 40.0)),
        "diffusers": curve((50, 8.0), (100, 4.0), (200, 2.0)),
        "diffusers-fast": curve((100, 9.0)),
    }
    script["times_faster"](found, 300.0, 2.0)
    seconds = {name: one["seconds_to_distance"] for name, one in found.items()}
    known = {"laptop": pytest.approx(20.0), "quick": 7, "gan": None, "diffusers": 200, "diffusers-fast": None}
    assert seconds == known
    assert found["laptop"]["times_faster_than"] == {
        "diffusers": {"ratio": pytest.approx(10.0), "lower_bound": False},
        "diffusers-fast": {"ratio": pytest.approx(15.0), "lower_bound": True},
    }
    assert found["gan"]["times_faster_than"] == {}
    assert list(found["diffusers"]["times_faster_than"]) == ["diffusers-fast"]


def test_of_several_ways_to_draw_with_a_chain_the_best_counts() -> None:
    script = runpy.run_path(str(BENCHMARKS / "time_to_quality.py"))
    scores = [{"how": how, "metrics": {"frechet_train": d} if d else {}} for how, d in (("a", 0), ("b", 3), ("c", 2))]
    assert script["best"](scores)["how"] == "c"
    sampling = script["way"]("heun:7:1.25")
    assert (sampling.sampler, sampling.steps, sampling.scale) == ("heun", 7, 1.25)


@pytest.mark.slow
def test_few_evaluations_scores_every_sampler_and_every_way_of_a_distilled_model(
    tiny_run, mnist: pd.Dataset, tmp_path: Path
) -> None:
    net = pd.UNetConfig(widths=(8,), blocks=1, embedding=8)
    for name, config in {"teacher": pd.DiffusionConfig(net=net), "student": pd.ConsistencyConfig(net=net)}.items():
        model = DiffusionModel(build_denoiser(config, mnist.info), config, mnist.info)
        model.save(tmp_path / f"{name}.safetensors")
    found, printed = tiny_run("few_evaluations", f"{tmp_path}/teacher.safetensors", f"{tmp_path}/student.safetensors")
    ways = [(point["name"], point["nfe"]) for point in found["points"]]
    assert {name for name, _ in ways} == {*pd.SAMPLERS, "student"}
    assert [nfe for name, nfe in ways if name == "euler"] == [2, 4]
    assert [nfe for name, nfe in ways if name == "heun"] == [2, 6]
    assert sorted(nfe for name, nfe in ways if name == "student") == [1, 2]
    assert list(found["drawing"]) == ["teacher", "student, NFE 2", "student, NFE 1"]
    assert all(len(one["seconds"]["rounds"]) == 2 for one in found["drawing"].values())
    assert "| student | 1 | " in printed


@pytest.mark.slow
def test_growth_measures_each_size_in_a_process_of_its_own(tiny_run, tmp_path: Path) -> None:
    found, printed = tiny_run("growth", "--preset", "quick")
    sizes = [[28, 1000], [32, 1000], [28, 2000]]
    assert found["order"] == sizes
    assert [[one["side"], one["images"]] for one in found["measurements"]] == sizes
    for one in found["measurements"]:
        for figure in ("images_per_second", "peak_memory_bytes", "first_step_seconds"):
            assert one[figure]["median"] > 0
    assert "| 32 | 1,000 | " in printed
    assert {path.name for path in tmp_path.glob("*.svg")} == {"growth_side.svg", "growth_images.svg"}


def test_diffusers_network_denoises_as_its_own_loop_trained_it(mnist: pd.Dataset) -> None:
    """Equal inputs, times and targets: the denoiser's loss is the loop's."""
    from training import DiffusersLoop

    loop = DiffusersLoop(mnist, budget=1.0, small=True)
    model, x0 = loop.model(), torch.randn(4, 1, 28, 28)
    eps, t, label = torch.randn_like(x0), torch.tensor([0, 1, 500, 999]), torch.tensor([0, 3, 9, 10])
    with torch.no_grad():
        output = loop.net(loop.chain.add_noise(x0, eps, t), t, class_labels=label).sample
        sigma = (1 / loop.chain.alphas_cumprod[t] - 1).sqrt()
        loss = model.denoiser.loss(x0, eps, sigma, label)
    torch.testing.assert_close(loss, F.mse_loss(output, eps, reduction="none").mean((1, 2, 3)), rtol=1e-3, atol=1e-4)


def test_diffusers_loop_learns_until_its_budget_ends_and_draws_with_averaged_weights(mnist: pd.Dataset) -> None:
    from training import DiffusersLoop

    loop = DiffusersLoop(mnist, budget=1e9, small=True)
    while loop.seen < 5 * loop.batch:
        loop.train(loop.seconds + 1e-9)
    averaged = list(loop.model().denoiser.parameters())
    assert all(torch.equal(a, b) for a, b in zip(averaged, loop.ema.shadow_params, strict=True))
    assert not torch.equal(averaged[0], loop.weights[0])
    last, loop.budget = loop.weights[0].clone(), loop.seconds
    loop.train(loop.seconds + 1e-9)
    assert torch.equal(loop.weights[0], last)


def test_without_diffusers_the_error_says_what_to_install(mnist: pd.Dataset, monkeypatch) -> None:
    from training import DiffusersLoop

    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(SystemExit, match=r"pip install 'pocketdiff\[bench\]'"):
        DiffusersLoop(mnist, budget=1.0)
