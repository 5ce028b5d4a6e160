"""What is measured: the default network in a state that allows no shortcut, clips for it, its blocks, its operations.

Shapes come from a run of the model on torch's meta device, so that they follow the model and are typed nowhere.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from msg3d_fast import Layout, Recognizer
from msg3d_fast.graph import get_layout
from msg3d_fast.modules import MSTCN, STMSGCN, MWMSG3DBlock

LAYOUTS = {"coco-17": "coco", "ntu-25": "nturgb+d"}
NUM_CLASSES = 60
BLOCKS = (STMSGCN, MSTCN, MWMSG3DBlock)


def network(layout: str | Layout = "coco", backend: str = "native", **options: object) -> Recognizer:
    """Build the default network with statistics, affine maps and residuals PA as after training: none is trivial."""
    torch.manual_seed(0)
    model = Recognizer(layout, NUM_CLASSES, backend=backend, **options)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
            elif isinstance(module, STMSGCN):
                module.PA.normal_(0, 0.02)
    return model


def clips(layout: str | Layout, N: int, T: int, present: Sequence[int] = (2,)) -> Tensor:
    """Return N clips (N, 2, T, V, 3) with present[n % len(present)] persons each, the other slot zero."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, 2, T, get_layout(layout).num_joints, 3, generator=generator)
    for n in range(N):
        x[n, present[n % len(present)] :] = 0
    return x


class Trainer:
    """A model in training mode with its optimizer, as one of the contenders.

    Args:
        contender: "eager" (plain PyTorch), or ours: "fast" and "low" say how much memory backward may use.
        layout: the skeleton.
        options: of the network.
    """

    CONTENDERS = ("eager", "fast", "low")

    def __init__(self, contender: str = "fast", layout: str | Layout = "coco", **options: object) -> None:
        options |= {"backend": "reference"} if contender == "eager" else {"memory": contender}
        self.model = network(layout, **options).train()
        self.forward = self.model
        settings = {"momentum": 0.9, "weight_decay": 5e-4, "nesterov": True, "fused": True}  # for all contenders
        self.optimizer = torch.optim.SGD(self.model.parameters(), 1e-3, **settings)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean cross entropy of clips x with labels y."""
        return F.cross_entropy(self.forward(x), y)

    def step(self, x: Tensor, y: Tensor) -> None:
        """Forward, backward, update."""
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(x, y).backward()
        self.optimizer.step()

    def gradients(self, x: Tensor, y: Tensor) -> Tensor:
        """Return all gradients of a step in one vector; parameters and running statistics stay as they are."""
        kept = deepcopy(self.model.state_dict())
        found = torch.autograd.grad(self.loss(x, y), list(self.model.parameters()))
        self.model.load_state_dict(kept)
        return torch.cat([gradient.flatten() for gradient in found])


def labels(N: int) -> Tensor:
    """Return N labels, (N,)."""
    return torch.arange(N) % NUM_CLASSES


def tree(num_joints: int) -> Layout:
    """Return a skeleton of any number of joints, each the parent of the next two: for growth with V."""
    inward = tuple((joint, (joint - 1) // 2) for joint in range(1, num_joints))
    return Layout(tuple(f"j{joint}" for joint in range(num_joints)), inward, 0, name=f"tree{num_joints}")


def saved_bytes(forward: Callable[[], Tensor], model: nn.Module) -> int:
    """Count the bytes that `forward()` saves for backward, shared storage once, parameters and buffers apart."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    storages: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(storage.nbytes() for storage in storages.values())


@dataclass(frozen=True)
class Block:
    """A module of the network and the input it meets there, (N*M, C, T, V)."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]


def recorded_shapes(model: Recognizer, N: int, T: int, kinds: tuple[type[nn.Module], ...]) -> dict[str, tuple]:
    """Run the like of a model on the meta device: {name: (input shape, output shape)} of its modules of these kinds."""
    twin = deepcopy(model).to("meta").eval()
    twin.backend = "reference"
    shapes: dict[str, tuple] = {}
    for name, module in twin.named_modules():
        if isinstance(module, kinds):
            module.register_forward_hook(
                lambda _, inputs, output, name=name: shapes.update(
                    {name: (tuple(inputs[0].shape), tuple(output.shape))}
                )
            )
    backbone = twin.backbone
    with torch.no_grad():
        twin(torch.empty(N, backbone.num_person, T, twin.layout.num_joints, backbone.in_channels, device="meta"))
    return shapes


def block_names(kinds: tuple[type[nn.Module], ...] = BLOCKS) -> list[str]:
    """Return the names of the network's blocks and graph convolutions, which depend on neither skeleton nor width."""
    small = Recognizer(base_channels=6, num_gcn_scales=1, num_g3d_scales=1, backend="reference")
    return [name for name, module in small.backbone.named_modules() if isinstance(module, kinds)]


def blocks(model: Recognizer, N: int, T: int) -> list[Block]:
    """Return every block and every graph convolution of the model with its input for N clips of T frames."""
    shapes = recorded_shapes(model, N, T, BLOCKS)
    return [
        Block(name.removeprefix("backbone."), model.get_submodule(name), taken) for name, (taken, _) in shapes.items()
    ]


def flops(model: Recognizer, N: int, T: int, order: str = "best") -> int:
    """Count the operations of one forward pass, two per multiply-add, of the matrix products and convolutions.

    Args:
        model: the network.
        N: clips.
        T: frames.
        order: "upstream" aggregates every window, then projects; "best" takes for each graph convolution the cheaper of
            that and projecting every frame once, then aggregating.
    """
    shapes = recorded_shapes(model, N, T, (STMSGCN, nn.Conv2d, nn.Conv3d, nn.Linear))
    total = 0
    for name, (taken, given) in shapes.items():
        module = model.get_submodule(name)
        if isinstance(module, STMSGCN):
            K, C, O = module.num_scales, module.in_channels, module.out_channels  # noqa: E741
            persons, _, frames, joints = taken
            _, _, windows, nodes = given
            aggregate_first = windows * nodes * K * C * (nodes + O)
            project_first = K * O * (frames * joints * C + windows * nodes * nodes)
            count = aggregate_first if order == "upstream" else min(aggregate_first, project_first)
            total += 2 * persons * count
        else:
            total += 2 * torch.Size(given).numel() * module.weight[0].numel()
    return total
