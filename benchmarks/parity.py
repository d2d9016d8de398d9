"""How near our models' outputs are to those of independent ones with the same weights, at ALBEF's published size.

python -m benchmarks.parity [--markdown parity.md]

Twins: timm's ViT, transformers' BertModel and BertLMHeadModel, and the published training steps written out literally
(benchmarks/published.py: attention in full, image keys and values per text, logits of all tokens). Random weights. The
outputs of the published SNLI-VE model itself are compared by `pytest -s -m slow tests/workloads/test_entailment_step.py`.
"""

import argparse
import copy
from collections.abc import Iterator
from functools import partial

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import BertConfig, BertLMHeadModel, BertModel

from benchmarks import published
from benchmarks.models import albef_base
from pela_vl.base.errors import run_main
from pela_vl.base.files import atomic_write
from pela_vl.base.progress import Progress
from pela_vl.data.collate import Batch
from pela_vl.models.albef.bert import TextEncoder
from pela_vl.models.albef.vqa import AnswerDecoder
from pela_vl.models.ema import EmaModel
from pela_vl.workloads import contrastive
from pela_vl.workloads.contrastive import ContrastiveStep

SIZE = {"vocab_size": 30522, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
ALPHA, EMA, QUEUE = 0.4, 0.995, 32
Line = tuple[str, str, float, float]  # model, quantity, largest relative difference, what it should be below


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def batch_of(size: int, length: int, pixels: int) -> Batch:
    """Random images and texts of several lengths, every third word of which is masked."""
    torch.manual_seed(1)
    ids = torch.randint(1000, 30000, (size, length))
    mask = (torch.arange(length)[None] < torch.randint(length // 2, length + 1, (size, 1))).long()
    chosen = (torch.arange(length)[None] % 3 == 1) & mask.bool()
    images = torch.randn(size, 3, pixels, pixels)
    labels = torch.where(chosen, ids, -100)
    own = torch.arange(size)
    return Batch(images, ids * mask, mask, torch.where(chosen, 103, ids) * mask, labels, own, own)


def vit() -> Iterator[Line]:
    ours = albef_base(384, low_rank=False).visual_encoder
    norm = partial(nn.LayerNorm, eps=1e-6)
    theirs = VisionTransformer(384, 16, num_classes=0, embed_dim=768, depth=12, num_heads=12, norm_layer=norm).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 384, 384)
    with torch.no_grad():
        yield "ViT-B/16, 384 px", "tokens (timm)", apart(ours(images).tokens, theirs.forward_features(images)), 1e-4


def bert() -> Iterator[Line]:
    torch.manual_seed(0)
    ours = TextEncoder(30522, 768, 12, 12, 3072, 12, 768).eval()
    theirs = BertModel(BertConfig(**SIZE), add_pooling_layer=False).eval()
    theirs.load_state_dict(ours.state_dict())
    batch = batch_of(4, 24, 16)
    real = batch.mask.bool()
    with torch.no_grad():
        own = ours.encode(batch.ids, batch.mask).tokens[real]
        other = theirs(batch.ids, attention_mask=batch.mask).last_hidden_state[real]
    yield "BERT-base, text only", "tokens (transformers BertModel)", apart(own, other), 1e-4


def decoder() -> Iterator[Line]:
    torch.manual_seed(0)
    ours = AnswerDecoder(30522, 768, 6, 12, 3072, 512, 0.0).eval()
    theirs = BertLMHeadModel(BertConfig(**SIZE, num_hidden_layers=6, is_decoder=True, add_cross_attention=True)).eval()
    words = ours.embeddings.word_embeddings.weight
    state = {f"bert.{k}": v for k, v in ours.state_dict().items() if not k.startswith("mlm_head.")}
    state |= {f"cls.predictions.{k}": v for k, v in ours.mlm_head.state_dict().items()}
    state |= {"cls.predictions.decoder.weight": words, "cls.predictions.decoder.bias": ours.mlm_head.bias}
    theirs.load_state_dict(state)
    batch, question = batch_of(4, 8, 16), torch.randn(4, 20, 768)
    question_mask = (torch.arange(20)[None] < torch.tensor([[20], [7], [12], [3]])).long()
    with torch.no_grad():
        states = ours.decode(batch.ids, batch.mask, ours.question_keys_values(question), question_mask)
        own = ours.logits(states[batch.mask.bool()])
        other = theirs(
            batch.ids,
            attention_mask=batch.mask,
            encoder_hidden_states=question,
            encoder_attention_mask=question_mask,
        ).logits[batch.mask.bool()]
    yield "VQA answer decoder", "logits (transformers BertLMHeadModel)", apart(own, other), 1e-4


def step(low_rank: bool, mlm: bool) -> Iterator[Line]:
    """One training step's losses and gradients; the hard negatives are the hardest, not drawn."""
    what = ("pre-training step" if mlm else "ITC + ITM step") + (", low rank" if low_rank else ", dense")
    model = albef_base(256, low_rank, mlm=True)
    weights = {"itc": 1.0, "itm": 1.0, "mlm": 1.0 if mlm else 0.0}
    ema = EmaModel(model, ("itm_head", "temp") if mlm else ("itm_head", "temp", "mlm_head"))
    ours = ContrastiveStep(model, weights, False, ema, momentum=EMA, queue_size=QUEUE)
    with torch.no_grad():
        for parameter in ema.parameters():
            parameter.add_(0.002 * torch.randn_like(parameter))
    twin, queue = copy.deepcopy(ema.model), copy.deepcopy(ours.queue)
    if twin.mlm_head is None:
        twin.mlm_head = copy.deepcopy(model.mlm_head)
    other, batch = copy.deepcopy(model), batch_of(3, 16, 256)
    contrastive.sample_negatives = published_draw
    output = ours(batch, ours.prepare(batch, ALPHA, first=True))
    sum(output.terms.values()).backward()
    losses, _ = published.pretraining_forward(other, twin, queue, batch, ALPHA, EMA, published_draw)
    losses = {name: losses[name] for name in output.terms}
    sum(losses.values()).backward()
    for name, loss in losses.items():
        yield what, f"loss {name.upper()}", abs(float(output.terms[name].detach() / loss.detach()) - 1), 1e-5
    own = {name: p.grad.norm() for name, p in model.named_parameters() if p.grad is not None}
    norms = {name: p.grad.norm() for name, p in other.named_parameters() if p.grad is not None}
    floor = 1e-5 * max(norms.values())  # a key's bias has no gradient but rounding
    worst = max(float((own[name] - norms[name]).abs() / max(norms[name], floor)) for name in norms if name in own)
    yield what, "gradient norms", worst, 1e-3


def published_draw(similarity: Tensor, forbidden: Tensor) -> Tensor:
    return similarity.masked_fill(forbidden, float("-inf")).argmax(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", help="also write the table to this file")
    given = parser.parse_args()
    subjects = [vit, bert, decoder, *(partial(step, low, mlm) for low in (False, True) for mlm in (True, False))]
    lines: list[Line] = []
    with Progress(len(subjects), "compare", unit="model") as progress:
        for subject in subjects:
            lines += list(subject())
            progress.update()
    rows = [("model", "quantity", "largest relative difference", "bound", "")]
    rows += [(m, q, f"{d:.1e}", f"{bound:.0e}", "" if d <= bound else "OVER") for m, q, d, bound in lines]
    wide = [max(len(row[i]) for row in rows) for i in range(5)]
    for row in rows:
        print("  ".join(cell.ljust(wide[i]) for i, cell in enumerate(row)).rstrip())
    if given.markdown:
        with atomic_write(given.markdown, "w") as stream:
            stream.write("| " + " | ".join(rows[0][:4]) + " |\n|---|---|---:|---:|\n")
            stream.writelines("| " + " | ".join(row[:4]) + " |\n" for row in rows[1:])


if __name__ == "__main__":
    run_main(main)
