"""Every option of the room's public calls changes what it is said to change, and nothing else."""

import copy
import json
from dataclasses import asdict
from itertools import product

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import pela_vl
from pela_vl.lowrank import (
    LowRankLinear,
    OutputMetric,
    PivotedLinear,
    PlanError,
    apply_plan,
    calibrate,
    compress,
    covariance_root,
    low_rank_layers,
    make_recipe,
    measure_metrics,
    merge_dense,
    pivot,
    pivot_layer,
    pivoted_layers,
    plan_ranks,
    rank_plan,
)
from pela_vl.lowrank.calibration import row_products
from pela_vl.lowrank.pivot import pivot_rows
from pela_vl.lowrank.recipe import EARLY, EARLY_PREDICTED, position_scales


class Net(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(11, 17, bias), nn.Tanh(), nn.Linear(17, 11, bias)) for _ in "ab"
        )
        self.head = nn.Linear(11, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x).mean(1)


INNER = ["blocks.0.0", "blocks.0.2", "blocks.1.0", "blocks.1.2"]


def samples(count: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(6, 4, 11, generator=generator) @ torch.logspace(0, -1, 11).diag() + 0.3 for _ in range(count)]


@pytest.fixture(scope="module")
def gathered():
    return measure_metrics(Net().eval(), [*INNER, "head"], samples())


@pytest.mark.parametrize("init", ["svd", "whitened", "gauss_newton", "empty"])
@pytest.mark.parametrize("bias, wanted, training, dtype", [
    (True, True, True, torch.float32),
    (True, False, False, torch.float64),
    (False, True, False, torch.float64),
    (True, True, False, torch.bfloat16),
])  # fmt: skip
def test_a_layer_is_replaced_by_one_of_its_kind(gathered, init, bias, wanted, training, dtype):
    model = Net(bias).to(dtype).train(training)
    linear = model.blocks[1][0]
    linear.weight.requires_grad_(wanted)
    if bias:
        linear.bias.requires_grad_(not wanted)
    linear.of_the_user = "kept"
    statistics, metrics = gathered
    (report,) = apply_plan(model, {INNER[2]: 4}, init, None, statistics, metrics)
    layer = model.blocks[1][0]
    assert type(layer) is LowRankLinear and (layer.in_features, layer.out_features, layer.rank) == (11, 17, 4)
    assert layer.training == layer.up.training == layer.down.training == training and layer.of_the_user == "kept"
    for factor, shape in ((layer.up.weight, (17, 4)), (layer.down.weight, (4, 11))):
        assert factor.shape == shape and factor.dtype == dtype and factor.requires_grad == wanted
        assert type(factor) is nn.Parameter and factor.device.type == "cpu" and factor.is_contiguous()
    assert (layer.up.bias is None) == (not bias) and layer.down.bias is None
    if bias:
        assert (layer.up.bias is linear.bias) == (init in ("svd", "empty"))
        assert layer.up.bias.dtype == dtype and layer.up.bias.requires_grad != wanted
    assert {k: v for k, v in vars(report).items() if k in ("name", "in_features", "out_features", "rank")} == {
        "name": INNER[2], "in_features": 11, "out_features": 17, "rank": 4
    }  # fmt: skip
    given = {
        name
        for name in ("rel_error", "spectrum", "output_error", "predicted_error")
        if getattr(report, name) is not None
    }
    wanted_parts = {"svd": {"rel_error", "spectrum"}, "empty": set()}
    wanted_parts |= {"whitened": {"rel_error", "spectrum", "output_error"}}
    wanted_parts |= {"gauss_newton": {"rel_error", "spectrum", "predicted_error"}}
    assert given == wanted_parts[init]
    if init != "empty":
        error = (linear.weight - layer.dense_weight()).norm() / linear.weight.norm()
        assert report.rel_error == pytest.approx(float(error.detach()), rel=0.02 if dtype == torch.bfloat16 else 1e-4)
        assert report.spectrum.shape == (11,) and report.spectrum.dtype == torch.float32
    if init in ("whitened", "gauss_newton") and bias and dtype == torch.float64:  # outputs keep their mean
        mean = statistics[INNER[2]].mean
        torch.testing.assert_close(layer(mean), linear(mean))
    if init == "gauss_newton":
        left = float(report.spectrum[4:].double().square().sum())
        assert report.predicted_error == pytest.approx(left, rel=1e-3)


