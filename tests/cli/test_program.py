"""The program as a whole: verbs, help, plug-ins, errors."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pocketdiff
from pocketdiff.cli import SYNONYMS, VERBS, flags as flags_module, import_plugin, run
from pocketdiff.errors import PluginError
from pocketdiff.frozen import Filled
from pocketdiff.methods import PRESETS
from pocketdiff.methods.diffusion import DiffusionConfig
from pocketdiff.samplers import SAMPLERS
from tests.cli.helpers import examples, fails, spawn

SAMPLER = """
import torch
from pocketdiff.samplers import SAMPLERS, Step
from {helper} import HALF

@torch.no_grad()
def halfway(denoise, x, sigmas, noise, *, share: float = HALF):
    for sigma, sigma_next in zip(sigmas, sigmas[1:]):
        x0_hat = denoise(x, sigma)
        x = x0_hat * share
        yield Step(sigma_next, x, x0_hat)

SAMPLERS["{name}"] = halfway
"""


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from pocketdiff.cli import run; run(['--help']); print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")
    assert all(f"  {verb} " in done.stdout for verb in VERBS)
    assert len(done.stdout.splitlines()) <= 25, "one screen"
    assert max(map(len, done.stdout.splitlines())) <= 120


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_examples(verb: str, capsys) -> None:
    with pytest.raises(SystemExit) as left:
        run([verb, "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert any(example.startswith(f"pocketdiff {verb} ") for example in examples(text))
    used = {flag for example in examples(text) for flag in re.findall(r" (--[\w.-]+)", example)}
    with pytest.raises(SystemExit):
        run([verb, "--help-all"])
    flags = set(re.findall(r"(?<![\w-])--[\w.-]+", capsys.readouterr().out))
    own = {flag for flag in used if not any(f"pocketdiff {other}" in text for other in VERBS if other != verb)}
    assert own <= flags, "an example has a flag that does not exist"


def test_train_help_has_a_flag_for_every_field_with_its_description(capsys) -> None:
    with pytest.raises(SystemExit):
        run(["train", "--help-all"])
    text = " ".join(capsys.readouterr().out.split())
    for name, field in DiffusionConfig.model_fields.items():
        own = name == "kind" or any(isinstance(mark, Filled) for mark in field.metadata)
        flag = re.search(rf"--{name.replace('_', '-')}(?![\w-])", text)
        assert (flag is None) == own, "the preset and the run decide about these"
        if not own and name not in ("net", "schedule", "sampling"):
            assert " ".join(str(field.description).removesuffix(".").split()) in text
    assert "[karras] Larger: shorter steps" in text
    assert f"--preset {{{','.join(PRESETS)}}}" in text


def test_every_flag_with_other_names_exists(capsys) -> None:
    for words in ("train", "train --preset gan", "train --preset ddpm", "sample", "evaluate"):
        with pytest.raises(SystemExit):
            run([*words.split(), "--help-all"])
    flags = re.findall(r"(?<![\w-])--([\w.-]+)", capsys.readouterr().out)
    assert {name for several in flags_module.SYNONYMS for name in several.split()} <= set(flags)


def test_words_for_verbs_are_no_verbs_and_mean_one() -> None:
    assert SYNONYMS.keys() <= VERBS.keys()
    words = [word for several in SYNONYMS.values() for word in several.split()]
    assert not set(words) & VERBS.keys()
    assert len(set(words)) == len(words)


def test_version(capsys) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"{pocketdiff.__version__}\n"


def test_a_verb_can_be_added(capsys, tmp_path, monkeypatch) -> None:
    (tmp_path / "greeting.py").write_text("def main(arguments):\n    print('hello', *arguments)\n    return 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(VERBS, "greet", ("say hello", "greeting"))
    assert run(["greet", "you"]) == 3
    assert capsys.readouterr().out == "hello you\n"


# Plug-ins


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch) -> Iterator[Path]:
    """A file with a sampler, which imports a file beside it."""
    name = f"own_{tmp_path.name}"
    (tmp_path / f"{name}_helper.py").write_text("HALF = 0.5\n")
    path = tmp_path / f"{name}.py"
    path.write_text(SAMPLER.format(name=name, helper=f"{name}_helper"))
    before = dict(SAMPLERS)
    yield path
    SAMPLERS.clear()
    SAMPLERS.update(before)
    for module in (name, f"{name}_helper"):
        sys.modules.pop(module, None)


def test_an_own_sampler_from_a_file_draws(plugin: Path, finished: Path, tmp_path, capsys) -> None:
    out = tmp_path / "a.png"
    words = ["sample", str(finished), "--labels", "3", "--sampler", plugin.stem, "--out", str(out)]
    fails(capsys, words, 2, f"there is no sampler '{plugin.stem}'")
    paths = list(sys.path)
    assert run([*words, "--plugin", str(plugin), "--options", "share=0.25"]) == 0
    assert f"{plugin.stem}, 2 steps, scale 1.5 (w = 0.5), share 0.25" in capsys.readouterr().out
    assert sys.path == paths
    assert run(["--plugin", str(plugin), *words, "--overwrite"]) == 0, "a second import does nothing"
    assert f"{plugin.stem}, 2 steps, scale 1.5 (w = 0.5), seeds" in capsys.readouterr().out


def test_plug_ins_show_up_in_the_help(plugin: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        run(["sample", f"--plugin={plugin}", "--help"])
    assert f",{plugin.stem}}}" in capsys.readouterr().out


def test_a_module_is_imported_by_name_also_from_the_current_folder(plugin: Path, monkeypatch) -> None:
    monkeypatch.chdir(plugin.parent)
    import_plugin(plugin.stem)
    assert plugin.stem in SAMPLERS


def test_a_process_of_its_own_draws_with_a_plug_in(plugin: Path, finished: Path, tmp_path) -> None:
    words = ["sample", str(finished), "--labels", "3", "--sampler", plugin.stem, "--out", str(tmp_path / "a.png")]
    out, error = spawn([*words, "--plugin", str(plugin)]).communicate(timeout=100)
    assert out.startswith("wrote "), error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1 / 0", "cannot be imported (ZeroDivisionError: division by zero)"),
        ("import nowhere_at_all", "cannot be imported (ModuleNotFoundError: No module named 'nowhere_at_all')"),
        ("x = (", "cannot be imported (SyntaxError: "),
        (None, "cannot be imported (ModuleNotFoundError: "),
    ],
)
def test_a_plug_in_that_cannot_be_imported_is_one_sentence(content: str | None, message: str, tmp_path, capsys) -> None:
    path = tmp_path / "broken_plugin.py"
    if content is not None:
        path.write_text(content)
    fails(capsys, ["sample", "x", "--plugin", str(path)], 2, f"--plugin {path}: {message}")
    assert str(tmp_path) not in sys.path


def test_a_plug_in_needs_a_name_and_hides_no_other_module(tmp_path, capsys) -> None:
    fails(capsys, ["sample", "x", "--plugin"], 2, "--plugin : cannot be imported")
    (tmp_path / "json.py").write_text("")
    with pytest.raises(PluginError, match="another module is called json; rename the file"):
        import_plugin(str(tmp_path / "json.py"))


# Errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fly", "there is no verb 'fly'; the verbs are train, distill, sample"),
        ("train --imges 5", "there is no '--imges'; did you mean --images?; pocketdiff train --help-all lists"),
        ("generate", "there is no verb 'generate'; did you mean sample?"),
        ("trian", "there is no verb 'trian'; did you mean train?"),
        ("train --preset huge", "--preset huge: there is no such preset; there are quick, laptop"),
        ("train --images 5 --epochs 5", "either in images or in epochs"),
        ("train --preset ddpm --n-feat 12", "--net.n-feat 12: input should be a multiple of 8"),
        ("train --preset ddpm --timesteps 10 --steps 11", "10 noise levels"),
        ("train --schedule.kind discrete_beta --schedule.beta-end 0.95", "not between 0 and 1e+30"),
        ("train --sampling.schedule.kind discrete_beta --sampling.schedule.timesteps 5", "5 noise levels"),
        ("train --preset consistency", "needs a teacher: --teacher"),
        ("train --preset consistency --teacher nowhere", "nowhere: no such file"),
        ("train --device meta", "--device meta: there is no such device; use cpu, cuda, mps or auto"),
        ("train --device tpu9", "--device tpu9"),
        ("train --device mps", "--device mps: torch finds no such device here"),
        ("train --out /dev/null/x", "another --out"),
        ("train --data /nowhere", "/nowhere"),
        ("import-ddpm /nowhere.pth", "/nowhere.pth: no such file"),
        ("import-ddpm x.pth --out model.pth", "must end in .safetensors"),
        ("info", "required: RUN_OR_FILE"),
        ("sample /nowhere", "/nowhere: no such file"),
        (
            "sample --labels 1 nowhere",
            "nowhere: no such file; give a model file, the folder of a finished run, or a model",
        ),
        ("sample x --per-label 0", "--per-label 0"),
        ("sample x --out a.bmp", "--out a.bmp: must end in .png, .gif or .npz"),
        ("sample x --seed -1", "--seed -1"),
        ("info /nowhere", "/nowhere"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(words: str, message: str, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    fails(capsys, words.split(), 2, message)
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(capsys) -> None:
    assert run(["info", "/nowhere", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_unexpected_error_is_still_one_line(capsys, tmp_path, monkeypatch) -> None:
    (tmp_path / "failing.py").write_text("def main(arguments):\n    raise RuntimeError('one\\ntwo')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(VERBS, "fail", ("", "failing"))
    fails(capsys, ["fail"], 1, "unexpected RuntimeError (--debug shows where): one")


@pytest.mark.skipif(os.name != "posix", reason="pipes are POSIX's")
def test_a_reader_that_leaves_early_costs_nothing_but_the_words(finished: Path) -> None:
    with spawn(["info", str(finished)]) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
