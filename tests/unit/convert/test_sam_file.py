import pytest
import torch
from safetensors.torch import load_file

from medplib.convert.sam_file import export_sam, import_sam
from medplib.errors import InputError
from medplib.lineage import load_checkpoint
from tests.parity.fixtures import DATA


def official() -> dict[str, torch.Tensor]:
    return load_file(DATA / "sam_med2d" / "state_dict.safetensors")


def test_a_file_with_its_wrapper_becomes_a_grounder(tmp_path):
    torch.save({"model": official() | {"pixel_mean": torch.zeros(3, 1, 1)}}, tmp_path / "sam-med2d_b.pth")
    import_sam(tmp_path / "sam-med2d_b.pth", tmp_path / "out")
    checkpoint = load_checkpoint(tmp_path / "out", stage="sam")
    sizes = checkpoint.config["model"]["grounder"]
    assert (sizes["image_size"], sizes["vit"]["window_size"], sizes["vit"]["global_blocks"]) == (128, 7, [1, 3])
    found = checkpoint.tensors()
    assert torch.equal(
        found["grounder.image_encoder.vit.blocks.2.mlp.adapter.norm.weight"], official()["image_encoder.blocks.2.Adapter.norm.weight"]
    )
    assert checkpoint.lineage.tokenizer_sha256 == ""


def test_another_image_size_interpolates_positions(tmp_path):
    torch.save(official(), tmp_path / "sam.pth")
    told = []
    import_sam(tmp_path / "sam.pth", tmp_path / "out", image_size=256, say=told.append)
    checkpoint = load_checkpoint(tmp_path / "out")
    found = checkpoint.tensors()
    assert checkpoint.config["model"]["grounder"]["image_size"] == 256
    assert found["grounder.image_encoder.vit.pos_embed"].shape == (1, 16, 16, 48)
    assert found["grounder.image_encoder.vit.blocks.1.attn.rel_pos_h"].shape[0] == 31
    assert found["grounder.image_encoder.vit.blocks.0.attn.rel_pos_h"].shape[0] == 13
    assert told == ["positions interpolated to 256 pixels"]


def test_there_and_back_byte_for_byte(tmp_path):
    state = {name: tensor.bfloat16() if ".bias" in name else tensor for name, tensor in official().items()}
    torch.save({"model": state}, tmp_path / "sam.pth")
    import_sam(tmp_path / "sam.pth", tmp_path / "out")
    export_sam(load_checkpoint(tmp_path / "out"), tmp_path / "back")
    back = torch.load(tmp_path / "back" / "sam.pth", weights_only=True)["model"]
    assert back.keys() == state.keys()
    assert all(back[name].dtype == tensor.dtype and torch.equal(back[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("size", [0, -16, 100, 112])
def test_sizes_that_no_encoder_takes_are_refused(tmp_path, size):
    torch.save(official(), tmp_path / "sam.pth")
    with pytest.raises(InputError, match="image_size"):
        import_sam(tmp_path / "sam.pth", tmp_path / "out", image_size=size)


@pytest.mark.parametrize(
    "name", ["image_encoder.neck.0.weight", "image_encoder.blocks.0.attn.rel_pos_h", "mask_decoder.mask_tokens.weight"]
)
def test_a_tensor_that_tells_a_size_is_missing(tmp_path, name):
    torch.save({key: tensor for key, tensor in official().items() if key != name}, tmp_path / "sam.pth")
    with pytest.raises(InputError, match="no such tensor"):
        import_sam(tmp_path / "sam.pth", tmp_path / "out")


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_what_does_not_fit_is_refused(tmp_path, change):
    state = official()
    if change == "missing":
        state.pop("mask_decoder.iou_token.weight")
    elif change == "extra":
        state["mask_decoder.more.weight"] = torch.zeros(1)
    else:
        state["prompt_encoder.no_mask_embed.weight"] = torch.zeros(1, 8)
    torch.save(state, tmp_path / "sam.pth")
    with pytest.raises(InputError, match="1 missing, left over or of another shape"):
        import_sam(tmp_path / "sam.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()
