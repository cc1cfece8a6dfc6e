"""The words of generated conversations. `{name}` is a structure, `{modality}` the modality of the image."""

from __future__ import annotations

from collections.abc import Sequence

LOCATE = (
    "Could you segment out the {name} in this image?",
    "Please generate a mask of the {name} in this image.",
    "Segment the {name}.",
    "Can you segment the {name} in this {modality} image?",
    "Please outline the {name} in this image.",
    "Mark the {name} in this {modality} image.",
)
LOCATE_SEVERAL = (
    "Segment {names}.",
    "Could you segment out {names} in this image?",
    "Please generate masks of {names} in this image.",
    "Mark {names} in this {modality} image.",
)
REGION = (
    "What is in the area {region}?",
    "Which structure does {region} cover?",
    "What can be seen in {region}?",
    "Name the structure in the area {region}.",
)
MODALITY = ("Which modality is this image?", "What kind of image is this?", "How was this image taken?")
PRESENCE = ("Is there a {name} in this image?", "Does this image show a {name}?", "Can you see a {name} in this image?")
PRESENCE_MANY = ("Are there {name} in this image?", "Does this image show {name}?", "Can you see {name} in this image?")
SIDE = ("On which side of the image is the {name}?", "In which half of the image does the {name} lie, left or right?")
SIZE = ("Is the {name} small or large?", "Does the {name} look small or large in this image?")
DESCRIBE = (
    "Describe this image.",
    "What does this image show?",
    "What can you see in this image?",
    "Please describe what is visible here.",
)


def presence_templates(name: str) -> tuple[str, ...]:
    """Questions about presence that agree in number with the name."""
    return PRESENCE_MANY if name.endswith("s") and not name.endswith(("ss", "us", "is")) else PRESENCE


def join_names(names: Sequence[str]) -> str:
    """Names as a list in a sentence: "the liver, the spleen and the aorta"."""
    parts = [f"the {name}" for name in names]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def description(modality: str, names: Sequence[str]) -> str:
    """One sentence about an image and what is labelled in it."""
    article = "An" if modality[:1].lower() in "aeio" or modality.upper() in ("MR", "MRI", "X-RAY", "US") else "A"
    return f"{article} {modality} image that shows {join_names(names)}." if names else f"{article} {modality} image."
