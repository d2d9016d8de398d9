"""Ranks a list of answers for each question by the model's probability. What answers have in common is computed once.

Shapes: B questions, L question tokens, A answers, T answer tokens, k candidates, N nodes of the list's prefix tree, P nodes
of the largest candidates' tree, R nodes of all questions, V words, D width.

The published code decodes every candidate of every question whole, padded to the longest answer of the list. It copies the
question's states for each of the k candidates, and computes their keys and values as often. Here a question's keys and values
are computed once. The candidates' prefixes form a tree, whose every node is decoded once and attends to its ancestors alone.
The scores are the same sums.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pela_vl.models.albef.attention import KeyValue
from pela_vl.models.albef.vqa import AlbefVqa, AnswerDecoder


@dataclass(frozen=True)
class AnswerTree:
    """The prefixes of a list of answers, each a node; built once for a list.

    Args:
        ids: Tokens of every answer, int64 [A, T]: [CLS], words, [SEP], padding.
        mask: 1 on tokens and 0 on padding, int64 [A, T].
        token: A node's last token, int64 [N]; node 0 is [CLS].
        depth: That token's position, int64 [N].
        prefix_nodes: The node of an answer's prefix that ends at t and so predicts token t + 1, int64 [A, T - 1]; N where
            the answer is shorter.
        ancestors: A node's ancestors and itself by depth, int64 [N, T - 1]; N where there is none.
    """

    ids: Tensor
    mask: Tensor
    token: Tensor
    depth: Tensor
    prefix_nodes: Tensor
    ancestors: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> "AnswerTree":
        return AnswerTree(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def build_answer_tree(ids: Tensor, mask: Tensor) -> AnswerTree:
    """The tree of answers ids, mask [A, T]. Raises ValueError for an answer without a token to predict."""
    width = ids.shape[1] - 1
    if not len(ids) or int(mask.sum(1).min()) < 2:
        raise ValueError("every answer needs [CLS] and at least one token after it")
    known: dict[tuple[int, ...], int] = {}
    token: list[int] = []
    ancestors: list[list[int]] = []
    prefix_nodes: list[list[int]] = []
    for row, length in zip(ids.tolist(), mask.sum(1).tolist(), strict=True):
        nodes: list[int] = []
        for end in range(1, length):
            prefix = tuple(row[:end])
            if prefix not in known:
                known[prefix] = len(token)
                token.append(row[end - 1])
                ancestors.append([*nodes, known[prefix]])
            nodes.append(known[prefix])
        prefix_nodes.append(nodes)
    count = len(token)
    depth = torch.tensor([len(nodes) - 1 for nodes in ancestors])
    padded = [
        torch.tensor([nodes + [count] * (width - len(nodes)) for nodes in rows]) for rows in (prefix_nodes, ancestors)
    ]
    tree = AnswerTree(ids.cpu(), mask.cpu(), torch.tensor(token), depth, *padded)
    return tree.to(ids.device)


@torch.no_grad()
def rank_answers(
    model: AlbefVqa, states: Tensor, mask: Tensor, tree: AnswerTree, k: int, rows: int = 1024
) -> tuple[Tensor, Tensor]:
    """The `k` likeliest answers to each question.

    As published, the k answers with the likeliest first word are scored by the log-probability of the first word plus that of the
    whole answer, so the first word counts twice. A softmax over these k gives the probabilities.

    Args:
        model: The model.
        states: Fused questions [B, L, D], see `encode_question`.
        mask: Their real tokens [B, L], 1 or 0.
        tree: Of the list of answers.
        k: Candidates; all answers where there are fewer.
        rows: Nodes whose logits over the vocabulary are held at a time.

    Returns:
        Indices into the list and probabilities, both [B, k], best first.
    """
    decoder, k = model.text_decoder, min(k, len(tree))
    question = decoder.question_keys_values(states)
    begin = tree.ids[:1, :1].expand(len(states), 1)
    first = decoder.decode(begin, torch.ones_like(begin), question, mask)[:, 0]
    first = decoder.logits(first).float()
    candidates = first.softmax(dim=1)[:, tree.ids[:, 1]].topk(k, dim=1).indices
    # From log_softmax: the logarithm of a probability that underflowed would be minus infinity.
    first_log = first.log_softmax(dim=1)[:, tree.ids[:, 1]].gather(1, candidates)
    later = _later_words(decoder, question, mask, tree, candidates, rows)
    probability, order = (2 * first_log + later).softmax(dim=1).topk(k, dim=1)
    return candidates.gather(1, order), probability


def _later_words(
    decoder: AnswerDecoder, question: Sequence[KeyValue], mask: Tensor, tree: AnswerTree, candidates: Tensor, rows: int
) -> Tensor:
    """Log-probability [B, k] of candidates [B, k], an answer's first word left out, its [SEP] included."""
    count = len(tree.token)
    paths = tree.prefix_nodes[candidates]  # [B, k, T - 1]
    present = torch.zeros((len(candidates), count + 1), dtype=torch.bool, device=mask.device)
    present.scatter_(1, paths.flatten(1), True)
    present[:, count] = False
    nodes, real = _packed(present[:, :count])
    place = present.long().cumsum(1) - 1  # of a node in its question's own tree
    attend = _ancestors(tree, nodes, real, place)
    states = decoder.decode_tree(tree.token[nodes], tree.depth[nodes], attend, question, mask)
    # [CLS] is in every tree and first in it; it has predicted the first words already.
    real[:, 0] = False
    row = real.flatten().long().cumsum(0).sub(1).view_as(real)
    states = states[real]
    # The edges: which row predicts which token of which candidate, in the order of the rows.
    wanted = (paths < count) & (tree.depth.new_tensor(range(paths.shape[2])) > 0)
    owner, which, step = wanted.nonzero(as_tuple=True)
    source = row[owner, place[owner, paths[wanted]]]
    target = tree.ids[candidates[owner, which], step + 1]
    source, order = source.sort(stable=True)
    owner, which, target = owner[order], which[order], target[order]
    bounds = torch.searchsorted(source, torch.arange(0, len(states) + rows, rows, device=source.device)).tolist()
    total = torch.zeros(candidates.shape, dtype=torch.float32, device=mask.device)
    for i, begin in enumerate(range(0, len(states), rows)):
        edges = slice(bounds[i], bounds[i + 1])
        logits = decoder.logits(states[begin : begin + rows]).float()
        at = source[edges] - begin
        value = logits[at, target[edges]] - logits.logsumexp(1)[at]
        total.index_put_((owner[edges], which[edges]), value, accumulate=True)
    return total


def _packed(present: Tensor) -> tuple[Tensor, Tensor]:
    """The true columns of present [B, N] as indices [B, P] in ascending order, and which of these are real.

    Rows with fewer are filled with node 0.
    """
    sizes = present.sum(1)
    real = torch.arange(int(sizes.max()), device=present.device) < sizes[:, None]
    nodes = torch.zeros(real.shape, dtype=torch.int64, device=present.device)
    nodes[real] = present.nonzero()[:, 1]
    return nodes, real


def _ancestors(tree: AnswerTree, nodes: Tensor, real: Tensor, place: Tensor) -> Tensor:
    """Bool [B, P, P]: which node of a question's tree attends to which; a filler attends to the first node."""
    wide = nodes.shape[1]
    chain = tree.ancestors[nodes]  # [B, P, T - 1]
    none = chain == len(tree.token)
    at = place.gather(1, chain.flatten(1)).view_as(chain).masked_fill(none | ~real[..., None], wide)
    attend = torch.zeros((*nodes.shape, wide + 1), dtype=torch.bool, device=nodes.device)
    attend.scatter_(2, at, True)
    attend[..., 0] = True
    return attend[..., :wide]
