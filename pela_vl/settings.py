"""The schema of a run's configuration: flat data, one dataclass for each section. See configs/ for commented examples."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class ModelSettings:
    """The model, its size and its regularisation.

    Args:
        size: A name of models/albef/config.py, or for image classification timm's name of a ViT or Swin Transformer. None takes
            the checkpoint's (albef_base for a foreign one).
        overrides: Sizes of `AlbefConfig` (or `VisionConfig`) to change, for a model built anew.
        image_size: Pixels a side. A checkpoint's positions are interpolated to it. None takes the checkpoint's.
        dropout: Of BERT; None is the published 0.1.
        drop_path: Highest rate of stochastic depth of the image blocks in training.
        drop_path_rule: "linear" rises to `drop_path` in the last block; "constant" has it everywhere (image classification alone).
        init_std: Standard deviation of the weights of a model built anew. None is BERT's and ViT's 0.02, which is meant for a
            width of 768.
        token_merging: Image tokens to merge in every block of the ViT, or one number for each block (ToMe); 0 for none. None
            takes the checkpoint's.
        tokenizer: Name of a shipped vocabulary, or a folder; None takes the checkpoint's.
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
    """What a run starts from.

    Args:
        checkpoint: Ours or a published one; None starts from random weights.
        teacher: The dense model that a low-rank checkpoint came from. None takes `checkpoint` itself, where that is dense.
        bert: File or folder of BERT, from which the text encoder of a model without `checkpoint` starts, as in ALBEF's own
            pre-training.
        vit: File or folder of a ViT such as DeiT-B, from which the image encoder of such a model starts.
    """

    checkpoint: str | None = None
    teacher: str | None = None
    bert: str | None = None
    vit: str | None = None


@dataclass
class CompressSettings:
    """How the model is made low rank before it is trained. See docs/beyond_svd.md.

    Args:
        kappa: 3 leaves a third of the weights; None leaves the model as it is.
        exclude: Patterns of module names that stay dense. None: the model's heads, as published; a list replaces them.
        rank_multiple: Ranks are rounded down to multiples of it: 1 for the paper's; 16 or 64 suit vector and matrix units.
        ranks: "uniform", or "allocated", which spends kappa's budget where a rank lowers the error most.
        init: What the factors keep close to the dense model's: "svd" the weights, "whitened" the layers' outputs on samples,
            "gauss_newton" what the task reads of the model.
        samples: Training samples that "whitened" and "gauss_newton", and their allocated ranks, are made for.
        measured: Allocated ranks go by errors that are measured too, and not by predicted ones alone.
        sequential: With "gauss_newton", each layer is fitted to its inputs behind the compressed layers before it.
        strength: Of that fit, 0 to 1; null: for each layer the best on held-out samples.
        refine_steps: Steps of Adam on each block's factors and norms towards the dense block's output; 0 for none.
        fast_products: Matrix products of the samples' pass round their inputs to bf16 on a CPU that has units for it, to TF32 on
            a GPU. Sums stay fp32.
    """

    kappa: float | None = None
    exclude: list[str] | None = None
    rank_multiple: int = 1
    ranks: Literal["uniform", "allocated"] = "uniform"
    init: Literal["svd", "whitened", "gauss_newton"] = "svd"
    samples: int = 256
    measured: bool = False
    sequential: bool = False
    strength: float | None = 0.5
    refine_steps: int = 0
    fast_products: bool = False