def test_empty_factors_may_be_pivoted():
    model, x = Net().eval(), samples(1)[0]
    reports = apply_plan(model, {name: 4 for name in INNER}, "empty", pivoted=INNER[1:3])
    assert [report.name for report in reports] == INNER and list(pivoted_layers(model)) == INNER[1:3]
    assert list(low_rank_layers(model)) == [INNER[0], INNER[3]] and rank_plan(model) == dict.fromkeys(INNER, 4)
    bias = Net().blocks[0][2].bias
    assert torch.equal(model.blocks[0][2].bias, bias) and not model.blocks[0][2].training
    source = Net().eval()
    apply_plan(source, dict.fromkeys(INNER, 4))
    source.blocks[0][2], source.blocks[1][0] = pivot_layer(source.blocks[0][2]), pivot_layer(source.blocks[1][0])
    model.load_state_dict(source.state_dict(), strict=True)
    assert torch.equal(model(x), source(x))
    for init, names in (("svd", INNER[:1]), ("empty", ["head"])):
        with pytest.raises(PlanError, match=r"^pivoted names layers of the plan"):
            apply_plan(Net(), {INNER[0]: 4}, init, pivoted=names)


@pytest.mark.parametrize("change, message", [
    ({"statistics": None}, "blocks.0.0: init 'gauss_newton' needs statistics"),
    ({"metrics": None}, "blocks.0.0: init 'gauss_newton' needs the metric"),
    ({"metrics": {}}, "blocks.0.0: init 'gauss_newton' needs the metric"),
    ({"metrics": {"blocks.0.0": OutputMetric(16)}}, "the metric is of outputs of width 16, not 17"),
    ({"plan": {"blocks.0.0": 0}}, r"rank 0 is not a whole number in 1\.\.11"),
    ({"plan": {"blocks.0.0": 12}}, r"rank 12 is not a whole number in 1\.\.11"),
    ({"plan": {"blocks.0.0": True}}, r"rank True is not a whole number"),
])  # fmt: skip
def test_what_an_init_lacks_is_said(gathered, change, message):
    model = Net()
    given = {"plan": {"blocks.0.0": 3}, "init": "gauss_newton", "statistics": gathered[0], "metrics": gathered[1]}
    with pytest.raises(PlanError, match=f"^{message}|: {message}"):
        apply_plan(model, **given | change)
    assert not low_rank_layers(model)
    for rank in (1, 11):  # the ends of what is allowed
        apply_plan(Net(), **given | {"plan": {"blocks.0.0": rank}})


