"""The documentation's site is built strictly, names of the API reference are documented, and the notebook runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*") if path.suffix in (".md", ".ipynb")
)

sys.path.insert(0, str(ROOT / "docs"))
hooks = pytest.importorskip("site_hooks", reason="mkdocs is not installed (the docs extra)")


def leaves(entry) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    return [leaf for part in (entry.values() if isinstance(entry, dict) else entry) for leaf in leaves(part)]


def test_every_page_has_its_place_in_the_navigation_once() -> None:
    nav = YAML(typ="safe", pure=True).load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert sorted(map(Path, leaves(nav))) == PAGES


def test_every_public_name_of_the_reference_has_a_docstring() -> None:
    shown = re.findall(r"^:::(.+)", "\n".join(p.read_text() for p in (ROOT / "docs/api").glob("*.md")), re.MULTILINE)
    shown = [name.strip() for name in shown]
    assert [name for name in shown if not re.fullmatch(r"[\w.]+", name)] == []  # options stand on lines of their own
    assert len(shown) > 30
    assert [name for module in shown for name in hooks.undocumented(module)] == []


def test_a_name_without_docstring_is_found(tmp_path, monkeypatch) -> None:
    (tmp_path / "room.py").write_text(
        '"""Doc."""\n\nclass Base:\n    """Doc."""\n    def a(self):\n        """Doc."""\n'
        "class Of(Base):\n    def a(self): ...\n    def b(self): ...\n    def _c(self): ...\ndef f(): ...\n"
    )
    monkeypatch.setattr(hooks, "ROOT", tmp_path)
    assert hooks.undocumented("room") == ["room.Of", "room.Of.b", "room.f"]


def test_a_link_out_of_the_documentation_must_lead_somewhere() -> None:
    class Page:
        class file:  # noqa: N801
            src_uri = "contributing/task.md"

    text = "see [settings](../../pela_vl/settings.py) and [the house](../architecture.md)"
    assert hooks.on_page_markdown(text, Page) == "see settings and [the house](../architecture.md)"
    with pytest.raises(hooks.PluginError, match="nowhere.py leads nowhere"):
        hooks.on_page_markdown("[x](../../pela_vl/nowhere.py)", Page)


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_links_of_the_front_pages_lead_somewhere(document) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    targets = [t for t in re.findall(r"\]\(([^)#\s]+)", text) if not t.startswith("http")]
    assert targets and [t for t in targets if not (ROOT / t).exists()] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.slow
def test_the_site_is_built_strictly(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    page = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    assert all(f"pela_vl.{name}" in page for name in ("compress", "save", "load", "recover", "optimize_for_inference"))


@pytest.mark.slow
def test_the_notebook_runs_and_its_better_factors_are_better() -> None:
    """Each model's mean recall, as the notebook prints it; and the stored outputs are of these cells."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(ROOT / "docs" / "quickstart.ipynb", as_version=4)
    stored = scores(notebook)
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": ROOT}}).execute()
    found = scores(notebook)
    assert found.keys() == stored.keys() and max(abs(found[name] - stored[name]) for name in found) < 3
    best = "gauss_newton, allocated, sequential"
    assert found["plain SVD"] + 1 < found["whitened"] < found[best] <= found["dense"] + 1
    assert found["plain SVD, recovered"] > found["plain SVD"] + 1
    assert "the loaded model computes the same: True" in printed(notebook)


def printed(notebook) -> str:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.get("text", "") for output in outputs)


def scores(notebook) -> dict[str, float]:
    """Mean recall by model, of what a notebook has printed."""
    found = re.findall(r"^(.+): [\d,]+ parameters, .* mean ([\d.]+)$", printed(notebook), re.MULTILINE)
    assert len(found) == 5
    return {name: float(mean) for name, mean in found}


def test_a_sentence_has_a_line_of_its_own() -> None:
    """In paragraphs and lists of the documentation; tables, code and headings are as they are."""
    wrong = []
    for path in [page for page in (ROOT / "docs").rglob("*.md")]:
        fenced = False
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            fenced ^= line.lstrip().startswith("```")
            if (
                fenced
                or line.startswith(("    ", "|", "#"))
                or line.lstrip().startswith(("- ", "1", "2", "3", "4", "5"))
            ):
                continue
            plain = re.sub(r"`[^`]*`|\[[^\]]*\]\([^)]*\)|\([^)]*\)|\*\*[^*]*\*\*", "x", line)
            if re.search(r"[a-z][.!?] [A-Z][a-z]", plain) and not re.search(r"\b(et al|e\.g|i\.e)\.", plain):
                wrong.append(f"{path.relative_to(ROOT)}:{number}")
    assert wrong == []
