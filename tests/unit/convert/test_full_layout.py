"""Before stage IV trains, its model with one expert forced is the parent that the expert came from, in the published layout as well."""

from dataclasses import asdict, replace

import pytest
import torch

from medplib.convert.published import ImportOptions, export_published, import_published
from medplib.lineage import Lineage, load_checkpoint, save_checkpoint
from medplib.models.load import load_model
from medplib.models.medplib import MedPLIB
from medplib.models.moe import MoEConfig, forced_expert
from medplib.tensorfiles import StoredTensor
from medplib.training.assemble import assemble
from medplib.training.stage import InitConfig, Parent, StageConfig
from tests.parity.fixtures import Case, case
from tests.unit.convert.published_folder import write_published


def answers(model: MedPLIB, case_: Case, expert: str | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and mask logits of the fixture's batch, every token sent to `expert`."""
    language = model.language
    with torch.no_grad(), forced_expert(language.routing, language.expert_names, expert):
        features = model.vision.backbone(case_.images_clip)
        hidden = model.hidden(case_.batch, features)
        prompts = model.seg_projector(hidden[case_.batch.target_row, case_.batch.target_position])
        image = model.grounder.image_encoder(case_.images_sam, torch.zeros(2, 6))
        masks = model.grounder.decode(image, case_.batch.target_image, prompts)
        return language.logits(hidden[case_.expanded]), masks.mask_logits


@pytest.fixture(scope="module")
def parents(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("parents")
    for name, change in (("stage2", 0.0), ("stage3", 0.02)):
        folder = write_published(root / f"published_{name}", "llm_dense", change=change)
        import_published(folder, root / name, ImportOptions(stage=name, clip=str(folder / "clip.json")))
    return {name: str(root / name) for name in ("stage2", "stage3")}


def stage4(parents: dict[str, str]) -> StageConfig:
    second, third = Parent(parents["stage2"], "stage2"), Parent(parents["stage3"], "stage3")
    return StageConfig(
        name="stage4",
        output="unused",
        moe=MoEConfig(),
        init=InitConfig(
            base=second,
            parts={"grounder": third, "seg_projector": third},
            experts={"grounding": third, "vl": second},
            fresh=("router",),
        ),
        train=("router",),
    )


# With experts in some layers only, the other layers are those of the base, which its own expert alone can reproduce.
@pytest.mark.parametrize(("expert", "parent", "layers"), [("grounding", "stage3", ()), ("vl", "stage2", ()), ("vl", "stage2", (0, 2))])
def test_a_forced_expert_is_its_parent(tmp_path, parents, expert, parent, layers):
    case_ = case("llm_dense")
    wanted = answers(load_model(load_checkpoint(parents[parent]))[0], case_, None)
    built = assemble(replace(stage4(parents), moe=MoEConfig(layers=layers)))
    found = answers(built.model.eval(), case_, expert)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    save_checkpoint(
        tmp_path / "stage4",
        tensors={name: StoredTensor.of(tensor) for name, tensor in built.model.state_dict().items()},
        config={"model": asdict(built.config)},
        save_tokenizer=built.tokenizer.save_pretrained,
        lineage=Lineage(stage="stage4", trained=(), steps=0),
    )
    export_published(load_checkpoint(tmp_path / "stage4"), tmp_path / "published")
    import_published(tmp_path / "published", tmp_path / "again", ImportOptions())
    for a, b in zip(answers(load_model(load_checkpoint(tmp_path / "again"))[0], case_, expert), found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
