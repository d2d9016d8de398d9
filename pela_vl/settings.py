"""The schema of a run's configuration: flat data, one dataclass a section. See configs/ for commented examples."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class ModelSettings:
    """size: a name of models/albef/config.py; None takes what the checkpoint says (albef_base for a foreign one).

    For image classification size is timm's name of a ViT or Swin Transformer.

    overrides: sizes of `AlbefConfig` (or `VisionConfig`) to change, for a model built anew. image_size: pixels a side; a
    checkpoint's positions are interpolated to it. dropout: of BERT, as published 0.1. tokenizer: a shipped vocabulary's name
    or a folder.
    token_merging: image tokens to merge in every block of the ViT, or one number a block (ToMe; 0: none); None takes what the
    checkpoint says. drop_path: stochastic depth of the image blocks in training, rising to this rate in the last one
    ("linear") or equal in all ("constant", image classification alone). init_std: of the weights of a model built anew;
    None is BERT's and ViT's 0.02, which is meant for a width of 768.
    """

    size: str | None = None
    overrides: dict[str, int | list[int]] = field(default_factory=dict)
    image_size: int | None = None
    dropout: float | None = None
    drop_path: float = 0.0
    drop_path_rule: Literal["linear", "constant"] = "linear"
    init_std: float | None = None
    token_merging: int | list[int] | None = None
    tokenizer: str | None = None


@dataclass
class InitSettings:
    """checkpoint: ours or a published one; None starts from random weights. teacher: the dense model that a low-rank
    checkpoint came from; None takes `checkpoint` itself where that is dense.

    bert, vit: files (or folders) of BERT and of a ViT such as DeiT-B, from which the encoders of a new model start, as
    ALBEF's own pre-training does; for a model without `checkpoint`.
    """

    checkpoint: str | None = None
    teacher: str | None = None
    bert: str | None = None
    vit: str | None = None


@dataclass
class CompressSettings:
    """kappa: None leaves the model as it is. exclude: patterns over module names that stay dense; None: the heads of the
    model, as published (a list replaces them). rank_multiple: ranks are rounded down to multiples of it, 1 for the
    paper's; 16 or 64 suit vector and matrix units. ranks: "allocated" spreads kappa's budget by what a rank buys in a layer.
    init: "svd" keeps the weights as near as a rank allows, "whitened" the outputs on `samples` of the training data,
    "gauss_newton" what the task reads of the model; allocated ranks go by the samples then. measured: allocated ranks go by
    errors that are measured too. sequential: with "gauss_newton", each layer is fitted to what the compressed ones before it
    give, by `strength` (0..1). See docs/beyond_svd.md."""

    kappa: float | None = None
    exclude: list[str] | None = None
    rank_multiple: int = 1
    ranks: Literal["uniform", "allocated"] = "uniform"
    init: Literal["svd", "whitened", "gauss_newton"] = "svd"
    samples: int = 256
    measured: bool = False
    sequential: bool = False
    strength: float = 0.5


@dataclass
class DataSettings:
    """train: annotation files, or (for image-text pairs) folders of shards; val, test: one file each, or None. image_root:
    what their image paths are relative to; nothing to shards.

    max_words: of a caption; max_tokens: after tokenising, [CLS] included. min_scale: smallest share of an image that a
    training crop covers (1: no crop). hflip: probability; augment: RandAugment. cache_mb: decoded images kept in memory.
    max_bad_share: of unreadable training images that is put up with.
    """

    train: list[str] = field(default_factory=list)
    val: str | None = None
    test: str | None = None
    image_root: str = "."
    max_words: int = 30
    max_tokens: int = 30
    min_scale: float = 0.5
    hflip: float = 0.5
    augment: bool = True
    cache_mb: float = 0.0
    workers: int = 4
    max_bad_share: float = 0.001


@dataclass
class LossSettings:
    """Weights of the loss terms (0 switches one off) and their constants.

    itc, itm, mlm: of a vision-language task; None takes the task's own: 1 for each term that the task has.
    soft_targets: who gives them. "ema" is the EMA model, as published; "teacher" is the method's frozen dense teacher. With
    the teacher there is no EMA model in memory, and its update and three passes are saved, since FD reads the same pass.
    alpha: weight of the soft targets, ramped up linearly over `alpha_ramp_steps` (None: the first epoch). momentum: of the
    EMA model. queue_size: features that the contrastive loss keeps of earlier batches.
    hidden, attention (tinybert), align (maskalign): weights of the terms that these methods add.
    fd_features, logits: of image classification: what FD compares, every block's output or the pooled feature alone, and the
    weight of the cross-entropy to the teacher's predictions.
    fd_form, rwp_form: "paper" (eq. 4 and 6) or "released" (the released code's scaling).
    """

    itc: float | None = None
    itm: float | None = None
    mlm: float | None = None
    fd: float = 0.0
    rwp: float = 0.0
    hidden: float = 1.0
    attention: float = 1.0
    align: float = 1.0
    fd_features: Literal["blocks", "pooled"] = "blocks"
    logits: float = 0.0
    fd_form: Literal["paper", "released"] = "paper"
    rwp_form: Literal["paper", "released"] = "paper"
    rwp_epsilon: float = 0.001
    mlm_probability: float = 0.15
    soft_targets: Literal["ema", "teacher"] = "ema"
    alpha: float = 0.4
    alpha_ramp_steps: int | None = None
    momentum: float = 0.995
    queue_size: int = 65536


@dataclass
class LoraSettings:
    """Of the method lora. rank: 16 is the paper's by its parameter counts; updates are scaled by alpha / rank."""

    rank: int = 16
    alpha: float = 16.0
    dropout: float = 0.0


@dataclass
class StudentSettings:
    """Of methods whose student has fewer layers (tinybert, maskalign): how many it keeps.

    None: two thirds of the ViT's blocks, a third of the text-only and of the fusion layers (of ALBEF base 8, 2 and 2, the
    paper's 230 M), or all where init.teacher is set. blocks: of a timm model, one number a stage. keep: share of the patches
    that maskalign's student sees.
    """

    vision_depth: int | None = None
    text_depth: int | None = None
    fusion_depth: int | None = None
    blocks: list[int] = field(default_factory=list)
    keep: float = 0.3


@dataclass
class MethodSettings:
    """name: of a method in pela_vl/methods; `method: pela` alone sets it. lora, student: options of the methods that have any."""

    SHORTHAND = "name"

    name: str = "full"
    lora: LoraSettings = field(default_factory=LoraSettings)
    student: StudentSettings = field(default_factory=StudentSettings)


@dataclass
class OptimSettings:
    """AdamW. warmup_steps: optimiser steps; for ALBEF's own `schedule: cosine_epoch` units of 100 steps of the first epoch.

    schedule: "cosine_timm" is timm's, one rate an epoch after `warmup_epochs`; "poly" falls with `power`; "step" is
    multiplied by `gamma` at the start of each epoch in `milestones`. decay: "timm" leaves out what timm's recipes do not
    decay. layer_decay: of the rate from each layer of an image classifier to the one below it.
    """

    lr: float = 1e-4
    min_lr: float = 1e-5
    warmup_lr: float = 1e-5
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine", "cosine_epoch", "cosine_timm", "poly", "step"] = "cosine"
    warmup_epochs: int = 0
    power: float = 1.0
    milestones: list[int] = field(default_factory=list)
    gamma: float = 0.1
    weight_decay: float = 0.02
    decay: Literal["published", "matrices", "all", "timm"] = "published"
    layer_decay: float = 1.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    lr_scale: dict[str, float] = field(default_factory=dict)


@dataclass
class TrainSettings:
    """How long and how.

    batch_size: pairs a rank and backward; accumulation: backwards an update. steps: of the optimiser, instead of epochs.
    clip: largest gradient norm, 0 for none. precision: bf16 is autocast over fp32 weights; auto is bf16 where the device has
    units for it, else fp32. tf32: let a GPU round the factors of fp32 products to 10 bits. checkpoint_every,
    evaluate_every: optimiser steps; None: the end of every epoch (checkpoint_every 0 and evaluate_every 0: only the end).
    ema: momentum of an EMA model of an image classifier, which is evaluated and saved beside it; 0 for none.
    lost_process_seconds: a process that gives no sign of life for so long ends the run on all; 0: nobody looks.
    group_timeout_seconds: how long a collective operation waits for the other processes.
    """

    epochs: int = 1
    steps: int | None = None
    batch_size: int = 16
    accumulation: int = 1
    clip: float = 0.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    tf32: bool = False
    activation_checkpointing: bool = False
    checkpoint_every: int | None = None
    evaluate_every: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 42
    threads: int | None = None
    lost_process_seconds: float = 300.0
    group_timeout_seconds: float = 1800.0
    ema: float = 0.0


@dataclass
class DeepSpeedSettings:
    """Used under the deepspeed launcher only.

    stage: ZeRO 0, 1 or 2. reduce_bucket, allgather_bucket: elements that are sent at a time; DeepSpeed's own 5e8 take 2 GB
    at every backward pass. overlap: send gradients while others are still computed; None: on a GPU. extra: more keys of
    DeepSpeed's configuration, laid over ours.
    """

    stage: int = 1
    reduce_bucket: int = 25_000_000
    allgather_bucket: int = 25_000_000
    overlap: bool | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class EvalSettings:
    """Retrieval evaluation. k_test: candidates of each query that are re-ranked by ITM, 0 for ITC alone.

    image_batch, text_batch, pair_batch: how many images, texts, and image-text pairs, go through the model at a time, at
    most. pair_mb: MiB that the widest activation of a batch of pairs may take, None for 16 on a CPU (its cache) and 512
    on a GPU. cache_mb: MiB a process of encoded texts and images kept in memory; what does not fit is encoded again.
    precision: of every task's evaluation; fp32 as published, since bf16 changes digits.
    """

    k_test: int = 128
    image_batch: int = 64
    text_batch: int = 256
    pair_batch: int = 256
    pair_mb: float | None = None
    cache_mb: float = 4096.0
    precision: Literal["auto", "fp32", "bf16"] = "fp32"


@dataclass
class GroundingSettings:
    """Weakly supervised grounding. boxes: the boxes file that build_refcoco_plus.py writes beside the lists.

    score: whose Grad-CAM, "itm" (cross-attention of a text layer) or "itc" (class token's attention in the ViT). layer: text
    layer counted from the first text-only one, or ViT block; None is the third fusion layer (8 of ALBEF) or the last block.
    area_power: a box scores mass / area ** area_power. image_batch, pair_batch: images encoded, and heat maps made, at a
    time.
    """

    boxes: str | None = None
    score: Literal["itm", "itc"] = "itm"
    layer: int | None = None
    area_power: float = 0.5
    image_batch: int = 16
    pair_batch: int = 64


@dataclass
class VqaSettings:
    """Visual question answering. answer_list: JSON list of the answers to rank. genome_root: what the image paths of data
    set "vg" are relative to; None: data.image_root.

    k_test: answers, of the likeliest first words, that are scored whole. max_answer_tokens: [CLS] and [SEP] included.
    max_words: of a question that is evaluated; data.max_words holds for training, data.max_tokens likewise.
    question_batch: questions that go through the model at a time; rows: tree nodes whose logits over the vocabulary are
    held at a time.
    """

    answer_list: str | None = None
    genome_root: str | None = None
    k_test: int = 128
    max_answer_tokens: int = 40
    max_words: int = 50
    question_batch: int = 16
    rows: int = 1024


@dataclass
class VisionSettings:
    """Image classification: how training images and their labels are made (beside data.min_scale, hflip and augment).

    mixup, cutmix: of the Beta distribution, 0 for never; mix_probability: of mixing a batch; switch: of CutMix where both are
    on. smoothing: of the labels. rand_augment: timm's description of the policy. erasing: probability of an erased rectangle.
    repeats: views of an image in a batch (repeated augmentation), 1 for none. resize: pixels of the shorter side before a
    test image's centre is cut out; None is 8/7 of the image size, 256 for 224. batch: images evaluated at a time.
    """

    mixup: float = 0.8
    cutmix: float = 1.0
    mix_probability: float = 1.0
    switch: float = 0.5
    smoothing: float = 0.1
    rand_augment: str = "rand-m9-mstd0.5-inc1"
    erasing: float = 0.25
    repeats: int = 1
    resize: int | None = None
    batch: int = 64


@dataclass
class DrawingSettings:
    """Images that an evaluation draws for people to look at. overlays: of expressions with their heat maps, in grounding.
    examples: questions on the sheet of visual question answering."""

    overlays: int = 16
    examples: int = 24


@dataclass
class Settings:
    """A run. output: its folder."""

    output: str = "runs/run"
    method: MethodSettings = field(default_factory=MethodSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    init: InitSettings = field(default_factory=InitSettings)
    compress: CompressSettings = field(default_factory=CompressSettings)
    data: DataSettings = field(default_factory=DataSettings)
    losses: LossSettings = field(default_factory=LossSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    deepspeed: DeepSpeedSettings = field(default_factory=DeepSpeedSettings)
    evaluate: EvalSettings = field(default_factory=EvalSettings)
    grounding: GroundingSettings = field(default_factory=GroundingSettings)
    vqa: VqaSettings = field(default_factory=VqaSettings)
    vision: VisionSettings = field(default_factory=VisionSettings)
    drawings: DrawingSettings = field(default_factory=DrawingSettings)
