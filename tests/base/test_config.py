"""Config machinery: what is accepted, what is refused and how the message reads, and that a dump reads back equal."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pela_vl.base.config import dump_yaml, from_dict, load, to_dict
from pela_vl.base.errors import UserError, expand_home
from pela_vl.settings import Settings


@dataclass(frozen=True)
class Optim:
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    lr_scale: dict[str, float] = field(default_factory=dict)
    kind: Literal["adamw", "sgd"] = "adamw"
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.lr < 0:
            raise ValueError(f"lr must be >= 0, got {self.lr}")


@dataclass(frozen=True)
class Teacher:
    checkpoint: str | None = None
    optim: Optim | None = None


@dataclass(frozen=True)
class Config:
    optim: Optim
    files: list[str]
    seed: int = 0
    note: str = ""
    fast: bool = False
    size: int | str = 3
    teacher: Teacher = field(default_factory=Teacher)
    stages: list[Optim] = field(default_factory=list)
    output: Path | None = None
    extra: Any = None


GOOD = "optim:\n  lr: 1e-4\nfiles: [a, b]\n"


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str, name: str = "c.yaml") -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text, encoding="utf-8")
    return name


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(Config, write(text), overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_reads_values_and_defaults() -> None:
    config = load(Config, write(GOOD + "teacher:\n  optim: {lr: 1, betas: [0, 0.5]}\noutput: runs/x\nfast: true\n"))
    assert config == Config(
        optim=Optim(1e-4),
        files=["a", "b"],
        teacher=Teacher(optim=Optim(1.0, (0.0, 0.5))),
        output=Path("runs/x"),
        fast=True,
    )
    assert type(config.teacher.optim.lr) is float and type(config.teacher.optim.betas) is tuple


@pytest.mark.parametrize("text", ["1e-4", "1.e-4", "'1e-4'", "+1E-4", "0.0001", ".0001", "1e-04", "1_0e-5"])
def test_floats_in_any_spelling(text: str) -> None:
    assert load(Config, write(f"optim: {{lr: {text}}}\nfiles: []\n")).optim.lr == 1e-4


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("seed: 1.5", "c.yaml:4: key 'seed' wants int, got 1.5 (float)"),
        ("seed: true", "c.yaml:4: key 'seed' wants int, got True (bool)"),
        ("seed: null", "c.yaml:4: key 'seed' wants int, got null"),
        ("fast: 1", "c.yaml:4: key 'fast' wants bool, got 1 (int)"),
        ("fast: yes", "c.yaml:4: key 'fast' wants bool, got 'yes' (str)"),
        ("note: 5", "c.yaml:4: key 'note' wants str, got 5 (int); quote it"),
        ("size: [1]", "c.yaml:4: key 'size' wants int or str, got [1] (list)"),
        ("teacher: 3", "c.yaml:4: key 'teacher' wants a section with the keys checkpoint, optim, got 3 (int)"),
        ("stages:\n  - lr: 1\n  - lr: x", "c.yaml:6: key 'stages[1].lr' wants float, got 'x' (str)"),
        ("teacher:\n  optim:\n    lr: .nan", "c.yaml:6: key 'teacher.optim.lr' wants float, got nan (float)"),
        ("sede: 1", "c.yaml:4: unknown key 'sede'; did you mean 'seed'?"),
        ("teacher:\n  chekpoint: a", "c.yaml:5: unknown key 'teacher.chekpoint'; did you mean 'teacher.checkpoint'?"),
        ("betas: [1, 2]", "c.yaml:4: unknown key 'betas'; did you mean 'optim.betas'?"),
        ("zzz: 1", "c.yaml:4: unknown key 'zzz'; the keys here are optim, files, seed"),
        ("7: 1", "c.yaml:4: keys must be words, got 7 (int)"),
        ("seed: 1\nseed: 2", "c.yaml:5: not valid YAML: found duplicate key"),
        ("seed: [1", "not valid YAML"),
        ("teacher: {optim: {}}", "c.yaml:4: missing key 'teacher.optim.lr' (float)"),
        ("teacher: {optim: {lr: -1}}", "c.yaml:4: section 'teacher.optim': lr must be >= 0, got -1.0"),
        ("stages: [{lr: 1, kind: adam}]", "wants one of 'adamw', 'sgd', got 'adam' (str); did you mean 'adamw'?"),
        ("stages: [{lr: 1, betas: [1]}]", "key 'stages[0].betas' wants 2 values"),
        ("stages: [{lr: 1, lr_scale: {a.b: x}}]", "key 'stages[0].lr_scale.a.b' wants float, got 'x'"),
    ],
)
def test_refuses_in_one_line(line: str, says: str) -> None:
    assert says in refusal(GOOD + line + "\n")


def test_refuses_whole_files() -> None:
    assert refusal("") == "c.yaml: missing keys 'optim' (a section), 'files' (list[str])"
    assert "got a list" in refusal("- 1\n")
    Path("c.yaml").write_bytes(b"note: \xff\xfe\n")
    with pytest.raises(UserError, match="c.yaml: not UTF-8"):
        load(Config, "c.yaml")
    with pytest.raises(UserError, match="cannot read config absent.yaml: No such file"):
        load(Config, "absent.yaml")


def test_base_is_merged_below_the_file() -> None:
    write("optim: {lr: 1, clip: 2, lr_scale: {a: 1}}\nfiles: [a, b]\nseed: 1\n", "sub/deep/first.yaml")
    write("base: deep/first.yaml\noptim: {lr_scale: {b: 2}}\nseed: 2\n", "sub/second.yaml")
    config = load(Config, write("base: sub/second.yaml\nfiles: [c]\noptim:\n  clip: null\n"))
    assert config == Config(optim=Optim(1.0, lr_scale={"a": 1.0, "b": 2.0}), files=["c"], seed=2)


def test_an_error_in_a_base_names_the_base() -> None:
    write("optim: {lr: 1}\n\nsede: 1\n", "sub/base.yaml")
    assert "sub/base.yaml:3: unknown key 'sede'" in refusal("base: sub/base.yaml\nfiles: []\n")
    assert "c.yaml:2: base file gone.yaml is absent" in refusal("files: []\nbase: gone.yaml\n")
    assert "c.yaml:1: key 'base' wants the name of one YAML file" in refusal("base: [a, b]\n")


def test_base_cycles_are_refused() -> None:
    write("base: ../c.yaml\n", "sub/other.yaml")
    assert "sub/other.yaml:1: 'base' goes round in a circle" in refusal("base: sub/other.yaml\n" + GOOD)


def test_overrides() -> None:
    path = write(GOOD)
    config = load(
        Config,
        path,
        ["optim.lr=1", "optim.lr=2e-3", "files=[x]", "teacher.optim.lr=3", "optim.lr_scale.cls_head.*=5", "note='a=b'"],
    )
    assert config == Config(
        optim=Optim(2e-3, lr_scale={"cls_head.*": 5.0}),
        files=["x"],
        teacher=Teacher(optim=Optim(3.0)),
        note="a=b",
    )


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("sede=1", "--set sede: unknown key 'sede'; did you mean 'seed'?"),
        ("optm.lr=1", "--set optm.lr: unknown key 'optm'; did you mean 'optim'?"),
        ("optim.lr=fast", "--set optim.lr: key 'optim.lr' wants float, got 'fast' (str)"),
        ("seed.x=1", "--set seed.x: key 'seed' wants int"),
        ("seed", "--set seed: write it as key=value"),
        ("=3", "--set =3: write it as key=value"),
        ("optim..lr=3", "write it as key=value"),
        ("files=[1", "--set files: not valid YAML"),
        ("optim.lr=-3", "lr must be >= 0"),
    ],
)
def test_bad_overrides_name_themselves(override: str, says: str) -> None:
    assert says in refusal(GOOD, override)


def test_from_dict_checks_as_files_do() -> None:
    config = Config(optim=Optim(1e-3), files=["a"], output=Path("x"))
    assert from_dict(Config, to_dict(config), "old.ckpt") == config
    with pytest.raises(UserError, match="old.ckpt: unknown key 'sede'"):
        from_dict(Config, {**to_dict(config), "sede": 1}, "old.ckpt")


numbers = st.floats(min_value=0, allow_nan=False)
plain_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
texts = plain_texts.filter(lambda text: text == expand_home(text)) | st.sampled_from(
    ["yes", "null", "~", "1e-4", "", " a ", "a: b", "#", "- x", "2001-01-01", "0x1F", "a\n\nb\n", "<<", "!x", "base"]
)
optims = st.builds(
    Optim,
    lr=numbers,
    betas=st.tuples(numbers, numbers),
    lr_scale=st.dictionaries(texts, numbers, max_size=3),
    kind=st.sampled_from(["adamw", "sgd"]),
    clip=st.none() | numbers,
)
configs = st.builds(
    Config,
    optim=optims,
    files=st.lists(texts, max_size=3),
    seed=st.integers(),
    note=texts,
    fast=st.booleans(),
    size=st.integers() | texts,
    teacher=st.builds(Teacher, checkpoint=st.none() | texts, optim=st.none() | optims),
    stages=st.lists(optims, max_size=2),
    output=st.none() | st.sampled_from([Path("a/b"), Path("yes")]),
    extra=st.none() | st.lists(st.integers() | texts | numbers, max_size=2),
)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(config=configs)
def test_dump_reads_back_equal(config: Config) -> None:
    dump_yaml(config, "dumped.yaml")
    assert load(Config, "dumped.yaml") == config


def test_the_home_folder_is_expanded_in_every_text(monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(Path("home").absolute()))
    home = Path("home").absolute()
    home.mkdir()
    write(GOOD, "home/base.yaml")
    write(
        "base: ~/base.yaml\nfiles: [~/a, b/~/c]\noutput: ~/runs\nteacher: {checkpoint: ~/t}\nextra: ~/as it is\n",
        "home/c.yaml",
    )
    config = load(Config, "~/c.yaml", ["note=~/n", "size=~/s"])
    assert (config.files, config.output) == ([f"{home}/a", "b/~/c"], home / "runs")
    assert (config.teacher.checkpoint, config.note, config.size) == (f"{home}/t", f"{home}/n", f"{home}/s")


def test_long_texts_are_not_folded() -> None:
    config = Config(optim=Optim(1.0), files=["two  blanks, " * 400, "plain words " * 50, "a" * 5000])
    dump_yaml(config, "dumped.yaml")
    assert load(Config, "dumped.yaml") == config
    lines = Path("dumped.yaml").read_text().splitlines()
    assert sum("blanks" in line or "words" in line for line in lines) == 2  # a line each: a search finds them


def test_merge_keys_and_aliases_keep_working() -> None:
    text = GOOD + "stages:\n  - &first {lr: 1, clip: 2}\n  - <<: *first\n    lr: 3\n"
    assert load(Config, write(text)).stages == [Optim(1.0, clip=2.0), Optim(3.0, clip=2.0)]


def test_an_empty_mapping_replaces_what_a_file_has(tmp_path):
    (tmp_path / "base.yaml").write_text("model:\n  overrides: {depth: 3, heads: [2]}\n  image_size: 32\n")
    (tmp_path / "next.yaml").write_text("base: base.yaml\nmodel:\n  overrides: {}\n")
    given = load(Settings, tmp_path / "base.yaml", ["model.overrides={}"]).model
    assert given.overrides == {} and given.image_size == 32
    assert load(Settings, tmp_path / "next.yaml").model.overrides == {}
    assert load(Settings, tmp_path / "base.yaml", ["model.overrides={depth: 4}"]).model.overrides["heads"] == [2]
