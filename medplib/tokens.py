"""Special tokens, placeholder ids and the letters of the sequence that every stage shares.

The text tokens are those of the published model (arXiv 2412.09278). Image and region slots are not rows of the vocabulary: they are
negative placeholder ids in `input_ids`, overwritten by features before the language model sees them, so they can never be generated.
"""

from __future__ import annotations

SEG = "<SEG>"
REGION_START, REGION_END = "<region>", "</region>"
IMAGE_START, IMAGE_END = "<im_start>", "<im_end>"
IMAGE_TAG = "<image>"
"""Where an image stands in the text of a record; becomes IMAGE_START, P placeholders, IMAGE_END."""

MASK_TAG = ("<mask>", "</mask>")
"""Encloses a mask path in the text of a MeCoVQA record; stripped by the reader, never seen by the model."""

SPECIAL_TOKENS = (SEG, REGION_START, REGION_END, IMAGE_START, IMAGE_END)

IMAGE_PLACEHOLDER = -200
REGION_PLACEHOLDER = -300
IGNORE_LABEL = -100
