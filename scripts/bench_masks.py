"""Rows of scripts/bench.py about masks: the state of `<SEG>` kept while decoding beside a second pass, and a batch beside loops."""

from dataclasses import replace

import medplib  # noqa: F401  (before anything that imports torchvision)

# isort: split
import torch
from bench_parts import Row, halves, interleaved, median_ratio
from bench_sizes import sizes

from medplib.inference.generate import Generated, generate
from medplib.inference.steps import steps_for
from medplib.models.grounding import PixelGrounder
from medplib.models.medplib import MedPLIB
from medplib.types import Batch

SEG_ID, SEG_STEP, WORDS, PROMPTS = 5, 2, 8, 2
"""`<SEG>` is the third of eight words; two prompts per image."""


@torch.no_grad()
def second_pass_rows(model: MedPLIB, batch: Batch, device: str, *, repeats: int = 5) -> list[Row]:
    """Answers with masks: states kept while decoding, beside the same answers given to the model once more to read the states off."""
    model.eval()
    steps = steps_for(model.language, torch.device(device))

    def say_seg(step: int, states: torch.Tensor, logprobs: torch.Tensor, live: torch.Tensor) -> torch.Tensor:
        return (
            torch.full((len(logprobs),), SEG_ID, device=device) if step == SEG_STEP else logprobs[:, SEG_ID + 1 :].argmax(-1) + SEG_ID + 1
        )

    def said() -> Generated:
        return generate(model, batch, eos_id=-1, seg_id=SEG_ID, max_new_tokens=WORDS, decide=say_seg, steps=steps)

    def masks(states: torch.Tensor) -> torch.Tensor:
        features = model.grounder.encode(batch.sam_pixels, batch.letterboxes)
        rows = torch.arange(len(states), device=device)
        return model.grounder.decode(features, rows, model.seg_projector(states)).mask_logits

    def again() -> torch.Tensor:
        whole = _with_answers(batch, torch.tensor(said().ids, device=device))
        return masks(model.hidden(whole)[:, batch.input_ids.shape[1] + SEG_STEP - 1])

    def once() -> torch.Tensor:
        return masks(said().seg_states)

    with halves(device):
        assert sizes(device).dtype != torch.float32 or torch.allclose(once(), again(), atol=1e-3), "the masks differ"
        ratio, details = median_ratio(interleaved({"twice": again, "once": once}, device=device, repeats=repeats), "twice", "once")
    name = f"answers of {WORDS} words with a mask: finished, then read again, over states kept while decoding"
    return [Row("g", name, ratio, "a second forward", float("nan"), 1.5, 1.9, False, details)]


def _with_answers(batch: Batch, ids: torch.Tensor) -> Batch:
    """The prompts with what was said behind them."""
    steps = torch.arange(1, ids.shape[1] + 1, device=ids.device)
    return replace(
        batch,
        input_ids=torch.cat([batch.input_ids, ids], dim=1),
        attention_mask=torch.cat([batch.attention_mask, torch.ones_like(ids, dtype=torch.bool)], dim=1),
        segments=torch.cat([batch.segments, batch.segments[:, -1:].expand_as(ids)], dim=1),
        positions=torch.cat([batch.positions, batch.positions[:, -1:] + steps], dim=1),
    )


@torch.no_grad()
def mask_rows(grounder: PixelGrounder, batch: Batch, device: str, *, repeats: int = 5) -> list[Row]:
    """Images encoded together and one call of the decoder for all prompts, beside one image at a time and one prompt at a time."""
    grounder.eval()
    images = len(batch.letterboxes)
    index = torch.arange(images, device=device).repeat_interleave(PROMPTS)
    prompts = torch.randn(len(index), grounder.prompt_width, device=device)

    def together() -> torch.Tensor:
        return grounder.decode(grounder.encode(batch.sam_pixels, batch.letterboxes), index, prompts).low_res_logits

    def loop() -> torch.Tensor:
        features = [grounder.encode(batch.sam_pixels[i : i + 1], batch.letterboxes[i : i + 1]).embedding for i in range(images)]
        return torch.cat([_one_mask(grounder, features[int(i)], prompt) for i, prompt in zip(index, prompts, strict=True)])

    with halves(device):
        assert sizes(device).dtype != torch.float32 or torch.allclose(together(), loop(), atol=1e-3), "the masks differ"
        ratio, details = median_ratio(interleaved({"loop": loop, "batch": together}, device=device, repeats=repeats), "loop", "batch")
    details["images_per_second"] = images / details["batch_seconds"]
    name = f"SAM encoder and decoder, {images} images with {PROMPTS} prompts each: one by one over a batch"
    goal = sizes(device).batched_masks
    return [Row("n", name, ratio, "segment-anything, one by one", float("nan"), goal.target, goal.stretch, False, details)]


def _one_mask(grounder: PixelGrounder, embedding: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    """segment-anything's own decoder for one prompt, with its dense positions made anew as published loops do: (1, s, s)."""
    encoder = grounder.prompt_encoder
    dense = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(1, -1, *embedding.shape[-2:])
    options = {"image_pe": encoder.get_dense_pe(), "sparse_prompt_embeddings": prompt[None, None], "dense_prompt_embeddings": dense}
    return grounder.mask_decoder(image_embeddings=embedding, multimask_output=False, **options)[0][:, 0]