@pytest.mark.parametrize("init, ranks, measured", [
    ("svd", "uniform", False),
    ("svd", "allocated", False),
    ("whitened", "uniform", False),
    ("whitened", "allocated", True),
    ("gauss_newton", "uniform", False),
    ("gauss_newton", "allocated", True),
])  # fmt: skip
def test_compress_is_its_recipe_applied(init, ranks, measured):
    data, runs = (samples() if init != "svd" else None), []

    def features(model, item):
        runs.append(item)
        return model(item)[:, :3]

    options = {"include": ["blocks", "head"], "exclude": ["head"], "init": init, "ranks": ranks, "calibration": data}
    options |= {"rank_multiple": 2, "features": features, "measured": measured}
    model = Net().eval()
    said, also = [], []
    recipe = make_recipe(model, 1.5, progress=lambda *step: said.append(step), **options)
    used = len(runs)
    assert bool(used) == (init == "gauss_newton" or (init != "svd" and ranks == "allocated"))
    assert {*recipe.plan, *recipe.dense} == set(INNER) and not {*recipe.plan} & {*recipe.dense}
    assert all(rank % 2 == 0 for rank in recipe.plan.values()) and recipe.init == init
    assert set(recipe.statistics) == (set() if init == "svd" else {*recipe.plan} | set(recipe.statistics))
    small = compress(copy.deepcopy(model), 1.5, progress=lambda *step: also.append(step), **options)
    assert len(runs) == 2 * used and rank_plan(small) == recipe.plan
    other = copy.deepcopy(model)
    apply_plan(other, recipe.plan, init, None, recipe.statistics, recipe.metrics)
    torch.testing.assert_close(small.state_dict(), other.state_dict())
    applied = [(number, len(recipe.plan), name) for number, name in enumerate(recipe.plan, 1)]
    assert also == said + applied
    if used:
        default = make_recipe(model, 1.5, **options | {"features": None})
        metric = {name: default.metrics[name].matrix for name in INNER}
        assert all(not torch.allclose(metric[name], recipe.metrics[name].matrix) for name in INNER)


def test_whitened_factors_of_allocated_ranks_weigh_all_tokens_alike():
    model, data = Net().eval(), samples()
    recipe = make_recipe(model, 1.5, exclude=["head"], init="whitened", ranks="allocated", calibration=data)
    plain = calibrate(model, recipe.plan, data)
    for name in recipe.plan:
        assert recipe.statistics[name].count == 96
        torch.testing.assert_close(recipe.statistics[name].moment, plain[name].moment)
    weighted = make_recipe(model, 1.5, exclude=["head"], init="gauss_newton", ranks="allocated", calibration=data)
    assert not torch.allclose(weighted.statistics[INNER[0]].uncentred, plain[INNER[0]].uncentred, rtol=1e-3)


def test_uniform_pivoted_ranks_are_the_largest_of_the_same_size():
    model = nn.Sequential(nn.Linear(11, 17), nn.Linear(17, 40), nn.Linear(40, 6))
    for kappa in (1.0, 1.2, 2.0, 3.0):
        plain = plan_ranks(model, kappa)
        for name, rank in make_recipe(model, kappa, pivoted=True).plan.items():
            inputs, outputs = model[int(name)].in_features, model[int(name)].out_features
            budget, most = plain[name] * (inputs + outputs), min(inputs, outputs) - 1
            sizes = {r: r * (inputs + outputs - r) for r in range(1, most + 1)}
            assert rank == max([plain[name], *(r for r, size in sizes.items() if size <= budget)])


