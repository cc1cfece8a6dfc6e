"""Words around the turns of published models."""

from __future__ import annotations

from medplib.types import Template


def _vicuna(person: str) -> Template:
    system = (
        f"A chat between a curious {person} and an artificial intelligence assistant. "
        f"The assistant gives helpful, detailed, and polite answers to the {person}'s questions."
    )
    return Template(system=system, human="USER:", gpt="ASSISTANT:", image_in_turn=True)


TRAINING = _vicuna("human")
"""What published weights were trained with ("llava_v1"), and what converted checkpoints use."""
EVALUATION = _vicuna("user")
"""What the published evaluation scripts use instead ("v1", bug B9)."""
