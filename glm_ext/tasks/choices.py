"""How likely each answer to a question is, all its answers on one encoding of the text.

Shape letters: Q questions, K most choices of a question, C choices in all, R scored tokens, S packed length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from glm_ext.branches import Branches
from glm_ext.model import GLM


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Part A with one blank, what may stand in it, and which of that is right."""

    context: list[int]
    place: int  # of the blank in Part A
    choices: list[list[int]]  # tokens of each answer
    gold: frozenset[int]  # the right choices; empty where it is not known
    texts: list[str] = field(default_factory=list)  # of the choices
    group: str = ""  # questions that some metrics judge together


def choice_log_probs(
    model: GLM, questions: Sequence[Question], *, start_id: int, end_id: int, length_penalty: float = 0.0
) -> Tensor:
    """log p(choice | Part A) of every choice [Q, K], float32, -inf past a question's last; differentiable.

    The sum of the log-probabilities of the answer's tokens and of the end token after them; where every
    choice of a question is one token, of that token alone. Divided by the number of summands to the power of
    length_penalty. Part A is encoded once: the choices lie behind it as `Branches`.

    ValueError for a question without choices, an empty choice, or what does not fit into the model's tables.
    """
    limit = model.config.max_positions
    for question in questions:
        check_question(question, limit)
    packed = _pack(questions, start_id, end_id, model.word_embeddings.weight.device)
    hidden, head = model.hidden_and_head(
        packed.tokens, packed.positions, packed.prefix_len, cache=[packed.branches] * model.config.num_layers
    )
    nll = model.transformer.ops(hidden).linear_cross_entropy(
        hidden.flatten(0, 1)[packed.scored],
        head,
        packed.targets,
        reduction="none",
    )
    counts = [len(question.choices) for question in questions]
    total = nll.new_zeros(sum(counts), dtype=torch.float32).index_add(0, packed.owner, -nll.float())
    if length_penalty != 0.0:
        total = total / packed.owner.bincount(minlength=sum(counts)) ** length_penalty
    rows = [question for question, count in enumerate(counts) for _ in range(count)]
    columns = [choice for count in counts for choice in range(count)]
    table = total.new_full((len(questions), max(counts)), -torch.inf)
    index = (torch.tensor(rows, device=total.device), torch.tensor(columns, device=total.device))
    scores: Tensor = table.index_put(index, total)
    return scores


def check_question(question: Question, limit: int) -> None:
    """ValueError for one that a model with max_positions = limit cannot be asked."""
    if not question.choices or not all(question.choices):
        raise ValueError("choices: expected at least one, each of one token or more, got an empty one")
    if len(question.context) > limit:
        raise ValueError(
            f"the text has {len(question.context)} tokens and the model takes {limit} (max_positions); "
            "lower max_length of the task"
        )
    longest = max(map(len, question.choices))
    if longest + 1 > limit:
        raise ValueError(
            f"choices: the longest answer has {longest} tokens and the model takes {limit - 1} "
            "(max_positions - 1)"
        )


def choice_loss(log_probs: Tensor, questions: Sequence[Question]) -> Tensor:
    """Cross-entropy, -log(sum over right choices of softmax(log_probs)), the mean over questions."""
    right = torch.zeros_like(log_probs, dtype=torch.bool)
    for row, question in enumerate(questions):
        if not question.gold:
            raise ValueError("expected a label in every example to learn from, found one without")
        right[row, sorted(question.gold)] = True
    chosen = log_probs.masked_fill(~right, -torch.inf).logsumexp(1)
    return (log_probs.logsumexp(1) - chosen).mean()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Packed:
    tokens: Tensor  # [Q, S]
    positions: Tensor  # [Q, 2, S]
    prefix_len: Tensor  # [Q]
    branches: Branches
    scored: Tensor  # [R] rows q * S + s whose prediction is scored
    targets: Tensor  # [R] what is to be predicted there
    owner: Tensor  # [R] the choice, counted over all questions, to which it belongs


def _pack(questions: Sequence[Question], start_id: int, end_id: int, device: torch.device) -> _Packed:
    """Part A, then `start answer` of every choice; `start` alone where each is one token."""
    lengths = []
    for question in questions:
        fed = 1 if _single(question) else sum(len(choice) + 1 for choice in question.choices)
        lengths.append(len(question.context) + fed)
    S = max(lengths)
    tokens, places, within = ([[0] * S for _ in questions] for _ in range(3))
    rows: list[int] = []
    cu_seqlens, scored, targets, owner = [0], list[int](), list[int](), list[int]()
    choice_number = 0
    for q, question in enumerate(questions):
        end = len(question.context)
        tokens[q][:end], places[q][:end] = question.context, range(end)
        single = _single(question)
        spans = [[start_id]] if single else [[start_id, *choice] for choice in question.choices]
        for span in spans:
            begin, end = end, end + len(span)
            tokens[q][begin:end] = span
            places[q][begin:end] = [question.place] * len(span)
            within[q][begin:end] = range(1, len(span) + 1)
            rows += range(q * S + begin, q * S + end)
            cu_seqlens.append(len(rows))
            if not single:
                scored += range(q * S + begin, q * S + end)
        if single:
            scored += [rows[-1]] * len(question.choices)
        for choice in question.choices:
            targets += choice if single else [*choice, end_id]
            owner += [choice_number] * (len(choice) if single else len(choice) + 1)
            choice_number += 1

    def tensor(values: list[int]) -> Tensor:
        return torch.tensor(values, device=device)

    return _Packed(
        tokens=torch.tensor(tokens, device=device),
        positions=torch.tensor([places, within], device=device).transpose(0, 1),
        prefix_len=tensor([len(question.context) for question in questions]),
        branches=Branches(tensor(rows), tensor(cu_seqlens)),
        scored=tensor(scored),
        targets=tensor(targets),
        owner=tensor(owner),
    )


def _single(question: Question) -> bool:
    return all(len(choice) == 1 for choice in question.choices)