def test_sequential_ranks_spend_less_on_early_blocks():
    model, data = Net().eval(), samples()
    options = {"exclude": ["head"], "init": "gauss_newton", "ranks": "allocated", "calibration": data}
    for measured, early in ((False, EARLY_PREDICTED), (True, EARLY)):
        plain, later = (make_recipe(model, 2, measured=measured, sequential=s, **options).plan for s in (False, True))
        cost = [sum(plan.get(name, 11 * 17 // 28) for name in INNER[:2]) for plan in (plain, later)]
        assert cost[1] <= cost[0]
        scales = position_scales(model, [*INNER, "head"], early)
        assert scales == pytest.approx(dict(zip([*INNER, "head"], [early, early, 1, 1, 1], strict=True)))
    three = nn.Sequential(*(nn.Sequential(nn.Linear(3, 3), nn.ReLU()) for _ in range(3)))
    assert position_scales(three, ["0.0", "1.0", "2.0"], 0.25) == pytest.approx({"0.0": 0.25, "1.0": 0.5, "2.0": 1.0})


def test_a_saved_folder_says_what_it_holds(tmp_path):
    model = Net().eval()
    model.again = model.head  # one tensor under two names
    apply_plan(model, {INNER[0]: 4, INNER[3]: 3})
    pivot(model.blocks[1])
    pela_vl.save(model, tmp_path / "deep" / "model")
    files = sorted(path.name for path in (tmp_path / "deep" / "model").iterdir())
    assert files == ["pela_vl.json", "pela_vl.safetensors"]
    text = (tmp_path / "deep" / "model" / "pela_vl.json").read_text(encoding="utf-8")
    marker = json.loads(text)
    assert text.startswith('{\n "format": 1,\n') and text.endswith("}\n")
    assert marker == {
        "format": 1,
        "model": f"{Net.__module__}.Net",
        "ranks": {INNER[0]: 4, INNER[3]: 3},
        "dense": ["blocks.0.2", "blocks.1.0", "head"],
        "pivoted": [INNER[3]],
        "same": {"again.weight": "head.weight", "again.bias": "head.bias"},
    }
    with safe_open(tmp_path / "deep" / "model" / "pela_vl.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["pela_vl"]) == marker
        assert set(file.keys()) == set(model.state_dict()) - set(marker["same"])  # noqa: SIM118

    def dense():
        other = Net()
        other.again = other.head
        return other

    loaded, x = pela_vl.load(dense, tmp_path / "deep" / "model"), samples(1)[0]
    assert torch.equal(loaded(x), model(x)) and list(pivoted_layers(loaded)) == [INNER[3]]
    assert loaded.again.weight is loaded.head.weight


@pytest.mark.parametrize("change, message", [
    (lambda state, marker: state.pop("head.up.bias"), "lacks head.up.bias"),
    (lambda state, marker: state.update(more=torch.ones(2)), "has more too"),
    (lambda state, marker: state.update({"head.up.bias": torch.ones(6)}), "has another head.up.bias"),
    (lambda state, marker: marker.update(format=2), "written in format 2, and this version reads 1"),
])  # fmt: skip
def test_a_file_of_another_model_is_named_with_what_differs(tmp_path, change, message):
    pela_vl.save(compress(Net(), 2), tmp_path)
    file = tmp_path / "pela_vl.safetensors"
    with safe_open(file, framework="pt") as stored:
        marker = json.loads(stored.metadata()["pela_vl"])
        state = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    change(state, marker)
    save_file(state, file, metadata={"pela_vl": json.dumps(marker)})
    with pytest.raises(PlanError) as error:
        pela_vl.load(Net, tmp_path)
    assert str(error.value).startswith(str(file)) and message in str(error.value)
    assert "format" in message or "made of another model than this Net" in str(error.value)


def test_factors_without_a_plan_are_read_off_their_shapes(tmp_path):
    model, x = compress(Net().eval(), 2), samples(1)[0]
    save_file(dict(model.state_dict()), tmp_path / "model.safetensors")
    loaded = pela_vl.load(Net, tmp_path)
    assert rank_plan(loaded) == rank_plan(model) and torch.equal(loaded(x), model(x)) and not loaded.training
    dense = Net().eval()
    pela_vl.save(dense, tmp_path / "dense")  # a dense one is read as well; what save wrote comes first
    save_file(dict(model.state_dict()), tmp_path / "dense" / "model.safetensors")
    assert torch.equal(pela_vl.load(lambda: Net().train(), tmp_path / "dense")(x), dense(x))


@pytest.mark.parametrize("bias, dtype", list(product([True, False], [torch.float32, torch.float64])))
def test_a_pivoted_layer_is_its_product(bias, dtype):
    layer = PivotedLinear(7, 9, 4, bias, dtype=dtype)
    layer.order = torch.randperm(9)
    x = torch.randn(2, 3, 7, dtype=dtype)
    expected = torch.nn.functional.linear(x, layer.dense_weight(), layer.bias)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.expand(layer.down(x)), expected)
    shapes = {"down.weight": (4, 7), "rest.weight": (5, 4), "order": (9,)} | ({"bias": (9,)} if bias else {})
    assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == shapes
    assert all(value.dtype == dtype for value in layer.parameters())
    assert "in_features=7, out_features=9, rank=4" in repr(layer)
    fresh = PivotedLinear(7, 9, 4)
    assert not fresh.bias.any() and fresh.order.tolist() == list(range(9)) and fresh.down.weight.dtype == torch.float32
    meta = PivotedLinear(7, 9, 4, device="meta")
    assert all(value.is_meta for value in meta.state_dict().values())
    for rank in (1, 7):
        assert PivotedLinear(7, 9, rank).rank == rank
    for rank in (0, 8):
        with pytest.raises(ValueError, match=r"is not in 1\.\.7"):
            PivotedLinear(7, 9, rank)


@pytest.mark.parametrize("wanted, training, dtype, bias", [
    (True, False, torch.float32, True),
    (False, True, torch.float64, True),
    (True, True, torch.float64, False),
])  # fmt: skip
def test_the_pivoted_form_keeps_what_the_layer_was(wanted, training, dtype, bias):
    torch.manual_seed(0)
    layer = LowRankLinear(8, 12, 3, bias, dtype=dtype).train(training).requires_grad_(wanted)
    layer.of_the_user = "kept"
    form = pivot_layer(layer)
    assert (form.in_features, form.out_features, form.rank, form.of_the_user) == (8, 12, 3, "kept")
    assert form.training == form.down.training == training and form.bias is layer.up.bias
    for value in (form.down.weight, form.rest.weight):
        assert value.dtype == dtype and value.requires_grad == wanted
    assert sorted(form.order.tolist()) == list(range(12)) and form.order.dtype == torch.int64
    chosen = pivot_rows(layer.dense_weight().detach().double(), 3)
    assert form.order[chosen].tolist() == [0, 1, 2]  # the rows that are taken are kept as they are
    torch.testing.assert_close(form.down.weight, layer.dense_weight()[chosen])
    back = merge_dense(nn.Sequential(form))[0]
    assert type(back) is nn.Linear and back.of_the_user == "kept" and back.training == training
    assert back.weight.requires_grad == wanted and back.weight.dtype == dtype and back.bias is form.bias
    torch.testing.assert_close(back.weight, layer.dense_weight(), rtol=1e-4, atol=1e-5)
    assert pivot_layer(LowRankLinear(8, 3, 3)) is None  # nothing is left to express


@pytest.mark.parametrize("rows, width, rank", [(6, 5, 5), (9, 4, 2), (4, 7, 4), (5, 5, 1)])
def test_rows_are_taken_in_the_order_of_a_pivoted_qr(rows, width, rank):
    scipy = pytest.importorskip("scipy.linalg")
    for seed in range(5):
        matrix = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        matrix = matrix * torch.logspace(0, -4, rows, dtype=torch.float64)[:, None]
        *_, order = scipy.qr(matrix.numpy().T, pivoting=True)
        before = matrix.clone()
        assert pivot_rows(matrix, rank).tolist() == order[:rank].tolist() and torch.equal(matrix, before)
    flat = torch.outer(torch.arange(1.0, 5), torch.ones(3)).double()
    assert pivot_rows(flat, 1).tolist() == [3] and pivot_rows(flat, 2) is None and pivot_rows(0 * flat, 1) is None


@pytest.mark.parametrize("width, present", [(1, 1), (5, 5), (6, 3)])
@pytest.mark.parametrize("shrinkage", [0.0, 0.3])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_a_root_is_one_and_divides(width, present, shrinkage, scale):
    generator = torch.Generator().manual_seed(width)
    half = torch.randn(width, present, generator=generator, dtype=torch.float64)
    covariance = scale * half @ half.T
    root = covariance_root(covariance, shrinkage)
    mean = float(covariance.diagonal().mean())
    shrunk = (1 - shrinkage) * covariance + shrinkage * mean * torch.eye(width, dtype=torch.float64)
    torch.testing.assert_close(root.scale * root.matrix @ root.matrix.T, shrunk, rtol=1e-9, atol=1e-9 * scale)
    assert root.scale == pytest.approx(mean) and root.matrix.dtype == torch.float64
    assert (root.inverse is None) == (present == width or shrinkage > 0)
    rows = torch.randn(3, width, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        root.divide(rows), rows @ torch.linalg.pinv(root.matrix, rtol=1e-5), rtol=1e-6, atol=1e-6
    )
    assert covariance_root(covariance).matrix.equal(covariance_root(covariance, 0.01).matrix)
    zero = covariance_root(0 * covariance)
    assert (
        zero.scale == 0.0 and zero.matrix.equal(torch.eye(width, dtype=torch.float64)) and zero.inverse is zero.matrix
    )
    for wrong in (-0.01, 1, 1.5):
        with pytest.raises(ValueError, match="shrinkage"):
            covariance_root(covariance, wrong)


@pytest.mark.parametrize("shape", [(4097, 3), (5, 2, 3), (3,), (0, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_of_rows_are_exact_whatever_the_shape(shape, dtype):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        count, total, moment = row_products(x, "cpu")
    rows = x.detach().double().reshape(-1, 3)
    assert count == len(rows) and total.dtype == moment.dtype == torch.float64 and not moment.requires_grad
    torch.testing.assert_close(total, rows.sum(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moment, rows.T @ rows, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e15])
@pytest.mark.parametrize("counts", [[1], [3, 1, 4], [9, 2], [0, 5]])
def test_a_metric_is_the_mean_product_of_gradients(counts, scale):
    generator = torch.Generator().manual_seed(0)
    parts = [scale * torch.randn(2, count, 4, generator=generator) for count in counts]
    metric = OutputMetric(4)
    assert (metric.count, metric.items, metric.rows, metric.mixed, metric.width) == (0, 0, 0, 1, 4)
    assert not metric.matrix.any() and metric.weights == []
    for part in parts:
        metric.add(part)
    rows = torch.cat([part.reshape(-1, 4) for part in parts]).double()
    exact = rows.T @ rows
    assert metric.rows == len(rows) and metric.sum().dtype == torch.float64
    torch.testing.assert_close(metric.sum() / scale**2, exact / scale**2, rtol=1e-4, atol=1e-4)
    metric.count = 7
    torch.testing.assert_close(metric.matrix / scale**2, exact / scale**2 / 7, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width, rows, seen, expected, mixed", [
    (511, 100000, 0, 10, 1),
    (512, 512 * 16, 0, 1, 1),
    (512, 512 * 16, 0, 2, 2),
    (512, 512 * 16 * 3 - 1, 0, 1, 2),
    (600, 9600, 0, 5, 5),
    (600, 9600, 1, 6, 3),
    (600, 9600, 9, 4, 1),
    (600, 1, 0, 1, 1),
])  # fmt: skip
def test_wide_metrics_keep_sixteen_rows_a_dimension(width, rows, seen, expected, mixed):
    metric = OutputMetric(width, "meta", expected)
    metric.rows, metric.items = rows, seen
    assert metric.mixed == mixed


def test_rows_that_do_not_fill_a_sum_are_kept_apart(monkeypatch):
    monkeypatch.setattr(OutputMetric, "mixed", 3)
    metric, rows = OutputMetric(3), torch.eye(3).repeat(3, 1)[:8]
    metric.add(rows, torch.Generator().manual_seed(0))
    assert metric.rows == 8 and float(metric.sum().trace()) >= 2  # two sums of three, and two rows as they are
    few = OutputMetric(3)
    few.add(rows[:2])
    assert few.sum().diagonal().tolist() == [1, 1, 0]


def test_a_recipe_holds_no_more_than_it_used():
    recipe = make_recipe(Net(), 2)
    assert asdict(recipe) == {
        "plan": plan_ranks(Net(), 2), "init": "svd", "statistics": {}, "metrics": {}, "dense": (), "refined": ()
    }  # fmt: skip
