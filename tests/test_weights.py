"""The fingerprint: a pinned value, sensitivity to every part, and tied tensors counted once."""

from __future__ import annotations

import hashlib
import struct

import pytest
import torch
from tests.models import normals, tiny
from torch import nn

from zotune.weights import base_sha256, weights_sha256


def test_the_fingerprint_is_what_the_format_says() -> None:
    """Names sorted; name, NUL, dtype, NUL, shape, NUL and little-endian bytes of each tensor; nothing else."""
    named = {"b": torch.tensor([[1.0, -2.0]]), "a": torch.tensor(3, dtype=torch.int64)}
    raw = b"a\0int64\0\0" + struct.pack("<q", 3) + b"b\0float32\x001,2\0" + struct.pack("<2f", 1.0, -2.0)
    assert weights_sha256(named) == hashlib.sha256(raw).hexdigest()
    assert weights_sha256(dict(reversed(named.items()))) == weights_sha256(named)


@pytest.mark.parametrize(
    "changed",
    [
        {"other": torch.zeros(2, 3)},
        {"w": torch.zeros(3, 2)},
        {"w": torch.zeros(6)},
        {"w": torch.zeros(2, 3, dtype=torch.bfloat16)},
        {"w": torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, -0.0]])},
        {"w": torch.zeros(2, 3), "x": torch.zeros(0)},
    ],
)
def test_every_part_counts(changed: dict[str, torch.Tensor]) -> None:
    """Another name, shape, dtype, sign of zero or an empty tensor more: another fingerprint."""
    assert weights_sha256(changed) != weights_sha256({"w": torch.zeros(2, 3)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_layout_and_gradients_do_not_count(dtype: torch.dtype) -> None:
    """A transposed view, a slice and a parameter hash like the plain tensor with the same values."""
    plain = normals((4, 6), 1).to(dtype)
    turned = plain.t().contiguous().t()
    padded = torch.cat([plain, plain])[:4]
    expected = weights_sha256({"w": plain})
    assert not turned.is_contiguous()
    for same in (turned, padded, nn.Parameter(plain)):
        assert weights_sha256({"w": same}) == expected


def test_the_base_counts_tied_tensors_once_and_buffers_too() -> None:
    """A tied output layer adds nothing; a changed persistent buffer changes the fingerprint."""
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    before = base_sha256(model)
    model.again = model[0]
    assert base_sha256(model) == before
    model[1].running_mean += 1
    assert base_sha256(model) != before
    tied = tiny("gpt2")
    assert base_sha256(tied) == weights_sha256(dict(tied.named_parameters()))
