"""Wordings. Each kind of question has six that every split uses and two (the last) that only
validation and test splits use. Placeholders: {a}, {b} names, {an} the first name with its article, {r} a marked region.
"""

from __future__ import annotations

from typing import Literal

Kind = Literal["ground_one", "ground_two", "exists", "contains", "side", "size", "larger", "modality", "region", "describe", "caption"]

SEEN_TEMPLATES = 6

QUESTIONS: dict[Kind, tuple[str, ...]] = {
    "ground_one": (
        "Could you segment out the {a} in this image?",
        "Please segment the {a}.",
        "Segment the {a} in the image.",
        "Where is the {a}?",
        "Can you outline the {a}?",
        "Show me the {a}.",
        "Please mark the {a} in this image.",
        "Could you show where the {a} is?",
    ),
    "ground_two": (
        "Segment the {a} and the {b}.",
        "Could you segment out the {a} and the {b} in this image?",
        "Please outline the {a} and the {b}.",
        "Where are the {a} and the {b}?",
        "Show me the {a} and the {b}.",
        "Can you segment the {a} and the {b}?",
        "Please mark the {a} and the {b} in the image.",
        "Can you show where the {a} and the {b} are?",
    ),
    "exists": (
        "Is there {an} in this image?",
        "Is {an} visible?",
        "Do you see {an}?",
        "Does the image show {an}?",
        "Can {an} be seen here?",
        "Is {an} present?",
        "Can you see {an} in this image?",
        "Is {an} visible in the image?",
    ),
    "contains": (
        "Does the {b} contain {an}?",
        "Is there {an} in the {b}?",
        "Do you see {an} in the {b}?",
        "Is {an} visible in the {b}?",
        "Does the {b} show {an}?",
        "Can {an} be seen in the {b}?",
        "Is {an} present in the {b}?",
        "Can you see {an} in the {b}?",
    ),
    "side": (
        "On which side of the patient is the {a}?",
        "Is the {a} on the left or the right side of the patient?",
        "Which side of the patient shows the {a}?",
        "On what side of the patient do you see the {a}?",
        "The {a} is on which side of the patient?",
        "Which side of the patient is the {a} on?",
        "Is the {a} on the patient left or the patient right side?",
        "On which patient side is the {a} visible?",
    ),
    "size": (
        "Is the {a} large or small?",
        "Is the {a} large or small in this image?",
        "What size is the {a}, large or small?",
        "How large is the {a}, large or small?",
        "Do you see a large or a small {a}?",
        "Does the {a} look large or small?",
        "Is this a large or a small {a}?",
        "Large or small: what is the size of the {a}?",
    ),
    "larger": (
        "Which is larger, the {a} or the {b}?",
        "What is larger here, the {a} or the {b}?",
        "Which looks larger, the {a} or the {b}?",
        "Of the {a} and the {b}, which is larger?",
        "Which of the two is larger, the {a} or the {b}?",
        "Is the {a} or the {b} larger?",
        "Which is the larger one, the {a} or the {b}?",
        "Which one is larger in this image, the {a} or the {b}?",
    ),
    "modality": (
        "Which modality is this?",
        "What modality is this image?",
        "Which imaging modality is this?",
        "What kind of image is this?",
        "How was this image made?",
        "What modality do you see?",
        "Which kind of image do you see here?",
        "Which modality was this image made with?",
    ),
    "region": (
        "What is in the area {r}?",
        "What do you see in {r}?",
        "Please name the structure in {r}.",
        "What is the structure in the area {r}?",
        "Which structure is marked by {r}?",
        "What does the area {r} show?",
        "Which structure do you see in the area {r}?",
        "Please name what is in {r}.",
    ),
    "describe": (
        "What do you see in this image?",
        "What does the image show?",
        "Please describe the whole image.",
        "Can you describe what is visible in this image?",
        "Which structures are visible?",
        "Please name all that is visible in the image.",
        "What is visible in this image?",
        "Can you describe the whole image?",
    ),
    "caption": (
        "Describe this image.",
        "Please describe this image.",
        "Describe the image in one sentence.",
        "Give a short description of the image.",
        "Write one sentence on this image.",
        "Describe what the image shows.",
        "Give one sentence that describes this image.",
        "Please describe the image in short.",
    ),
}


def with_article(name: str) -> str:
    """The name after "a" or "an"; empty for no name."""
    return f"{'an' if name[:1] in tuple('aeiou') else 'a'} {name}" if name else ""
