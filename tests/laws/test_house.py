"""The package's own rules: who asks for types, who prints, how many lines, what is exported, what the tests check."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import jaxtyping
import pytest
import torch

import pocketdiff
from pocketdiff.config import MethodConfig
from pocketdiff.data.augment import flip
from pocketdiff.evaluation.distances import frechet_distance
from pocketdiff.methods import METHODS
from pocketdiff.methods.game import gradient_penalty
from pocketdiff.methods.loop import Method
from pocketdiff.model import ImageModel
from pocketdiff.nets.gan import nonsaturating

SOURCE = Path(pocketdiff.__file__).parent
FILES = {path.relative_to(SOURCE).as_posix(): path for path in sorted(SOURCE.rglob("*.py"))}


def subclasses(cls: type) -> set[str]:
    """The names of a class and of all classes below it."""
    below: list[type] = cls.__subclasses__()
    return {cls.__name__}.union(*(subclasses(each) for each in below))


OWN = (
    subclasses(ImageModel)
    | subclasses(MethodConfig)
    | subclasses(Method)
    | {type(each).__name__ for each in METHODS.values()}
)


def names(node: ast.AST) -> set[str]:
    """Every name in a piece of code, without the module before a dot."""
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)} | {
        part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)
    }


def asked(tree: ast.Module) -> set[str]:
    """The classes that a file asks for: isinstance, issubclass, a match pattern, or a comparison of a type."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in {"isinstance", "issubclass"}
        ):
            found |= names(node.args[1])
        elif isinstance(node, ast.MatchClass):
            found |= names(node.cls)
        elif isinstance(node, ast.Compare) and any(
            isinstance(side, ast.Call) and isinstance(side.func, ast.Name) and side.func.id == "type"
            for side in [node.left, *node.comparators]
        ):
            found |= names(node)
    return found


def test_every_model_config_and_method_is_known() -> None:
    assert {
        "ImageModel", "DiffusionModel", "GanModel", "FewStepModel", "MethodConfig", "DenoiserConfig",
        "DiffusionConfig", "GanConfig", "ConsistencyConfig", "AdversarialConfig",
        "Diffusion", "GanMethod", "Consistency", "Adversarial",
    } <= OWN  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_no_code_outside_a_classs_own_file_asks_for_its_type(name: str) -> None:
    """It asks the model, the config or the method instead."""
    tree = ast.parse(FILES[name].read_text())
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    assert (asked(tree) & OWN) - own == set()


def test_a_question_for_a_type_is_found() -> None:
    for code in (
        "isinstance(x, GanModel)", "isinstance(x, (int, m.GanModel))", "issubclass(x, GanModel | None)",
        "type(x) is GanModel", "match x:\n    case GanModel():\n        pass",
    ):  # fmt: skip
        assert "GanModel" in asked(ast.parse(code))


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("cli/")])
def test_only_the_command_line_prints_parses_handles_signals_or_reads_the_environment(name: str) -> None:
    tree = ast.parse(FILES[name].read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imported & {"argparse", "signal", "rich", "platformdirs"}
    assert not any(module.startswith("rich.") for module in imported)
    calls = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not calls & {"print", "input"}
    assert not names(tree) & {"environ", "getenv", "stderr", "expandvars"}


def test_argparse_stays_in_the_flag_generator() -> None:
    users = {name for name, path in FILES.items() if "argparse" in names(ast.parse(path.read_text()))}
    assert users <= {"cli/flags.py"}


def lines(prefix: str) -> int:
    return sum(len(path.read_text().splitlines()) for name, path in FILES.items() if name.startswith(prefix))


def test_command_line_and_evaluation_stay_small() -> None:
    assert lines("cli/") + lines("evaluation/") <= 4_200


# Exports


STUB = ast.parse((SOURCE / "__init__.pyi").read_text())
EXPORTS = {
    alias.asname: f"pocketdiff.{node.module}"
    for node in STUB.body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}


def test_the_exports_are_those_of_the_stub() -> None:
    assert set(dir(pocketdiff)) == set(vars(pocketdiff)["__all__"]) == set(EXPORTS)
    for name, module in EXPORTS.items():
        assert getattr(pocketdiff, str(name)) is getattr(importlib.import_module(module), str(name))
    with pytest.raises(AttributeError, match="no_such_name"):
        getattr(pocketdiff, "no_such_name")  # noqa: B009
    assert re.fullmatch(r"\d+\.\d+\.\d+", pocketdiff.__version__)


def test_help_names_every_export() -> None:
    """The schedules and samplers as groups."""
    text = str(pocketdiff.__doc__)
    grouped = {"PocketdiffError", "with_sampling"} | {
        name for name, module in EXPORTS.items() if module in {"pocketdiff.schedule", "pocketdiff.samplers"}
    }
    missing = [name for name in EXPORTS if name not in grouped and not re.search(rf"\b{name}\b", text)]
    assert missing == []


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, pocketdiff; dir(pocketdiff); print(sorted({'torch', 'numpy', 'pydantic'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# Types


def test_the_tests_check_shapes_and_types_in_every_package() -> None:
    for call in (
        lambda: flip(torch.zeros(2, 28, 28), 0, range(2)),
        lambda: gradient_penalty(torch.nn.Identity(), torch.zeros(2, 2), torch.zeros(2, dtype=torch.long)),
        lambda: nonsaturating(torch.zeros(2, 2), torch.zeros(2)),
        lambda: frechet_distance(real=torch.zeros(2), fake=torch.zeros(2)),
    ):
        with pytest.raises(jaxtyping.TypeCheckError):
            call()
