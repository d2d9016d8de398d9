"""The parameter and FLOP columns of the paper's Tables 1 to 5, counted from the models themselves.

Models are on the meta device: shapes without weights. `CONDITIONS` says how each number is counted.
Shapes: B images, L text tokens, T answer tokens, S image size in pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

from pela_vl.cost import Flops, count_parameters, linear_conv_flops
from pela_vl.lowrank import compress
from pela_vl.methods import METHODS
from pela_vl.methods.lora import peft_copies
from pela_vl.models.albef.albef import Albef, build_albef
from pela_vl.models.albef.attention import select_images
from pela_vl.models.albef.config import ALBEF_SIZES
from pela_vl.models.albef.entailment import AlbefEntailment, build_entailment
from pela_vl.models.albef.vqa import AlbefVqa, build_vqa
from pela_vl.models.ema import EmaModel
from pela_vl.models.vision.cascade import CascadeDetector, build_detector
from pela_vl.models.vision.detector_config import DetectorConfig
from pela_vl.models.vision.uper import UperConfig, build_uper
from pela_vl.settings import MethodSettings, ModelSettings, Settings, StudentSettings

TOLERANCE = 0.05
"""Largest relative difference to a printed FLOP figure that counts as agreement."""
BATCH, PIXELS, TEXT_TOKENS, ANSWER_TOKENS = 32, 384, 30, 6
DETECTION_PIXELS, PROPOSALS = (800, 1088), 1000
MERGED_384 = 72
"""Tokens that ToMe merges in each block of ALBEF's ViT: the paper does not say; this fits its printed FLOPs."""
LABELS = {
    "full": "dense",
    "lora": "LoRA",
    "tinybert": "TinyBERT",
    "maskalign": "MaskAlign",
    "tome": "ToMe",
    "pela": "PELA",
}
"""The paper's names of the methods, in the tables' order."""
PRINTED = {
    "DeiT-Base": ((86.6, 33.7), None, (44.2, 17.3), (44.2, 17.3), (86.6, 16.5), (44.1, 17.0)),
    "Swin-Base": ((87.8, 30.3), None, (58.6, 20.6), (58.6, 20.6), None, (62.2, 21.3)),
    "DeiT-III-Large": ((304.4, 119.4), None, (156.8, 61.5), (156.8, 61.5), None, (153.2, 59.8)),
    "UperNet, DeiT-Base": ((121.4, 320.4), None, (79.0, 214.5), (79.0, 214.5), None, (78.9, 203.4)),
    "UperNet, Swin-Base": ((121.3, 798.6), None, (92.1, 721.4), (92.1, 721.4), None, (79.3, 685.3)),
    "UperNet, DeiT-III-Large": ((428.4, 1155), None, (280.8, 784), (280.8, 784), None, (277.2, 739)),
    "Swin-Base Cascade Mask R-CNN": ((145.0, 1501), (149.0, 1547), (115.8, 1302), (115.8, 1302), None, (103.0, 1232)),
    "ALBEF retrieval": ((419, 7.41), (431, 7.49), (230, 4.66), (230, 4.66), (419, 2.61), (173, 2.58)),
    "ALBEF VQA": ((581, 7.05), (644, 7.14), (392, 4.55), (392, 4.55), (581, 2.55), (259, 2.47)),
}
"""The paper's figures: million parameters and G or TFLOPs of each method, in the order of LABELS.

Table 2's LoRA rows are left out: their parameters and operations are both about 1.03 times the dense model's, which no rank
gives.
"""
CONDITIONS = {
    "1": "one image of 224 px, inference, element-wise work included",
    "2": "one image of 512 x 683 px (padded to whole patches), inference, element-wise work included; the auxiliary head and a "
    "ViT's classifier are counted in parameters and not run",
    "3": f"one image of 800 x 1067 padded to 800 x {DETECTION_PIXELS[1]}, inference, {PROPOSALS:,} proposals a stage, element-wise "
    "work included; mask heads counted in the parameters and not run. The paper does not say what its LoRA rows are",
    "4": f"one training forward at batch {BATCH}, {PIXELS} px, texts of {TEXT_TOKENS} tokens, model plus EMA "
    "model; trained model: both encoders and joint projections, then image-text matching on 3 pairings a sample (positive, hard "
    "image, hard text), each with its own image keys and values; EMA model: both encoders and joint projections",
    "5": f"one training forward of the VQA model at batch {BATCH}, {PIXELS} px, questions of {TEXT_TOKENS} tokens, one "
    f"answer of {ANSWER_TOKENS} tokens a question; trained and EMA model alike: image, question fused with it, answer decoder "
    "with vocabulary logits",
}


