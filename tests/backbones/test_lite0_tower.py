"""Our modules of EfficientNet-Lite0 against timm's."""

from __future__ import annotations

import pytest
import timm
import torch

from finelens.backbones import lite0
from finelens.backbones.embedded import EmbeddedBackbone
from finelens.backbones.lite0_tower import Lite0Tower


@pytest.fixture(scope="module")
def theirs() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0).eval()


@pytest.fixture(scope="module")
def ours(theirs) -> Lite0Tower:
    tower = Lite0Tower().eval()
    tower.load_state_dict(theirs.state_dict())
    return tower


def test_names_and_shapes_are_timms_in_their_order(ours, theirs):
    def listed(tower):
        return [(name, tensor.shape, tensor.dtype) for name, tensor in (*tower.state_dict().items(), *tower.named_parameters())]

    assert listed(ours) == listed(theirs)
    assert [name for name, module in ours.named_modules() if isinstance(module, torch.nn.BatchNorm2d)] == [
        name for name, module in theirs.named_modules() if isinstance(module, torch.nn.BatchNorm2d)
    ]


@pytest.mark.parametrize("size", [(64, 64), (65, 71), (33, 96)])
@pytest.mark.parametrize("training", [False, True])
def test_values_and_gradients_are_timms(ours, theirs, size, training):
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1)).to(memory_format=torch.channels_last)
    found = []
    for tower in (ours, theirs):
        tower.train(training).zero_grad()
        y = x.clone().requires_grad_()
        z = y
        for module in lite0._modules(tower):
            z = module(z)
        z.square().sum().backward()
        found.append([z.detach(), y.grad, *(parameter.grad for parameter in tower.parameters()), *(b.clone() for b in tower.buffers())])
        tower.eval()
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_the_backbone_is_built_without_timm_to_the_same_tensors(theirs):
    backbone = EmbeddedBackbone(text=False)
    own = {name.removeprefix("tower."): tensor for name, tensor in backbone.image_state().items() if name.startswith("tower.")}
    assert {name: tensor.stride() for name, tensor in own.items()} == {
        name: tensor.stride() for name, tensor in theirs.to(memory_format=torch.channels_last).state_dict().items()
    }
