"""`python -m medplib.convert published|sam|export`: published checkpoints to checkpoint folders and back."""

from __future__ import annotations

from pathlib import Path

from medplib.convert.published import ImportOptions
from medplib.errors import run_actions, run_command


def published(folder: str, out: str, options: ImportOptions = ImportOptions()) -> None:  # noqa: B008 (frozen)
    """Import a published MedPLIB (stage II, III or IV) or LLaVA-1.5 folder.

    Args:
        folder: weights, config.json and tokenizer.
        out: checkpoint folder to write.
        options: see ImportOptions.
    """
    from medplib.convert.published import import_published

    lineage = import_published(Path(folder), Path(out), options, say=print)
    print(f"wrote {out}: stage '{lineage.stage}', weights {lineage.weights_sha256[:12]}")


def sam(file: str, out: str, stage: str = "sam", image_size: int | None = None, adapter: bool = False) -> None:
    """Import sam-med2d_b.pth or a file of segment-anything (ViT-B, -L, -H) as a grounder.

    Args:
        file: .pth or .safetensors.
        out: checkpoint folder to write.
        stage: name written into the lineage.
        image_size: input size in pixels, when it shall differ from that of the file.
        adapter: add SAM-Med2D's adapters to a file without them.
    """
    from medplib.convert.sam_file import import_sam

    lineage = import_sam(Path(file), Path(out), stage=stage, image_size=image_size, adapter=adapter, say=print)
    print(f"wrote {out}: stage '{lineage.stage}', weights {lineage.weights_sha256[:12]}")


def export(checkpoint: str, out: str) -> None:
    """Write a checkpoint in the published layout; a SAM grounder alone as sam.pth.

    Args:
        checkpoint: folder written by a stage or by an import.
        out: new folder.
    """
    from medplib.convert.published import export_published
    from medplib.convert.sam_file import export_sam
    from medplib.lineage import load_checkpoint

    opened = load_checkpoint(checkpoint)
    if opened.config["model"].get("language") is None:
        export_sam(opened, Path(out))
    else:
        export_published(opened, Path(out), say=print)
    print(f"wrote {out}")


def main() -> None:
    """Parse the command line."""
    run_actions({"published": published, "sam": sam, "export": export})


if __name__ == "__main__":
    run_command(main)
