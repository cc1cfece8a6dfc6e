"""A plan as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medplib.planning.memory import checkpointed

if TYPE_CHECKING:
    from medplib.plan import Plan

GIB = 2**30


def plan_text(plan: Plan) -> str:
    """Tables in the order of the questions: how large, how much memory, does it fit, how long a step, what costs most."""
    return "\n\n".join([_parameters(plan), _compute(plan), _memory(plan), _verdict(plan)])


def _parameters(plan: Plan) -> str:
    lines = [f"stage '{plan.stage}'", f"{'part':<36}{'parameters':>16}{'trained':>16}"]
    lines += [f"{p.part:<36}{p.total:>16,}{p.trained:>16,}" for p in plan.parts]
    total, trained = sum(p.total for p in plan.parts), sum(p.trained for p in plan.parts)
    lines.append(f"{'all':<36}{total:>16,}{trained:>16,}")
    return "\n".join(lines)


def _compute(plan: Plan) -> str:
    layers = max(1, plan.layers)
    head = f"one micro-batch: {plan.samples} samples of {plan.tokens} tokens ({plan.image_tokens} of them image)"
    lines = [head, f"{'part':<36}{'forward TF':>12}{'backward TF':>12}{'kept GiB':>10}{'with checkpointing':>20}"]
    for work in plan.works:
        again = checkpointed(work, layers, layers)
        lines.append(
            f"{work.part:<36}{work.forward / 1e12:>12.3f}{work.backward / 1e12:>12.3f}{work.saved / GIB:>10.2f}{again.saved / GIB:>20.2f}"
        )
    total = sum(w.forward + w.backward for w in plan.works)
    again = sum(w.forward + w.backward for w in (checkpointed(w, layers, layers) for w in plan.works))
    lines.append(f"step: {total / 1e12:.2f} TFLOP, {total / plan.samples / 1e12:.3f} per sample; with checkpointing {again / 1e12:.2f}")
    return "\n".join(lines)


def _memory(plan: Plan) -> str:
    lines = [
        f"GiB per rank, {plan.gpu_gib:g} GiB accelerator",
        f"{'strategy':<10}{'ranks':>6}{'checkpointing':>15}{'weights':>9}{'gradients':>11}{'optimiser':>11}{'activations':>13}{'all':>9}",
    ]
    for row in plan.memory:
        parts = (row.weights, row.gradients, row.optimiser, row.activations, row.total)
        weights, gradients, optimiser, activations, total = (value / GIB for value in parts)
        lines.append(
            f"{row.strategy:<10}{row.ranks:>6}{'yes' if row.recomputed else 'no':>15}{weights:>9.2f}{gradients:>11.2f}{optimiser:>11.2f}"
            f"{activations:>13.2f}{total:>9.2f}  {'fits' if row.fits(plan.gpu_gib) else 'does not fit'}"
        )
    return "\n".join(lines)


def _verdict(plan: Plan) -> str:
    costly = max(plan.works, key=lambda w: w.forward + w.backward)
    share = (costly.forward + costly.backward) / max(1.0, sum(w.forward + w.backward for w in plan.works))
    lines = [f"dominant arithmetic: {costly.part} ({share:.0%} of a step)"]
    one = min((row for row in plan.memory if row.ranks == min(r.ranks for r in plan.memory)), key=lambda row: row.total)
    names = ("weights", "gradients", "optimiser", "activations")
    largest = max(names, key=lambda name: getattr(one, name))
    lines.append(f"dominant memory at least: {largest} ({getattr(one, largest) / GIB:.1f} of {one.total / GIB:.1f} GiB, {one.strategy})")
    fitting = [row for row in plan.memory if row.fits(plan.gpu_gib)]
    if fitting:
        best = min(fitting, key=lambda row: (row.ranks, row.recomputed, row.strategy != "none", row.strategy))
        how = f"{best.strategy} on {best.ranks} rank{'s' if best.ranks > 1 else ''}{' with checkpointing' if best.recomputed else ''}"
        if plan.fewest_recomputed:
            lines.append(f"without a strategy checkpointing of {plan.fewest_recomputed} of {plan.layers} layers is enough")
        lines.append(f"verdict: fits {plan.gpu_gib:g} GiB: {how}, {best.total / GIB:.1f} GiB")
    else:
        least = min(plan.memory, key=lambda row: row.total)
        lines.append(
            f"verdict: does not fit {plan.gpu_gib:g} GiB; least is {least.total / GIB:.1f} GiB ({least.strategy}, {least.ranks} ranks)"
        )
    return "\n".join(lines)
