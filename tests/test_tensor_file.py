"""Safetensors files that are written tensor by tensor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from zoodip_core.base.errors import ModelError
from zoodip_core.model.tensor_file import Layout

TYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


def test_it_is_read_as_the_librarys_own(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    tensors = {f"layer.{i}": torch.randn(3, i, generator=random).to(kind) for i, kind in enumerate(TYPES)}
    tensors |= {"scalar": torch.tensor(2.5), "across": torch.randn(4, 6, generator=random).T}
    metadata = {"sha256": "00", "about": "ü"}
    layout = Layout({name: tensor.to("meta") for name, tensor in tensors.items()}, metadata)
    with (tmp_path / "ours").open("xb") as file:
        for name, tensor in reversed(tensors.items()):
            layout.write(file, {name: tensor})
        layout.write_header(file, {**metadata, "sha256": "ab"})
    assert (tmp_path / "ours").stat().st_size == layout.size

    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "theirs")
    one, other = (load_file(tmp_path / name) for name in ("ours", "theirs"))
    assert one.keys() == other.keys()
    assert all((one[name].dtype, one[name].shape) == (other[name].dtype, other[name].shape) for name in one)
    assert all(
        torch.equal(one[name].view(-1).view(torch.uint8), other[name].view(-1).view(torch.uint8)) for name in one
    )
    with safe_open(tmp_path / "ours", framework="pt") as opened:
        assert opened.metadata() == {"sha256": "ab", "about": "ü"}


def test_a_header_of_another_length_is_refused(tmp_path: Path) -> None:
    layout = Layout({"a": torch.zeros(3)}, {"about": "short"})
    with (tmp_path / "file").open("xb") as file, pytest.raises(ValueError, match="another length"):
        layout.write_header(file, {"about": "much longer than what it was laid out for"})


def test_a_type_that_no_model_has_is_refused() -> None:
    with pytest.raises(ModelError, match=r"model: odd is of type torch\.complex64"):
        Layout({"odd": torch.zeros(3, dtype=torch.complex64)}, {})
