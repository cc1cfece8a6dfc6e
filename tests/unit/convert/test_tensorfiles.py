import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from medplib.errors import InputError
from medplib.tensorfiles import StoredTensor, open_tensors, shard_plan, write_safetensors

TENSORS = {
    "half": torch.randn(3, 4).half(),
    "brain": torch.randn(5).bfloat16(),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
    "ids": torch.arange(6).view(2, 3),
    "flags": torch.tensor([True, False]),
    "strided": torch.arange(12.0).view(3, 4).T,
}


def test_what_is_written_is_read_by_the_library(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", {name: StoredTensor.of(tensor) for name, tensor in TENSORS.items()})
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in TENSORS.items())


@pytest.mark.parametrize("wrapper", [None, "model", "module", "state_dict"])
def test_torch_files_are_unwrapped(tmp_path, wrapper):
    torch.save(TENSORS if wrapper is None else {wrapper: TENSORS, "epoch": 3}, tmp_path / "a.pth")
    found = open_tensors(tmp_path / "a.pth")
    assert {name: tensor.shape for name, tensor in found.items()} == {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
    assert torch.equal(found["half"].read(), TENSORS["half"])


def test_torch_files_from_before_archives(tmp_path):
    torch.save({"model": TENSORS}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(open_tensors(tmp_path / "a.pth")["half"].read(), TENSORS["half"])


class _Code:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    torch.save({"weight": torch.zeros(2), "extra": _Code(tmp_path / "ran")}, tmp_path / "a.bin")
    with pytest.raises(InputError, match=r"holds tensors and no code, found code: \w+\.mkdir"):
        open_tensors(tmp_path / "a.bin")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(2, dtype=torch.complex64), torch.eye(2).to_sparse(), torch.zeros(2, device="meta")],
    ids=["complex", "sparse", "meta"],
)
def test_tensors_that_no_safetensors_file_holds_are_refused(tmp_path, tensor):
    torch.save({"odd": tensor}, tmp_path / "a.bin")
    with pytest.raises(InputError, match=r"dense tensors .* found odd"):
        open_tensors(tmp_path / "a.bin")


@pytest.mark.parametrize("file", ["..", ".", "", "sub/a.safetensors", "/a.safetensors", 5, None])
def test_an_index_names_files_beside_it(tmp_path, file):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(InputError, match="names of shards beside it"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no pickle", b"\x80\x04"])
@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_other_files_are_refused(tmp_path, content, suffix):
    (tmp_path / f"a{suffix}").write_bytes(content)
    with pytest.raises(InputError, match=f"a{suffix}"):
        open_tensors(tmp_path)


def test_one_tensor_in_two_shards_is_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "1.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "2.safetensors")
    with pytest.raises(InputError, match=r"1\.safetensors as well"):
        open_tensors(tmp_path)


def test_shards_keep_order_and_limit():
    tensors = {str(i): StoredTensor.of(torch.zeros(n, dtype=torch.uint8)) for i, n in enumerate((40, 70, 20, 10, 300, 5))}
    plan = shard_plan(tensors, limit=100)
    assert [list(shard) for shard in plan] == [["0"], ["1", "2", "3"], ["4"], ["5"]]
