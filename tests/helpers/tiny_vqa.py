"""A question answering model and batches of test size, and transformers' decoder with its weights."""

from dataclasses import dataclass, replace

import torch
from tiny_albef import CONFIG, VOCAB, randomise, tiny_batch
from torch import Tensor
from transformers import BertConfig, BertLMHeadModel

from pela_vl.models.albef.vqa import AlbefVqa, build_vqa

CLS, SEP = 2, 3
VQA_CONFIG = replace(CONFIG, joint_dim=None, decoder_depth=3)


def tiny_vqa(seed: int = 0, dropout: float = 0.0, **changes) -> AlbefVqa:
    """A random model of test size; changes: of its config."""
    torch.manual_seed(seed)
    return randomise(build_vqa(replace(VQA_CONFIG, **changes), dropout), std=0.2).eval()


def tiny_answers(count: int, width: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """[CLS], one to `width - 2` words, [SEP], padding; several share their first word."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCAB, (count, width), generator=generator)
    ids[:, 0] = CLS
    ids[1::3, 1] = ids[0, 1]
    lengths = 3 + torch.arange(count) % (width - 2)
    ids[torch.arange(count), lengths - 1] = SEP
    mask = (torch.arange(width) < lengths[:, None]).long()
    return ids * mask, mask


@dataclass
class Questions:
    images: Tensor
    ids: Tensor
    mask: Tensor
    answer_ids: Tensor
    answer_mask: Tensor
    weights: Tensor
    counts: Tensor

    def only(self, questions: list[int]) -> "Questions":
        """The batch of these questions alone."""
        ends = self.counts.cumsum(0)
        rows = [row for q in questions for row in range(ends[q] - self.counts[q], ends[q])]
        change = {name: getattr(self, name)[questions] for name in ("images", "ids", "mask", "counts")}
        change |= {name: getattr(self, name)[rows] for name in ("answer_ids", "answer_mask", "weights")}
        return replace(self, **change)


def tiny_questions(counts: tuple[int, ...] = (2, 1, 0, 4)) -> Questions:
    batch, (answer_ids, answer_mask) = tiny_batch(len(counts)), tiny_answers(sum(counts), seed=5)
    weights = torch.rand(sum(counts), generator=torch.Generator().manual_seed(3))
    return Questions(batch.images, batch.ids, batch.mask, answer_ids, answer_mask, weights, torch.tensor(counts))


def transformers_decoder(model: AlbefVqa) -> BertLMHeadModel:
    """transformers' decoder with the weights of ours, under the names of the published checkpoints."""
    theirs = BertLMHeadModel(
        BertConfig(
            vocab_size=VOCAB,
            hidden_size=VQA_CONFIG.text_dim,
            num_hidden_layers=VQA_CONFIG.decoder_depth,
            num_attention_heads=VQA_CONFIG.text_heads,
            intermediate_size=VQA_CONFIG.text_mlp_dim,
            max_position_embeddings=VQA_CONFIG.max_positions,
            is_decoder=True,
            add_cross_attention=True,
            attn_implementation="eager",
        )
    ).eval()
    state = {}
    for name, value in model.text_decoder.state_dict().items():
        head = name.startswith("mlm_head.")
        state["cls.predictions." + name.removeprefix("mlm_head.") if head else "bert." + name] = value
    state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"]
    state["cls.predictions.decoder.bias"] = state["cls.predictions.bias"]
    theirs.load_state_dict(state)
    return theirs