@dataclass
class DataSettings:
    """Data files, and how images and texts are read.

    Args:
        train: Annotation files or, for image-text pairs, folders of shards.
        val: One file for the validation during training, or None.
        test: One file for the final evaluation, or None.
        image_root: What the lists' image paths are relative to; shards do not need it.
        max_words: Longest caption in words.
        max_tokens: Longest text in tokens, [CLS] included.
        min_scale: Smallest part of an image's area that a training crop covers; 1 for no crop.
        hflip: Probability of a horizontal flip.
        augment: Whether training images go through RandAugment.
        cache_mb: MiB of decoded images kept in memory; 0 keeps none.
        workers: Processes that read data.
        max_bad_share: Part of the training images that may be unreadable before a run stops.
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

    Args:
        itc: Image-text contrast, of a vision-language task. None is the task's own: 1 for each term that the task has.
        itm: Image-text matching, likewise.
        mlm: Masked language modelling, likewise.
        fd: Feature distillation (method pela).
        rwp: Regularised weight perturbation (method pela).
        hidden: Hidden states (method tinybert).
        attention: Attention scores (method tinybert).
        align: Alignment of the ViT's layers (method maskalign).
        fd_features: What FD compares in image classification: every block's output, or the pooled feature alone.
        logits: Weight of the cross-entropy to the teacher's predictions in image classification.
        fd_form: "paper" (eq. 4), or "released" (the released code's scaling).
        rwp_form: "paper" (eq. 6), or "released" (the released code's scaling).
        rwp_epsilon: epsilon of eq. 6, in units of the weights.
        mlm_probability: Part of the tokens that are masked.
        soft_targets: "ema": the EMA model gives them, as published. "teacher": the method's frozen dense teacher gives them. Then
            there is no EMA model in memory; its update and its three passes are saved, since FD reads the same pass.
        alpha: Weight of the soft targets.
        alpha_ramp_steps: Optimiser steps in which that weight rises linearly from 0; None is the first epoch.
        momentum: Of the EMA model.
        queue_size: Features of earlier batches that the contrastive loss keeps.
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
    """Options of the method lora. Updates are scaled by alpha / rank.

    Args:
        rank: Of the adapters; 16 is the paper's by its parameter counts.
        alpha: Numerator of the scale.
        dropout: Before the adapters.
    """

    rank: int = 16
    alpha: float = 16.0
    dropout: float = 0.0


@dataclass
class StudentSettings:
    """Options of the methods whose student has fewer layers (tinybert, maskalign): how many layers it keeps.

    Args:
        vision_depth: Blocks of the ViT. None: two thirds, or all where init.teacher is set.
        text_depth: Text-only layers. None: a third, or all where init.teacher is set.
        fusion_depth: Fusion layers, likewise. The defaults make 8, 2 and 2 of ALBEF base, the paper's 230 M.
        blocks: Of a timm model, one number for each stage.
        keep: Part of the patches that maskalign's student sees, above 0 and at most 1.
    """

    vision_depth: int | None = None
    text_depth: int | None = None
    fusion_depth: int | None = None
    blocks: list[int] = field(default_factory=list)
    keep: float = 0.3


@dataclass
class MethodSettings:
    """The method. `method: pela` alone sets its name.

    Args:
        name: Of a method in pela_vl/methods.
        lora: Options of lora.
        student: Options of tinybert and maskalign.
    """

    SHORTHAND = "name"

    name: str = "full"
    lora: LoraSettings = field(default_factory=LoraSettings)
    student: StudentSettings = field(default_factory=StudentSettings)


@dataclass
class OptimSettings:
    """AdamW and its learning rate.

    Args:
        lr: Highest rate.
        min_lr: Rate at the end of a schedule that falls.
        warmup_lr: Rate at the start of a warm-up.
        warmup_steps: Length of the warm-up in optimiser steps. For ALBEF's own `schedule: cosine_epoch` in units of 100 steps of
            the first epoch.
        schedule: "cosine" falls at every step. "cosine_epoch" is ALBEF's own. "cosine_timm" is timm's, with one rate for an epoch.
            "poly" falls with `power`. "step" is multiplied by `gamma` at the start of each epoch in `milestones`.
        warmup_epochs: Length of the warm-up of cosine_timm.
        power: Exponent of poly.
        milestones: Epochs, for step.
        gamma: Factor, for step.
        weight_decay: Of the parameters that `decay` names.
        decay: Which parameters are decayed, see `training.optim.is_decayed`.
        layer_decay: Factor of the rate from each layer of an image classifier to the layer below it.
        betas: Of AdamW.
        lr_scale: Factors of the rate by glob on parameter names.
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
    decay: Literal["published", "matrices", "all", "timm", "mmdet"] = "published"
    layer_decay: float = 1.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    lr_scale: dict[str, float] = field(default_factory=dict)


