"""What the documentation says is what the code does."""

import contextlib
import io
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pocketdiff.cli import VERBS
from pocketdiff.data import Dataset
from tests.seams.small import small_world

ROOT = Path(__file__).parents[2]
URLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
PAGES = ["README.md", "CHANGELOG.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]


def blocks(page: str) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def run(code: str, names: dict[str, Any]) -> str:
    """Runs a block in the namespace of the blocks before it; what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "<a block of the docs>", "exec"), names)
    return printed.getvalue()


@pytest.mark.parametrize(("name", "least"), [pytest.param("ddpm", 6, marks=pytest.mark.slow), ("evaluation", 1)])
def test_every_number_of_a_page_is_what_its_code_prints(name: str, least: int) -> None:
    page = (ROOT / f"docs/{name}.md").read_text()
    printing = re.findall(r"^```python\n(.*?)^```\n\n^```text\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(printing) == len(blocks(f"docs/{name}.md")) >= least
    names: dict[str, Any] = {}
    for code, expected in printing:
        assert run(code, names) == expected, code


@pytest.fixture
def small(mnist: Dataset, tmp_path: Path) -> Iterator[None]:
    with small_world(mnist, tmp_path):
        yield


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("page", "least"), [("README.md", 2), pytest.param("docs/library.md", 20, marks=pytest.mark.slow)]
)
def test_every_block_of_a_page_runs(page: str, least: int) -> None:
    found = blocks(page)
    assert len(found) >= least
    names: dict[str, Any] = {"__name__": "__main__"}
    for code in found:
        try:
            run(code.replace("n=2000", "n=150"), names)  # Fewer images to score; all else as it stands there.
        except BaseException as error:
            error.add_note(code)
            raise


def test_every_page_with_python_is_tested() -> None:
    tested = {"README.md", "docs/library.md", "docs/ddpm.md", "docs/evaluation.md"}
    assert {page for page in PAGES if blocks(page)} == tested


def test_every_verb_is_in_the_readme_or_the_docs() -> None:
    text = "".join((ROOT / page).read_text() for page in PAGES)
    assert [verb for verb in VERBS if f"pocketdiff {verb} " not in text] == []


def prose(page: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_and_a_section(page: str) -> None:
    text = re.sub(rf"{URLS['Homepage']}/(blob|raw|tree)/main/", "", prose(page))
    for link in re.findall(r"(?:\]\(|^\[.*\]: )([^)\s]+)", text, re.MULTILINE):
        target, _, section = link.partition("#")
        if target.startswith("https://"):
            continue
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        titles = re.findall(r"^#+ (.*)", path.read_text(), re.MULTILINE) if section else []
        assert not section or section in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def test_the_readme_works_on_a_page_elsewhere() -> None:
    """The package index shows it without the files around it."""
    text = prose("README.md")
    assert [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith(("https://", "#"))] == []
    assert set(re.findall(r"\[((?:docs|examples|benchmarks)/[^\]]+)\](?!:)", text)) == set(
        re.findall(r"^\[(.+)\]: ", text, re.M)
    )
    assert all(url.startswith(URLS["Homepage"]) for url in URLS.values())


def test_the_reading_path_has_its_stated_length() -> None:
    path = prose("README.md").partition("To read the method")[2].partition("\n\n")[0]
    stated = {name: int(count) for name, count in re.findall(r"`([\w/]+\.py)` \((\d+)", path)}
    true = {name: len((ROOT / "src/pocketdiff" / name).read_text().splitlines()) for name in stated}
    assert next(iter(stated)) == "schedule.py"
    assert len(stated) > 8
    assert all(count == pytest.approx(true[name], rel=0.1) for name, count in stated.items()), true
    total = int(str(re.findall(r"about ([\d,]+) lines", path)[0]).replace(",", ""))
    assert total == pytest.approx(sum(true.values()), rel=0.1), sum(true.values())
