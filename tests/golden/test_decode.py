from __future__ import annotations

import pytest
import torch

from tests.golden.decode import decode_model, decode_tensor, unpack_nibbles


def test_nibbles_low_first_offset_eight():
    assert unpack_nibbles(torch.tensor([[0x10, 0xF8]], dtype=torch.uint8)).tolist() == [[-8, -7, 0, 7]]


def test_integer_without_scale_is_refused():
    with pytest.raises(ValueError, match="without a scale"):
        decode_tensor(torch.zeros(2, dtype=torch.int8), None)


@pytest.mark.golden
def test_stored_model_decodes_to_its_digests(golden):
    model = golden.model()
    assert model["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape == (3072, 768)
    assert all(tensor.dtype == torch.float32 for tensor in model.values())


@pytest.mark.golden
def test_wrong_byte_is_noticed(golden):
    stored = golden.tensors("model")
    stored["visual.proj"][0, 0] += 1
    with pytest.raises(ValueError, match=r"visual\.proj"):
        decode_model(stored, golden.group("model"))
