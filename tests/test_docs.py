"""What the documentation says is what the code does."""

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("name", "least"), [("ddpm", 6), ("evaluation", 1)])
def test_every_number_of_a_page_is_what_its_code_prints(name: str, least: int) -> None:
    page = (ROOT / f"docs/{name}.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```\n\n^```text\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == len(re.findall("^```python$", page, re.MULTILINE)) >= least
    names: dict[str, object] = {}
    for code, expected in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        assert printed.getvalue() == expected, code


@pytest.mark.parametrize(
    "page", ["README.md", "CHANGELOG.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_every_link_leads_to_a_file(page: str) -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((ROOT / page).parent / target).exists(), target
