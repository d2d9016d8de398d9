"""Docstrings say what a function's arguments are, and names use the words of the field."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "pela_vl").rglob("*.py"))
FROM = 3  # parameters from which on a function documents them
WORDS = frozenset(
    (
        "begun",
        "built",
        "companions",
        "finish",
        "judge",
        "made",
        "note",
        "own",
        "picture",
        "share",
        "side",
        "told",
        "twin",
    )
)
"""Names that say nothing about what they hold."""
PARTS = frozenset(("companion", "companions", "judge", "picture", "pictures", "twin", "twins"))
"""Words that are no part of any name either."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Documented:
    """A public function or method, or the constructor of a public class.

    Args:
        name: Full name in its file.
        node: Its syntax tree.
        parameters: Names, without self and cls.
        docstring: Its own, or for a constructor that has none that of its class.
    """

    name: str
    node: Function
    parameters: list[str]
    docstring: str


def public_functions(body: list[ast.stmt], owner: ast.ClassDef | None = None, above: str = "") -> Iterator[Documented]:
    """Public functions, methods of any class and constructors of public classes; not functions within functions."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from public_functions(node.body, node, f"{above}{node.name}.")
        elif isinstance(node, ast.If | ast.Try):
            yield from public_functions(node.body, owner, above)
        elif isinstance(node, Function):
            constructor = node.name == "__init__" and owner is not None and not owner.name.startswith("_")
            if node.name.startswith("_") and not constructor:
                continue
            arguments, docstring = node.args, ast.get_docstring(node) or ""
            names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
            if constructor and documented(docstring) is None:
                docstring = ast.get_docstring(owner) or ""
            yield Documented(
                above + node.name, node, names[1:] if owner and names[:1] in (["self"], ["cls"]) else names, docstring
            )


def documented(docstring: str) -> list[str] | None:
    """Names in the Args section of a docstring; None if it has no such section."""
    section = re.search(r"^Args:\n((?:(?: {4}.*)?(?:\n|$))+)", docstring, re.MULTILINE)
    return None if section is None else re.findall(r"^ {4}\*{0,2}(\w+):", section[1], re.MULTILINE)


def undocumented(source: str, file: str) -> list[str]:
    """One line for each public function of three parameters or more whose Args section does not name exactly these."""
    found = []
    for function in public_functions(ast.parse(source).body):
        node, name, parameters = function.node, function.name, function.parameters
        if len(parameters) < FROM:
            continue
        names = documented(function.docstring)
        if names is None:
            found.append(f"{file}:{node.lineno} {name}: no Args section")
            continue
        more = {a.arg for a in (node.args.vararg, node.args.kwarg) if a is not None}
        missing = [parameter for parameter in parameters if parameter not in names]
        strange = [entry for entry in names if entry not in parameters and entry not in more]
        if missing or strange:
            found.append(
                f"{file}:{node.lineno} {name}: Args lacks {missing}, and names {strange} that are no parameters"
            )
    return found


def empty_names(source: str, file: str) -> list[str]:
    """One line for each variable, field, parameter, function or class whose name is one of the banned words."""
    found = []
    for node in ast.walk(ast.parse(source)):
        name = None
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            name = node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, Function | ast.ClassDef | ast.ExceptHandler | ast.MatchAs | ast.MatchStar):
            name = node.name
        elif isinstance(node, ast.alias):
            name = node.asname
        words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name or "").lower().strip("_")
        if words in WORDS or PARTS.intersection(words.split("_")):
            found.append(f"{file}:{getattr(node, 'lineno', 0)} {name}")
    return found


def of_all_files(check) -> list[str]:
    return [line for file in FILES for line in check(file.read_text(encoding="utf-8"), str(file.relative_to(ROOT)))]


def test_public_functions_of_three_parameters_and_more_say_what_each_is():
    found = of_all_files(undocumented)
    assert not found, f"{len(found)} functions:\n" + "\n".join(found)


def test_no_name_is_one_of_the_words_that_say_nothing():
    found = of_all_files(empty_names)
    assert not found, f"{len(found)} names:\n" + "\n".join(found)


def test_the_package_has_functions_to_check():
    functions = [f for file in FILES for f in public_functions(ast.parse(file.read_text(encoding="utf-8")).body)]
    assert sum(len(function.parameters) >= FROM for function in functions) > 300


DOCUMENTED = '''
class Layer:
    def forward(self, x, mask, size=None, *rest, key, **options):
        """One line.

        Text: with a colon.

        Args:
            x: Tokens.
            mask: Real tokens:
                1 or 0.

            size: None means one.
            *rest: More.
            key: Which.
            **options: Others.

        Returns:
            other: not a parameter.
        """
'''


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("            mask: Real tokens:\n                1 or 0.\n", "", "Args lacks ['mask'], and names []"),
        ("            key: Which.\n", "", "Args lacks ['key'], and names []"),
        ("            size:", "            sizes:", "Args lacks ['size'], and names ['sizes']"),
        ("        Args:\n", "        Arguments:\n", "no Args section"),
    ],
)
def test_what_is_missing_in_a_docstring_is_named(before: str, after: str, complaint: str):
    assert undocumented(DOCUMENTED, "f.py") == []
    assert before in DOCUMENTED
    (line,) = undocumented(DOCUMENTED.replace(before, after), "f.py")
    assert line.startswith("f.py:3 Layer.forward: ") and complaint in line


@pytest.mark.parametrize(
    "source",
    [
        "def f(a, b, c): ...",
        "async def f(a, *, b, c): ...",
        "def f(a, /, b, c): ...",
        "class A:\n    class B:\n        def f(self, a, b, c): ...",
        "class A:\n    @classmethod\n    def f(cls, a, b, c): ...",
        "class A:\n    @staticmethod\n    def f(a, b, c): ...",
        "if True:\n    def f(a, b, c): ...",
        "class _A:\n    def f(self, a, b, c): ...",
    ],
)
def test_every_form_of_a_function_is_seen(source: str):
    assert len(undocumented(source, "f.py")) == 1
    assert undocumented(source.replace(" f(", " _f("), "f.py") == []
    assert undocumented(source.replace(", c", ""), "f.py") == []


def test_a_constructor_is_documented_by_itself_or_by_its_class():
    bare = "class A:\n    {}\n    def __init__(self, a, b, c):\n        {}"
    section = '"""What.\n\n{0}Args:\n{0}    a: 1.\n{0}    b: 2.\n{0}    c: 3.\n{0}"""'
    assert undocumented(bare.format(section.format(" " * 4), "..."), "f.py") == []
    assert undocumented(bare.format("", section.format(" " * 8)), "f.py") == []
    assert undocumented(bare.format("", "..."), "f.py") == ["f.py:3 A.__init__: no Args section"]
    assert undocumented(bare.format("", "...").replace("A", "_A"), "f.py") == []


def test_a_function_within_a_function_needs_no_section():
    assert undocumented("def f(a):\n    def g(b, c, d): ...", "f.py") == []


@pytest.mark.parametrize(
    "source",
    [
        "own = 1",
        "for side in x: ...",
        "a, (told, b) = x",
        "with x as note: ...",
        "def f(*, share): ...",
        "def finish(): ...",
        "class Picture: ...",
        "class A:\n    made: int = 0",
        "self.twin = 1",
        "x = [built for built in y]",
        "import x as judge",
        "try: ...\nexcept E as begun: ...",
        "f = lambda own: own",
        "class PictureReader: ...",
        "_momentum_twin = 1",
    ],
)
def test_every_form_of_a_name_is_seen(source: str):
    assert len(empty_names(source, "f.py")) == 1


def test_longer_names_and_names_of_others_may_hold_an_ordinary_word():
    assert empty_names("min_side = x.share\nf(note=1)\nshared = sides = 2", "f.py") == []