@dataclass(frozen=True)
class Subject:
    """A dense model of the tables and how it is counted.

    Args:
        table: Its number in the paper.
        name: Of the model.
        build: Creates the dense model.
        kappa: Of PELA's row.
        exclude: Patterns that PELA keeps dense.
        unit: Of the printed operations, "GFLOPs" or "TFLOPs".
        forward: The pass that the paper counts.
        sample: The pass that answers for one sample.
        ema: The counted pass of the EMA model; None where there is none.
        without: Parts that the EMA model does not have.
        training_step: The training pass of this code, where that differs from `forward`.
        printed: Method -> (million parameters, operations in `unit`). Methods absent from it are not in the table. An
            empty dict means that the paper prints nothing.
        settings: What the methods are counted with.
        elementwise: Whether `Row.flops` counts element-wise work too, as the profiler behind the paper's tables did.
    """

    table: str
    name: str
    build: Callable[[], nn.Module]
    kappa: float
    exclude: tuple[str, ...]
    unit: str
    forward: Callable[[Any], Any]
    sample: Callable[[Any], Any]
    ema: Callable[[Any], Any] | None = None
    without: tuple[str, ...] = ()
    training_step: Callable[[Any], Any] | None = None
    printed: dict[str, tuple[float, float]] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)
    elementwise: bool = False


@dataclass(frozen=True)
class Cost:
    """What a model costs.

    Args:
        parameters: As the paper counts, with the EMA model.
        flops: Likewise.
        online_parameters: Of what a user deploys.
        sample: Of what a user deploys, for one sample.
        training_step: See `Subject`; None where it is `flops`.
    """

    parameters: int
    flops: Flops
    online_parameters: int
    sample: Flops
    training_step: Flops | None


@dataclass(frozen=True)
class Row:
    """A line of the tables."""

    subject: Subject
    method: str
    cost: Cost

    @property
    def printed(self) -> tuple[float, float] | None:
        return self.subject.printed.get(self.method)

    @property
    def flops(self) -> float:
        """Linear and Conv layers, and element-wise work where the subject says so, in its unit."""
        flops = self.cost.flops
        return in_unit(flops.profiled if self.subject.elementwise else flops.layers, self.subject.unit)

    @property
    def differences(self) -> tuple[float, float] | None:
        """Relative differences to the printed parameters and FLOPs."""
        if self.printed is None:
            return None
        return self.cost.parameters / 1e6 / self.printed[0] - 1, self.flops / self.printed[1] - 1

    @property
    def met(self) -> bool | None:
        """Whether the FLOPs are within TOLERANCE of the printed figure; None where there is nothing to compare."""
        return None if self.differences is None else abs(self.differences[1]) <= TOLERANCE


def in_unit(flops: float, unit: str) -> float:
    """Operations in "GFLOPs" or "TFLOPs"."""
    return flops / {"GFLOPs": 1e9, "TFLOPs": 1e12}[unit]


def count(subject: Subject, method: str) -> Cost:
    """Build `subject` as `method` shapes it, on the meta device, and count it."""
    with torch.device("meta"):
        model = subject.build().eval()
        reshape(model, subject, method)
    online, flops = count_parameters(model), linear_conv_flops(model, subject.forward)
    sample = flops if subject.sample is subject.forward else linear_conv_flops(model, subject.sample)
    step = None if subject.training_step is None else linear_conv_flops(model, subject.training_step)
    if subject.ema is None:
        return Cost(online, flops, online, sample, step)
    ema = EmaModel(model, subject.without)
    same = subject.ema is subject.forward and not subject.without
    beside = flops if same else linear_conv_flops(ema.model, subject.ema)
    step = None if step is None else step + beside
    return Cost(online + count_parameters(ema), flops + beside, online, sample, step)