@dataclass
class TrainSettings:
    """How long a run trains, with what batches, and where.

    Args:
        epochs: Passes over the training data.
        steps: Optimiser steps, instead of epochs.
        batch_size: Samples of one process in one backward pass.
        accumulation: Backward passes that an optimiser step averages over.
        clip: Largest gradient norm; 0 for no limit.
        precision: "bf16" is autocast over fp32 weights. "auto" is bf16 where the device has units for it, else fp32.
        tf32: Let a GPU round the factors of fp32 products to 10 bits.
        activation_checkpointing: Recompute the blocks' activations in backward to save memory.
        checkpoint_every: Optimiser steps between checkpoints. None: the end of every epoch; 0: only the end.
        evaluate_every: Optimiser steps between evaluations, likewise.
        device: "auto" takes a GPU if there is one.
        seed: Of everything random.
        threads: Of torch on the CPU; None leaves torch's own number.
        lost_process_seconds: A process that gives no sign of life for so long ends the run on all processes; 0 never does.
        group_timeout_seconds: How long a collective operation waits for the other processes.
        ema: Momentum of an EMA model of an image classifier, which is evaluated and saved beside it; 0 for none.
        log_every: Optimiser steps between two that go to TensorBoard; `log.jsonl` has every step.
        compile: "blocks" compiles the blocks of the trained model, its EMA model and the teacher with torch.compile, and pads
            the texts of pre-training, retrieval and grounding to `data.max_tokens`. It needs a C++ compiler, and on a CPU it is
            not quicker.
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
    log_every: int = 20
    compile: Literal[False, "blocks"] = False


@dataclass
class DeepSpeedSettings:
    """What is used under the deepspeed launcher only.

    Args:
        stage: ZeRO 0, 1 or 2.
        reduce_bucket: Elements that are reduced at a time. DeepSpeed's own 5e8 take 2 GB at every backward pass.
        allgather_bucket: Elements that are gathered at a time.
        overlap: Send gradients while others are still computed; None: on a GPU.
        extra: Further keys of DeepSpeed's configuration, laid over ours.
    """

    stage: int = 1
    reduce_bucket: int = 25_000_000
    allgather_bucket: int = 25_000_000
    overlap: bool | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class EvalSettings:
    """Retrieval evaluation, and the precision of every task's evaluation.

    Args:
        k_test: Candidates of each query that are re-ranked by ITM; 0 for ITC alone.
        image_batch: Images that go through the model at a time, at most.
        text_batch: Texts, likewise.
        pair_batch: Image-text pairs, likewise; None: as many as `pair_mb` allows, and 256 where that bounds nothing (entailment).
        pair_mb: MiB that the widest activation of a batch of pairs may take. None is 16 on a CPU (its cache) and 512 on a GPU.
        cache_mb: MiB of encoded texts and images that a process keeps in memory; what does not fit is encoded again.
        precision: Of every task's evaluation. It is fp32 as published, since bf16 changes digits. In "bf16" an evaluated
            checkpoint gets bf16 weights; a detector, and the validation within training, run under bf16 autocast. "auto" is
            bf16 where the device has units for it, else fp32.
    """

    k_test: int = 128
    image_batch: int = 64
    text_batch: int = 256
    pair_batch: int | None = None
    pair_mb: float | None = None
    cache_mb: float = 4096.0
    precision: Literal["auto", "fp32", "bf16"] = "fp32"


@dataclass
class GroundingSettings:
    """Weakly supervised grounding.

    Args:
        boxes: The boxes file that build_refcoco_plus.py writes beside the lists.
        score: The score whose Grad-CAM is taken: "itm" (cross-attention of a text layer), or "itc" (class token's attention in
            the ViT).
        layer: Text layer counted from the first text-only one, or ViT block. None is the third fusion layer (8 of ALBEF), or the
            last block.
        area_power: A box scores mass / area ** area_power.
        image_batch: Images encoded at a time.
        pair_batch: Heat maps made at a time.
    """

    boxes: str | None = None
    score: Literal["itm", "itc"] = "itm"
    layer: int | None = None
    area_power: float = 0.5
    image_batch: int = 16
    pair_batch: int = 64


@dataclass
class VqaSettings:
    """Visual question answering.

    Args:
        answer_list: JSON list of the answers to rank.
        genome_root: What the image paths of data set "vg" are relative to; None: data.image_root.
        k_test: Answers that are scored whole: those with the likeliest first words.
        max_answer_tokens: Longest answer, [CLS] and [SEP] included.
        max_words: Longest question of an evaluation; data.max_words and data.max_tokens hold for training.
        question_batch: Questions that go through the model at a time.
        rows: Tree nodes whose logits over the vocabulary are held at a time.
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
    """Image classification: how training images and labels are made, beside data.min_scale, hflip and augment.

    Args:
        mixup: Parameter of mixup's Beta distribution; 0 for no mixup.
        cutmix: Parameter of CutMix's Beta distribution; 0 for no CutMix.
        mix_probability: Probability that a batch is mixed.
        switch: Probability of CutMix where both are on.
        smoothing: Of the labels.
        rand_augment: timm's description of the policy.
        erasing: Probability of an erased rectangle.
        repeats: Views of an image in a batch (repeated augmentation); 1 for none.
        resize: Pixels of the shorter side before a test image's centre is cut out; None is 8/7 of the image size, 256 for 224.
        batch: Images evaluated at a time.
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
class SegmentationSettings:
    """Semantic segmentation with UperNet; model.image_size is the side of a training crop.

    Args:
        classes: The file that names the classes and their values in label images.
        scale: Longest and shortest side that an image is resized to fit, its ratio kept.
        ratio: Range of the factor on both in training.
        largest_class: Share of a crop's labelled pixels that one class may have; 1 for any.
        distortion: Distort brightness, contrast, saturation and hue in training.
        channels: Of the UperNet head of a model that has none yet.
        auxiliary_channels: Of its auxiliary head; 0 for none.
        dropout: Of the channels before each classifier of such heads.
        auxiliary: Weight of the auxiliary loss.
        mode: "whole" shows the model a whole test image, "slide" windows of the crop's size.
        stride: Pixels between windows.
        batch: Images, or windows, of equal size that are evaluated at a time.
        tile_mb: MiB that logits at full resolution may take in an evaluation.
    """

    classes: str | None = None
    scale: list[int] = field(default_factory=lambda: [2048, 512])
    ratio: list[float] = field(default_factory=lambda: [0.5, 2.0])
    largest_class: float = 0.75
    distortion: bool = True
    channels: int = 512
    auxiliary_channels: int = 256
    dropout: float = 0.1
    auxiliary: float = 0.4
    mode: Literal["whole", "slide"] = "whole"
    stride: int = 341
    batch: int = 1
    tile_mb: float = 64.0


@dataclass
class DetectionSettings:
    """Object detection: Cascade Mask R-CNN. The defaults are the published numbers.

    Args:
        channels: Of the feature pyramid of a new detector.
        box_convs: Convolutions of its box heads.
        box_width: Of the box heads' fully connected layer.
        mask_convs: Convolutions of its mask heads.
        masks: Whether it has mask heads; without them boxes alone are learned.
        anchor_scale: Length of an anchor's edge in strides.
        proposals: Of an image, in training and in tests.
        anchors: Of an image that the proposal network learns from.
        samples: Boxes of an image that each stage learns from.
        score: Least score of a detection in tests.
        nms: Overlap from which on the lower of two detections of a class is dropped.
        detections: Of an image in tests, at most.
        regression: Loss of boxes; "smooth_l1" is torchvision's.
        short: Lengths of the shorter edge of training images, one of which is drawn.
        long: Limit of the longer edge.
        crop: Crop half of the training images, as the 3x recipe does.
        test_short: Length of the shorter edge of test images.
        keep_empty: Train on images without annotations too.
    """

    channels: int = 256
    box_convs: int = 4
    box_width: int = 1024
    mask_convs: int = 4
    masks: bool = True
    anchor_scale: float = 8.0
    proposals: list[int] = field(default_factory=lambda: [2000, 1000])
    anchors: int = 256
    samples: int = 512
    score: float = 0.05
    nms: float = 0.5
    detections: int = 100
    regression: Literal["giou", "smooth_l1"] = "giou"
    short: list[int] = field(default_factory=lambda: [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800])
    long: int = 1333
    crop: bool = False
    test_short: int = 800
    keep_empty: bool = False


@dataclass
class DrawingSettings:
    """Images that an evaluation draws for people to look at.

    Args:
        overlays: Expressions with their heat maps, in grounding; images with labels beside the truth, in segmentation, and with
            objects, in detection.
        examples: Questions on the sheet of visual question answering.
    """

    overlays: int = 16
    examples: int = 24


@dataclass
class Settings:
    """A run.

    Args:
        output: The run's folder. The other fields are the sections.
    """

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
    segmentation: SegmentationSettings = field(default_factory=SegmentationSettings)
    detection: DetectionSettings = field(default_factory=DetectionSettings)
    drawings: DrawingSettings = field(default_factory=DrawingSettings)
