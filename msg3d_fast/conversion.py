"""State dicts of the three upstreams: which one it is, the same network under another's names, and the sizes it tells.

                  mmaction2, pyskl                       original
    names         backbone.*, cls_head.{fc,fc_cls}.*     no prefix, fc.*
    residual      PA (K, V', V'), source-first           A_res (K*V', V'), destination-first
    adjacency A   in the state dict                      not in it: computed from the authors' own graph

A is carried along, never recomputed, except from the authors' files, which lack it. On the way to the authors the
difference between our A and theirs is folded into A_res. Sources: mmaction2 and pyskl `msg3d`; MS-G3D `main.py`,
`model/ms_gcn.py`, `model/ms_gtcn.py`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .errors import UserError
from .graph import Layout, adjacency, binary_adjacency, get_layout, layouts_with

State = dict[str, Tensor]

# Where the backbone's and the classifier's names begin.
UPSTREAMS = {
    "mmaction2": ("backbone.", "cls_head.fc."),
    "pyskl": ("backbone.", "cls_head.fc_cls."),
    "original": ("", "fc."),
}
_AUTHORS_LAYOUTS = {25: "nturgb+d", 18: "openpose"}  # joints of the two graphs in the authors' repository


def convert_state_dict(
    state: Mapping[str, Tensor], target: str, *, layout: str | Layout | Mapping[str, Any] | None = None
) -> State:
    """The same network under another upstream's names, shapes and orientation.

    Exact in float32, except the fold of a foreign A into the authors' A_res, which rounds.

    Args:
        state: a state dict of MMAction2, pyskl or the authors, recognised by its keys.
        target: "mmaction2", "pyskl" or "original".
        layout: the skeleton, for the authors' A; by default the one of theirs that has the file's number of joints.

    Raises:
        UserError: an unknown target or network, or a layout with another number of joints.
    """
    if target not in UPSTREAMS:
        raise UserError(f"unknown state dict format {target!r}; expected one of {', '.join(UPSTREAMS)}")
    source = recognise(state)
    if source == target:
        return dict(state)
    (old_body, old_head), (new_body, new_head) = UPSTREAMS[source], UPSTREAMS[target]
    converted: State = {}
    if "original" in (source, target):
        authors = _authors_layout("sgcn1.0.A_res" if source == "original" else "backbone.A", state, layout)
    if source == "original":
        converted[f"{new_body}A"] = binary_adjacency(authors, "original")
    for key, value in state.items():
        name = key.removeprefix(old_body)
        if key.startswith(old_head):
            converted[new_head + key.removeprefix(old_head)] = value
        elif source == "original" and key.endswith(".A_res"):
            nodes, stem = value.shape[1], new_body + name.removesuffix("A_res")
            if len(value) % nodes or nodes % authors.num_joints:
                expected = f"a multiple of {authors.num_joints} columns and of as many rows"
                raise UserError(f"{key} is {tuple(value.shape)}, expected {expected}; copy or save the file again")
            PA = value.reshape(-1, nodes, nodes).mT.contiguous()
            converted |= {f"{stem}PA": PA, f"{stem}A": _authors_A(authors, PA)}
        elif target == "original" and key.endswith(".PA"):
            # Their A plus A_res must be our A plus PA. Where our A is theirs, PA passes unrounded.
            A_res = value + (state[f"{key.removesuffix('PA')}A"] - _authors_A(authors, value))
            converted[f"{new_body}{name.removesuffix('PA')}A_res"] = A_res.mT.reshape(-1, value.shape[1])
        elif target != "original" or not (name == "A" or name.endswith(".A")):
            converted[new_body + name] = value
    return converted


def convert_optimizer(
    optimizer: Mapping[str, Any], state: Mapping[str, Tensor], source: str, target: str
) -> dict[str, Any]:
    """An optimizer's state for the same network under another upstream's shapes.

    All upstreams and we number the parameters alike, in the order of the state dict. What has the shape of a residual
    adjacency, such as its momentum, is transposed between the authors' orientation and the others'.

    Args:
        optimizer: what `Optimizer.state_dict` gave: "state" by number, and "param_groups".
        state: the network's state dict with mmaction2's keys.
        source: the upstream whose shapes the optimizer state has.
        target: the one whose shapes are wanted.

    Raises:
        UserError: the state is that of another network.
    """
    names = [key for key in state if not key.endswith((".A", "running_mean", "running_var", "num_batches_tracked"))]
    numbers = [number for group in optimizer["param_groups"] for number in group["params"]]
    if sorted(numbers) != list(range(len(names))):
        raise UserError(
            f"its optimizer state is of {len(numbers)} parameters, the network has {len(names)}; give the file of the "
            "same training"
        )
    position = {number: i for i, number in enumerate(numbers)}
    converted = {}
    for number, values in (optimizer.get("state") or {}).items():
        if number not in position:
            raise UserError(f"its optimizer state has an entry {number!r:.20}, which no parameter has; save it again")
        name = names[position[number]]
        shape = state[name].shape
        held = shape if source != "original" or not name.endswith("PA") else (shape[0] * shape[1], shape[2])
        entry = {}
        for key, value in values.items():
            if isinstance(value, Tensor) and value.ndim:
                if tuple(value.shape) != tuple(held):
                    raise UserError(
                        f"its {key} of {name} is {tuple(value.shape)}, expected {tuple(held)}; give the file of the "
                        "same training"
                    )
                if name.endswith("PA") and "original" in (source, target) and source != target:
                    value = value.reshape(shape).mT.contiguous()
                    value = value.reshape(-1, shape[2]) if target == "original" else value
            entry[key] = value
        converted[position[number]] = entry
    groups, start = [], 0
    for group in optimizer["param_groups"]:
        numbers_of = list(range(start, start + len(group["params"])))
        groups.append({**group, "params": numbers_of})
        start += len(numbers_of)
    return {"state": converted, "param_groups": groups}


def _authors_A(layout: Layout, like: Tensor) -> Tensor:
    """The authors' A for a residual (K, tau*V, tau*V) of the same type."""
    return adjacency(layout, len(like), like.shape[1] // layout.num_joints, "original").to(like)


def _authors_layout(key: str, state: Mapping[str, Tensor], layout: str | Layout | Mapping[str, Any] | None) -> Layout:
    num_joints = state[key].shape[1]
    if layout is None and num_joints not in _AUTHORS_LAYOUTS:
        known = layouts_with(num_joints)
        hint = f", perhaps {' or '.join(known)}" if known else ""
        raise UserError(f"the authors have no graph with {num_joints} joints; name the layout{hint}")
    return _fitting(get_layout(_AUTHORS_LAYOUTS[num_joints] if layout is None else layout), key, state[key])


def _fitting(layout: Layout, key: str, value: Tensor) -> Layout:
    if layout.num_joints != value.shape[1]:
        shape = tuple(value.shape)
        raise UserError(
            f"{key} is {shape}, layout {layout.name} has {layout.num_joints} joints; name the layout it has"
        )
    return layout


def recognise(state: Mapping[str, Tensor]) -> str:
    """The upstream whose names a state dict has.

    Raises:
        UserError: none's, or an array is missing that tells the network's size.
    """
    for source, (body, head) in UPSTREAMS.items():
        own = ("A_res",) if source == "original" else ("PA", "A")
        if (
            f"{body}data_bn.weight" not in state
            or f"{head}weight" not in state
            or f"{body}sgcn1.0.{own[0]}" not in state
        ):
            continue
        sizes = [f"{body}{conv}.{name}" for conv in ("sgcn1.0", "gcn3d1.gcn3d.0.gcn3d.1") for name in own]
        sizes += [f"{body}sgcn1.0.mlp.layers.0.weight", *([] if source == "original" else [f"{body}A"])]
        if missing := [key for key in sizes if key not in state]:
            raise UserError(f"it lacks {missing[0]}; expected the weights of a whole MS-G3D")
        return source
    raise UserError(f"it is no MS-G3D network (first key {next(iter(state), None)!r}); expected weights of one")


def infer_hparams(state: State, source: str, layout: Layout) -> dict[str, Any]:
    """The arguments of the Recognizer that a state dict with mmaction2's keys belongs to, read from its shapes."""
    A, weight = state["backbone.sgcn1.0.A"], state["backbone.sgcn1.0.mlp.layers.0.weight"]
    in_channels = weight.shape[1] // len(A)
    authors = torch.equal(A, adjacency(layout, len(A), flavour="original").to(A))
    return {
        "layout": layout.to_hparam(),
        "num_classes": len(state["cls_head.fc.weight"]),
        "in_channels": in_channels,
        "base_channels": len(weight),
        "num_gcn_scales": len(A),
        "num_g3d_scales": len(state["backbone.gcn3d1.gcn3d.0.gcn3d.1.A"]),
        "num_person": len(state["backbone.data_bn.weight"]) // (layout.num_joints * in_channels),
        "flavour": "original" if authors and len(A) > 1 else source,
    }


def graph_of(A: Tensor, layout: str | Layout | Mapping[str, Any] | None) -> Layout:
    """The layout whose edges A has: the one that is given, a registered one, or a new one made from them."""

    def fits(candidate: Layout) -> bool:
        return any(torch.equal(A, binary_adjacency(candidate, flavour).to(A)) for flavour in ("mmaction2", "original"))

    if A.ndim != 2 or A.shape[0] != A.shape[1]:
        raise UserError(f"backbone.A is {tuple(A.shape)}, expected (joints, joints)")
    edges = A.triu(1).nonzero().tolist()
    known = [name for name in layouts_with(len(A)) if fits(get_layout(name))]
    if layout is not None:
        given = _fitting(get_layout(layout), "backbone.A", A)
        if edges and not fits(given):
            theirs = f"that of {known[0]}" if known else "another"
            raise UserError(
                f"its graph is {theirs}, not that of {given.name}; leave the layout out, or name the one it has"
            )
        return given
    if known:
        return get_layout(known[0])
    return Layout(tuple(f"joint_{v}" for v in range(len(A))), tuple((v, u) for u, v in edges), 0)
