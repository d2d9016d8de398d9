"""What mkdocs does beside rendering: links to files of the repository become plain names, and no public name lacks a docstring."""

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

ROOT = Path(__file__).resolve().parents[1]
# torch documents these of every module
_OF_TORCH = {"forward", "extra_repr"}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A link that leaves docs/ is one for readers of the repository; on the site its text stays. The target must exist."""
    folder = (ROOT / "docs" / page.file.src_uri).parent

    def plain(match: re.Match[str]) -> str:
        target = (folder / match[2].partition("#")[0]).resolve()
        if ROOT / "docs" in target.parents:
            return match[0]
        if not target.exists():
            raise PluginError(f"{page.file.src_uri}: the link to {match[2]} leads nowhere")
        return match[1]

    return re.sub(r"\[([^\]]+)\]\(((?:\.\./)+[^)\s]*)\)", plain, markdown)


def on_pre_build(**_: Any) -> None:
    """Every public name of a module that the API reference shows has a docstring."""
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").glob("*.md"))
    missing = [name for module in re.findall(r"^::: (\S+)", pages, re.MULTILINE) for name in undocumented(module)]
    if missing:
        raise PluginError("these public names have no docstring: " + ", ".join(missing))


def undocumented(module: str) -> list[str]:
    """Public functions, classes and methods of a module without a docstring of their own or of what they override."""
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = [] if ast.get_docstring(tree) else [module]
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            found.append(f"{module}.{node.name}")
        if isinstance(node, ast.ClassDef):
            found += [
                f"{module}.{node.name}.{method.name}"
                for method in node.body
                if isinstance(method, ast.FunctionDef)
                and not method.name.startswith("_")
                and not ast.get_docstring(method)
                and method.name not in _OF_TORCH | _documented_in_bases(node, tree)
            ]
    return found


def _documented_in_bases(node: ast.ClassDef, tree: ast.Module) -> set[str]:
    """Methods with a docstring in those bases of a class that the same module defines."""
    bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
    return {
        method.name
        for other in tree.body
        if isinstance(other, ast.ClassDef) and other.name in bases
        for method in other.body
        if isinstance(method, ast.FunctionDef) and ast.get_docstring(method)
    }
