"""Small networks with nothing at its starting value, and clips for them."""

import copy

import torch
from torch import Tensor, nn

from msg3d_fast.model import Recognizer

MODELS = {
    "coco": {"layout": "coco"},
    "ntu": {"layout": "nturgb+d", "num_person": 1},
    "authors": {"layout": "openpose", "flavour": "original", "num_gcn_scales": 8, "num_g3d_scales": 8},
    "remainder_widths": {
        "layout": "kinect20",
        "base_channels": 20,
        "in_channels": 2,
        "num_person": 3,
        "flavour": "pyskl",
    },
    "narrow": {"layout": "hand21", "base_channels": 7, "in_channels": 5, "num_gcn_scales": 1, "num_g3d_scales": 1},
    "published_width": {"layout": "coco", "base_channels": 96},
}


def build(backend: str = "reference", **arguments: object) -> Recognizer:
    """A small recogniser in eval mode, nothing at its starting value: no term can hide behind zeros and ones."""
    model = Recognizer(
        **{"num_classes": 7, "base_channels": 12, "num_gcn_scales": 4, "num_g3d_scales": 3, **arguments},
        backend=backend,
    )
    return scramble(model)


def scramble(model: Recognizer) -> Recognizer:
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.normal_(0.8, 0.4)  # some negative: they turn the order of a max-pool's inputs around
                module.bias.normal_(std=0.1)
        for name, parameter in model.named_parameters():
            if name.endswith("PA"):
                parameter.normal_(std=0.05)
    return model.eval()


def clips(model: Recognizer, N: int, T: int) -> Tensor:
    net = model.backbone
    return torch.randn(N, net.num_person, T, net.layout.num_joints, net.in_channels)


def in_double(model: Recognizer) -> Recognizer:
    return copy.deepcopy(model).double()