def peft_parameters(row: Row) -> int:
    """What a LoRA row, with an EMA model, would count if peft kept a copy of every trained head beside the original."""
    with torch.device("meta"):
        dense = row.subject.build()
        ema = EmaModel(dense, row.subject.without).model
    return row.cost.parameters + peft_copies(dense) + peft_copies(ema)


def reshape(model: nn.Module, subject: Subject, method: str) -> None:
    """Turn the dense model into that of a method, in place.

    Args:
        model: what `subject.build` returned; it may be on the meta device.
        subject: gives kappa, the patterns that stay dense, and the methods' settings.
        method: a key of LABELS.
    """
    if method == "pela":
        compress(model, subject.kappa, exclude=subject.exclude, init="empty")
    else:
        METHODS[method].restructure(model, None, subject.settings)


def listed() -> list[tuple[Subject, str]]:
    """Subject and method of every row of the tables, in their order."""
    return [
        (subject, method)
        for subject in SUBJECTS
        for method in LABELS
        if method in (subject.printed or ("full", "pela"))
    ]


def table_rows(on_progress: Callable[[str], Any] | None = None) -> list[Row]:
    """The rows of `listed`. on_progress(model) is called after each."""
    rows = []
    for subject, method in listed():
        rows.append(Row(subject, method, count(subject, method)))
        if on_progress is not None:
            on_progress(subject.name)
    return rows


def _images(count: int, pixels: int) -> Tensor:
    return torch.empty(count, 3, pixels, pixels, device="meta")


def _tokens(count: int, length: int) -> tuple[Tensor, Tensor]:
    """ids and mask [count, length]"""
    ids = torch.zeros(count, length, dtype=torch.int64, device="meta")
    return ids, torch.ones_like(ids)


def _classify(batch: int, model: nn.Module) -> None:
    model(_images(batch, 224))


def _segment(model: nn.Module) -> None:
    model(torch.empty(1, 3, 512, 683, device="meta"))


def _detect(model: CascadeDetector) -> None:
    model.counted(torch.empty(1, 3, *DETECTION_PIXELS, device="meta"), PROPOSALS)


def _match(batch: int, pairings: int, shared: bool, model: Albef) -> None:
    """Both encoders and projections, then `pairings` image-text pairs a sample through fusion and matching head.

    With `shared`, an image's keys and values are computed once instead of once a pair. The last layer is counted for
    every token, as the published code computes it, though the matching head reads only the first.
    """
    ids, mask = _tokens(batch, TEXT_TOKENS)
    image, text = model.visual_encoder(_images(batch, PIXELS)).tokens, model.text_encoder.encode(ids, mask).tokens
    model.image_feature(image), model.text_feature(text)
    if pairings:
        index = torch.zeros(pairings * batch, dtype=torch.int64, device="meta")  # the indices do not change the count
        keys_values = model.text_encoder.image_keys_values
        context = select_images(keys_values(image), index) if shared else keys_values(image[index])
        model.itm_head(model.text_encoder.fuse(text[index], mask[index], context).tokens[:, 0])


def _answer(batch: int, model: AlbefVqa) -> None:
    """Image, question, and one answer a question through the decoder and its vocabulary logits."""
    ids, mask = _tokens(batch, TEXT_TOKENS)
    question, decoder = model.encode_question(_images(batch, PIXELS), ids, mask), model.text_decoder
    answer, answer_mask = _tokens(batch, ANSWER_TOKENS)
    decoder.logits(decoder.decode(answer, answer_mask, decoder.question_keys_values(question), mask))


def _entail(batch: int, model: AlbefEntailment) -> None:
    """Likewise with the last layer in full."""
    (ids, mask), bert = _tokens(batch, TEXT_TOKENS), model.text_encoder
    context = bert.image_keys_values(model.visual_encoder(_images(batch, PIXELS)).tokens)
    model.cls_head(bert.fuse(bert.encode(ids, mask).tokens, mask, context).tokens[:, 0])


_ALBEF = replace(ALBEF_SIZES["albef_base"], image_size=PIXELS)
_SETTINGS = Settings(model=ModelSettings(token_merging=MERGED_384))


