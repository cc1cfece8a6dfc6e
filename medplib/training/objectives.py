"""What a stage minimises: model and batch in, loss terms out. One function per objective, chosen by name in the stage."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn import functional

from medplib.models.medplib import MedPLIB
from medplib.models.moe import load_balancing_loss, router_z_loss, task_routing_loss, tokens_of_experts
from medplib.ranks import summed
from medplib.tokens import IGNORE_LABEL
from medplib.training import ranks
from medplib.training.losses import LossTerms, LossWeights
from medplib.training.pretraining import contrastive, dense, promptable
from medplib.training.terms import Objective, Outcome, per_answer, with_mask_terms
from medplib.types import Batch, ModelOutput


def conversation(model: MedPLIB, batch: Batch, weights: LossWeights) -> Outcome:
    """Stages I to IV: cross-entropy of the answers, mask losses of their targets, presence, distillation from name prompts, router."""
    # In training parts run even where a batch has nothing for them, so that all ranks take part in every exchange of gradients.
    with_masks = model.grounder is not None and weights.needs_masks and (len(batch.names) > 0 or model.every_part)
    with_masks = with_masks and (not model.training or weights.mask_share >= 1 or float(torch.rand(())) < weights.mask_share)
    ranks.diverge()
    out = model(batch, with_masks=with_masks)
    per_token = functional.cross_entropy(out.label_logits, out.label_ids, reduction="none")
    answer = per_answer(per_token, batch.labels[:, 1:] != IGNORE_LABEL, batch.segments[:, 1:])
    decision, decided = _decision_loss(batch, out)
    terms = LossTerms(lm=per_token.mean(), answer=answer, decision=decision)
    if out.grounding is not None:
        terms = with_mask_terms(terms, out.grounding, batch, weights)
    size = torch.zeros((), device=batch.labels.device)
    if out.target_prompts is not None and weights.distill and model.names is not None:
        with torch.no_grad():
            wanted = model.names(batch.name_ids)
        size = wanted.square().sum()
        terms = replace(terms, distill=(out.target_prompts - wanted).square().sum() / size.clamp(min=1e-6))
    if out.router is not None and weights.router:
        tokens_LE = tokens_of_experts(out.router)
        terms = replace(
            terms, router=load_balancing_loss(out.router, summed(tokens_LE.flatten()).view_as(tokens_LE) if model.training else None)
        )
    if out.router is not None and weights.router_z:
        terms = replace(terms, router_z=router_z_loss(out.router))
    if out.router is not None and weights.router_task:
        wanted = _expert_of_token(batch, model.language.expert_of_task)
        terms = replace(terms, router_task=ranks.balanced_over_ranks(*task_routing_loss(out.router, wanted), together=model.training))
    return Outcome(terms, ranks.count_items(batch, decided=decided, prompt_size=size), out, out.grounding)


def _expert_of_token(batch: Batch, expert_of_task: dict[str, int]) -> torch.Tensor:
    """(T,) for the real tokens: index of the expert that the task of their conversation names, -1 for none and for the shared prefix."""
    most = max(len(records) for records in batch.records)
    table = torch.full((len(batch.records), most + 1), -1, dtype=torch.int64)
    for row, records in enumerate(batch.records):
        for number, record in enumerate(records, 1):
            table[row, number] = expert_of_task.get(record.meta.task, -1)
    return table.to(batch.segments.device).gather(1, batch.segments)[batch.attention_mask]


def _decision_loss(batch: Batch, out: ModelOutput) -> tuple[torch.Tensor | None, int]:
    """Cross-entropy of the one token that decides between `<SEG>` and a refusal, and the number of targets that it is the mean of.

    Without any it is None, in training 0: every rank must have the same terms.
    """
    nothing = out.label_logits.sum() * 0 if torch.is_grad_enabled() else None
    if not len(batch.names):
        return nothing, 0
    row_of = torch.full(batch.labels.shape, -1, device=batch.labels.device)
    target = batch.labels[:, 1:] != IGNORE_LABEL
    row_of[:, :-1][target] = torch.arange(len(out.label_ids), device=batch.labels.device)
    rows = row_of[batch.target_row, batch.target_position]
    rows = rows[rows >= 0]
    return (functional.cross_entropy(out.label_logits[rows], out.label_ids[rows]) if len(rows) else nothing), len(rows)


OBJECTIVES: dict[str, Objective] = {"conversation": conversation, "dense": dense, "promptable": promptable, "contrastive": contrastive}