def _vision(name: str, timm_name: str, kappa: float, *exclude: str, blocks: list[int], merge: int = 0) -> Subject:
    """A row of Table 1. `blocks`: layers of each stage in the smaller student; `merge`: tokens merged a block. Both fit
    the printed figures.
    """
    classify, dense = partial(_classify, 1), ("head", "patch_embed", *exclude)
    build = partial(timm.create_model, timm_name)
    method = MethodSettings(student=StudentSettings(blocks=blocks))
    settings = Settings(model=ModelSettings(token_merging=merge), method=method)
    return Subject(
        "1",
        name,
        build,
        kappa,
        dense,
        "GFLOPs",
        classify,
        classify,
        printed=_printed(name),
        settings=settings,
        elementwise=True,
    )


def _uper(name: str, timm_name: str, *exclude: str, blocks: list[int], channels: int = 512) -> Subject:
    """A row of Table 2. `blocks`: layers of each stage in the smaller student; `channels`: of the UperNet head."""
    config = UperConfig(timm_name, 1000, 512, channels=channels)
    return Subject(
        "2",
        name,
        partial(build_uper, config),
        2,
        ("*head", "*.patch_embed", *exclude),
        "GFLOPs",
        _segment,
        _segment,
        printed=_printed(name),
        settings=Settings(method=MethodSettings(student=StudentSettings(blocks=blocks))),
        elementwise=True,
    )


def _task(name: str, task: str, build: Callable, exclude: tuple[str, ...], run: Callable[[int, Any], None]) -> Subject:
    """A model of Table 5, whose EMA model makes the same pass."""
    step, build = partial(run, BATCH), partial(build, _ALBEF.for_task(task))
    return Subject(
        "5", name, build, 3, exclude, "TFLOPs", step, partial(run, 1), step, printed=_printed(name), settings=_SETTINGS
    )


def _printed(name: str) -> dict[str, tuple[float, float]]:
    return {method: pair for method, pair in zip(LABELS, PRINTED.get(name, ()), strict=False) if pair is not None}


SUBJECTS = (
    _vision("DeiT-Base", "deit_base_patch16_224", 2, blocks=[6], merge=16),
    _vision("Swin-Base", "swin_base_patch4_window7_224", 1.5, "*.downsample", "*.attn.proj", blocks=[1, 1, 13, 1]),
    _vision("DeiT-III-Large", "deit3_large_patch16_224", 2, blocks=[12]),
    _uper("UperNet, DeiT-Base", "deit_base_patch16_224", blocks=[6]),
    _uper("UperNet, Swin-Base", "swin_base_patch4_window7_224", "*.downsample", blocks=[1, 1, 13, 1]),
    _uper("UperNet, DeiT-III-Large", "deit3_large_patch16_224", blocks=[12], channels=1024),
    Subject(
        "3",
        "Swin-Base Cascade Mask R-CNN",
        partial(build_detector, DetectorConfig()),
        2,
        # attn.proj is factorised here, unlike in Table 1
        ("backbone.patch_embed", "*.downsample", *CascadeDetector.trained_heads),
        "GFLOPs",
        _detect,
        _detect,
        printed=_printed("Swin-Base Cascade Mask R-CNN"),
        settings=Settings(method=MethodSettings(student=StudentSettings(blocks=[1, 1, 13, 1]))),
        elementwise=True,
    ),
    Subject(
        "4",
        "ALBEF retrieval",
        partial(build_albef, _ALBEF, mlm=False),
        3,
        ("vision_proj", "text_proj", "itm_head"),
        "TFLOPs",
        forward=partial(_match, BATCH, 3, False),
        sample=partial(_match, 1, 1, True),
        ema=partial(_match, BATCH, 0, False),
        without=("itm_head", "temp"),
        training_step=partial(_match, BATCH, 3, True),
        printed=_printed("ALBEF retrieval"),
        settings=_SETTINGS,
    ),
    _task("ALBEF VQA", "vqa", build_vqa, AlbefVqa.HEADS, _answer),
    # Table 5 gives SNLI-VE's accuracies beside the VQA model's cost; the SNLI-VE model itself has no decoder and is smaller.
    _task("ALBEF SNLI-VE", "entailment", build_entailment, AlbefEntailment.HEADS, _entail),
)
