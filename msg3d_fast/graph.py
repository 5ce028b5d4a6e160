"""Skeleton layouts and the normalised multi-scale adjacency of MS-GCN and MS-G3D.

    exact distance   A_k = [dist(u, v) = k] + I,  A_0 = I                        k = 0 ... K-1
    tau frames       the same on tau*V nodes, numbered frame*V + joint, whose one-step matrix is (A + I) tiled tau x tau
    MMAction2        A_k[u, v] / sum_u A_k[u, v]                                 columns sum to one
    the authors      D^-1/2 A_k D^-1/2,  D = sum_v A_k[u, v]                     symmetric

Matrices are indexed [scale, source, destination], as MMAction2's checkpoints store them. Sources: Liu et al., CVPR
2020, section 3; mmaction2 `projects/msg3d/models`; MS-G3D `graph/tools.py` and `graph/ntu_rgb_d.py`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from operator import index
from typing import Any

import torch
from torch import Tensor

from .errors import UserError

Pairs = tuple[tuple[int, int], ...]

FLAVOURS = ("mmaction2", "pyskl", "original")


@dataclass(frozen=True)
class Layout:
    """A skeleton: its joints, its edges and what the transforms need to know about them.

    Args:
        joint_names: one name per joint, V in all.
        inward: directed edges (child, parent); the graph is their undirected union.
        center: the root joint.
        flip_pairs: (left, right) joints that a mirror exchanges.
        bones: the (joint, parent) table of the bone stream, one entry per joint; a root is its own parent. By
            default the first parent that `inward` lists for each joint.
        name: what checkpoints and messages call it.

    Raises:
        UserError: names or numbers that are none, an index out of range, a self loop, an edge listed twice, a joint
            without an edge, or a bone table that is not one entry per joint.
    """

    joint_names: tuple[str, ...]
    inward: Pairs
    center: int
    flip_pairs: Pairs = ()
    bones: Pairs | None = None
    name: str = "custom"

    def __post_init__(self) -> None:
        def put(field: str, value: object) -> None:
            object.__setattr__(self, field, value)

        if not isinstance(self.name, str):
            raise UserError(f"a layout has the name {self.name!r:.60}, expected text")
        if isinstance(self.joint_names, str) or not isinstance(self.joint_names, Iterable):
            raise UserError(f"layout {self.name!r}: joint_names is {self.joint_names!r:.60}, expected a list of names")
        put("joint_names", tuple(str(name) for name in self.joint_names))
        put("inward", self._pairs("inward", self.inward))
        put("flip_pairs", self._pairs("flip_pairs", self.flip_pairs))
        if not isinstance(self.center, Integral) or not 0 <= self.center < self.num_joints:
            last = self.num_joints - 1
            raise self._error(f"center is {self.center!r:.60}, expected 0 to {last}: joints count from 0")
        put("center", int(self.center))
        if len(set(self.joint_names)) < self.num_joints:
            raise self._error("two joints have the same name; give every joint its own")
        if len({frozenset(edge) for edge in self.inward}) < len(self.inward):
            raise self._error("an edge is listed twice in inward; remove one of the two")
        lonely = set(range(self.num_joints)) - {joint for edge in self.inward for joint in edge}
        if lonely and self.num_joints > 1:
            first = min(lonely)
            what = f"joint {first} ({self.joint_names[first]}) has no edge" if self.inward else "the graph has no edges"
            raise self._error(
                f"{what}, so nothing would reach it from other joints; list (child, parent) pairs in inward"
            )
        flipped = [joint for pair in self.flip_pairs for joint in pair]
        if len(set(flipped)) < len(flipped):
            raise self._error("a joint stands in two flip_pairs; a mirror exchanges each joint with one other")
        put("bones", self._default_bones() if self.bones is None else self._pairs("bones", self.bones, allow_self=True))
        if sorted(joint for joint, _ in self.bones) != list(range(self.num_joints)):
            raise self._error(f"bones must list each of the {self.num_joints} joints once as (joint, parent)")

    @property
    def num_joints(self) -> int:
        return len(self.joint_names)

    def to_hparam(self) -> str | dict[str, Any]:
        """The layout as JSON can hold it: its name if it is registered, else a dict that `get_layout` takes."""
        if _LAYOUTS.get(self.name) == self:
            return self.name
        return {
            "name": self.name,
            "num_node": self.num_joints,
            "inward": [list(edge) for edge in self.inward],
            "center": self.center,
            "joint_names": list(self.joint_names),
            "flip_pairs": [list(pair) for pair in self.flip_pairs],
            "bones": [list(bone) for bone in self.bones or ()],
        }

    def _default_bones(self) -> Pairs:
        parent: dict[int, int] = {}
        for joint, up in self.inward:
            parent.setdefault(joint, up)
        roots = [joint for joint in range(self.num_joints) if joint not in parent]
        return (*parent.items(), *((root, root) for root in roots))

    def _pairs(self, field: str, pairs: Sequence[Sequence[int]], allow_self: bool = False) -> Pairs:
        try:
            table = tuple((index(a), index(b)) for a, b in pairs)
        except (TypeError, ValueError):
            raise self._error(f"{field} must be a list of pairs of joint numbers, found {pairs!r:.60}") from None
        for pair in table:
            if not all(0 <= joint < self.num_joints for joint in pair):
                last = self.num_joints - 1
                raise self._error(f"{field} holds the pair {pair}, expected joints 0 to {last}: joints count from 0")
            if pair[0] == pair[1] and not allow_self:
                raise self._error(f"{field} pairs joint {pair[0]} with itself; self loops are added by the network")
        return table

    def _error(self, what: str) -> UserError:
        return UserError(f"layout {self.name!r} with {self.num_joints} joints: {what}")


def get_layout(layout: str | Layout | Mapping[str, Any]) -> Layout:
    """The layout of that name, or built from a dict as MMAction2 takes it (`num_node`, `inward`, `center`).

    Args:
        layout: a name of `layout_names()`, a Layout (returned as it is), or a dict; optional keys of the dict are
            `joint_names`, `flip_pairs`, `bones` and `name`.

    Raises:
        UserError: an unknown name, a missing or unknown key, or a skeleton that `Layout` rejects.
    """
    if isinstance(layout, Layout):
        return layout
    if isinstance(layout, str):
        found = _LAYOUTS.get(_ALIASES.get(layout, layout))
        if found is None:
            known = ", ".join(layout_names())
            raise UserError(f"unknown layout {layout!r}; known are {known}; others can be given as a dict")
        return found
    if not isinstance(layout, Mapping):
        raise UserError(f"a layout is a name, a Layout or a dict, found {type(layout).__name__}")
    optional = {"joint_names", "flip_pairs", "bones", "name"}
    missing = {"num_node", "inward", "center"} - set(layout)
    unknown = set(layout) - {"num_node", "inward", "center"} - optional
    if missing or unknown:
        wrong = (
            f"lacks {', '.join(sorted(missing))}"
            if missing
            else f"has unknown key {', '.join(sorted(map(str, unknown)))}"
        )
        perhaps = ", ".join(sorted(optional))
        raise UserError(f"layout dict {wrong}; expected num_node, inward, center and perhaps {perhaps}")
    num_node = layout["num_node"]
    if not isinstance(num_node, Integral) or num_node < 1:
        raise UserError(f"layout dict: num_node is {num_node!r:.60}, expected the number of joints, 1 or more")
    names = layout.get("joint_names") or [f"joint_{v}" for v in range(num_node)]
    if isinstance(names, Sequence) and len(names) != num_node:
        raise UserError(f"layout dict names {len(names)} joints, but num_node is {num_node}; make them agree")
    rest = {key: layout[key] for key in ("flip_pairs", "bones", "name") if key in layout}
    return Layout(names, layout["inward"], layout["center"], **rest)


def layout_names() -> tuple[str, ...]:
    """Names of the registered layouts."""
    return tuple(_LAYOUTS)


def layouts_with(num_joints: int) -> list[str]:
    """Names of the registered layouts that have this many joints."""
    return [name for name, layout in _LAYOUTS.items() if layout.num_joints == num_joints]


def register_layout(layout: Layout) -> Layout:
    """Make a layout known by its name.

    Raises:
        UserError: the name is the default one, or belongs to another layout.
    """
    if layout.name == "custom" or _LAYOUTS.get(layout.name, layout) != layout or layout.name in _ALIASES:
        raise UserError(f"cannot register a layout as {layout.name!r}: the name is taken; give it a name of its own")
    _LAYOUTS[layout.name] = layout
    return layout


def check_flavour(flavour: str) -> str:
    """The flavour, if there is one of that name."""
    if flavour not in FLAVOURS:
        raise UserError(f"unknown flavour {flavour!r}; expected one of {', '.join(FLAVOURS)}")
    return flavour


def binary_adjacency(layout: str | Layout | Mapping[str, Any], flavour: str = "mmaction2") -> Tensor:
    """The skeleton graph as a symmetric 0/1 matrix without self loops, float32 (V, V)."""
    layout = get_layout(layout)
    original = check_flavour(flavour) == "original" and layout == _LAYOUTS.get("nturgb+d")
    A = torch.zeros(layout.num_joints, layout.num_joints)
    for child, parent in _AUTHORS_NTU_INWARD if original else layout.inward:
        A[child, parent] = A[parent, child] = 1
    return A


def adjacency(
    layout: str | Layout | Mapping[str, Any], num_scales: int, window_size: int = 1, flavour: str = "mmaction2"
) -> Tensor:
    """Normalised exact-distance adjacency of the skeleton over `window_size` frames.

    Args:
        layout: the skeleton, V joints.
        num_scales: K, distances 0 to K-1; beyond the graph's diameter a scale is the identity.
        window_size: tau frames.
        flavour: "mmaction2" and "pyskl" normalise columns; "original" normalises symmetrically, and its nturgb+d chains
            the hand joints.

    Returns:
        float32 (K, tau*V, tau*V), indexed [scale, source, destination].

    Raises:
        UserError: K or tau below 1, an unknown layout or flavour.
    """
    if num_scales < 1 or window_size < 1:
        raise UserError(f"num_scales {num_scales} and window_size {window_size} must be at least 1")
    skeleton = binary_adjacency(layout, flavour)
    step = (skeleton + torch.eye(len(skeleton))).repeat(window_size, window_size)
    identity = torch.eye(len(step))
    scales, reached = [identity], identity
    for _ in range(1, num_scales):
        further = (reached @ step > 0).float()
        scales.append(further - reached + identity)
        reached = further
    A = torch.stack(scales)
    if flavour == "original":
        # Rounded where the authors' NumPy code rounds, so that their checkpoints convert bit for bit.
        half = A.double().sum(2, keepdim=True).rsqrt().float()
        return half * A * half.mT
    return A / A.sum(1, keepdim=True)


def _register(
    name: str, joints: str, inward: Pairs, center: int, bones: Pairs | None = None, mirror: bool = True
) -> Layout:
    names = tuple(joints.split())
    other = [joint.replace("left", "right") for joint in names]
    flip = tuple((v, names.index(o)) for v, o in enumerate(other) if o != names[v]) if mirror else ()
    return register_layout(Layout(names, inward, center, flip, bones, name))


_LAYOUTS: dict[str, Layout] = {}
_ALIASES = {"handmp": "hand21"}  # pyskl's name

# Joint names are those of the format each layout comes from, so that files which carry names can be recognised by them.
# fmt: off
_register(
    "coco",
    "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_wrist "
    "right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle",
    ((15, 13), (13, 11), (16, 14), (14, 12), (11, 5), (12, 6), (9, 7), (7, 5), (10, 8), (8, 6), (5, 0), (6, 0), (1, 0),
     (3, 1), (2, 0), (4, 2)),
    center=0,
    # In the graph hips hang on shoulders, in the bone table on the nose.
    bones=((0, 0), (1, 0), (2, 0), (3, 1), (4, 2), (5, 0), (6, 0), (7, 5), (8, 6), (9, 7), (10, 8), (11, 0), (12, 0),
           (13, 11), (14, 12), (15, 13), (16, 14)),
)
_NTU_BODY = (
    (0, 1), (1, 20), (2, 20), (3, 2), (4, 20), (5, 4), (6, 5), (7, 6), (8, 20), (9, 8), (10, 9), (11, 10), (12, 0),
    (13, 12), (14, 13), (15, 14), (16, 0), (17, 16), (18, 17), (19, 18),
)
_AUTHORS_NTU_INWARD = (*_NTU_BODY, (21, 22), (22, 7), (23, 24), (24, 11))
_register(
    "nturgb+d",
    "spine_base spine_mid neck head shoulder_left elbow_left wrist_left hand_left shoulder_right elbow_right "
    "wrist_right hand_right hip_left knee_left ankle_left foot_left hip_right knee_right ankle_right foot_right "
    "spine_shoulder hand_tip_left thumb_left hand_tip_right thumb_right",
    (*_NTU_BODY, (21, 7), (22, 7), (23, 11), (24, 11)),
    center=20,
    # Every upstream's bone table chains the hand joints as the authors' graph does.
    bones=(*_NTU_BODY, (21, 22), (20, 20), (22, 7), (23, 24), (24, 11)),
)
_register(
    "openpose",
    "nose neck right_shoulder right_elbow right_wrist left_shoulder left_elbow left_wrist right_hip right_knee "
    "right_ankle left_hip left_knee left_ankle right_eye left_eye right_ear left_ear",
    ((4, 3), (3, 2), (7, 6), (6, 5), (13, 12), (12, 11), (10, 9), (9, 8), (11, 5), (8, 2), (5, 1), (2, 1), (0, 1),
     (15, 0), (14, 0), (17, 15), (16, 14)),
    center=1,
    bones=((0, 0), (1, 0), (2, 1), (3, 2), (4, 3), (5, 1), (6, 5), (7, 6), (8, 2), (9, 8), (10, 9), (11, 5), (12, 11),
           (13, 12), (14, 0), (15, 0), (16, 14), (17, 15)),
)
_register(
    "openpose25",
    "nose neck shoulder_right elbow_right wrist_right shoulder_left elbow_left wrist_left mid_hip hip_right "
    "knee_right ankle_right hip_left knee_left ankle_left eye_right eye_left ear_right ear_left big_toe_left "
    "small_toe_left heel_left big_toe_right small_toe_right heel_right",
    ((0, 1), (2, 1), (3, 2), (4, 3), (5, 1), (6, 5), (7, 6), (8, 1), (9, 8), (10, 9), (11, 10), (12, 8), (13, 12),
     (14, 13), (15, 0), (16, 0), (17, 15), (18, 16), (19, 14), (20, 19), (21, 14), (22, 11), (23, 22), (24, 11)),
    center=1,
)
_register(
    "kinect20",
    "head shoulder_center spine hip_center shoulder_left elbow_left wrist_left hand_left shoulder_right elbow_right "
    "wrist_right hand_right hip_left knee_left ankle_left foot_left hip_right knee_right ankle_right foot_right",
    ((0, 1), (1, 2), (2, 3), (4, 1), (5, 4), (6, 5), (7, 6), (8, 1), (9, 8), (10, 9), (11, 10), (12, 3), (13, 12),
     (14, 13), (15, 14), (16, 3), (17, 16), (18, 17), (19, 18)),
    center=3,
)
_register(
    "hand21",
    "wrist thumb_cmc thumb_mcp thumb_ip thumb_tip index_mcp index_pip index_dip index_tip middle_mcp middle_pip "
    "middle_dip middle_tip ring_mcp ring_pip ring_dip ring_tip pinky_mcp pinky_pip pinky_dip pinky_tip",
    tuple((v, 0 if v % 4 == 1 else v - 1) for v in range(1, 21)),
    center=0,
    bones=((0, 0), *((v, 0 if v % 4 == 1 else v - 1) for v in range(1, 21))),
    mirror=False,
)
_register(
    "mediapipe33",
    "nose left_eye_inner left_eye left_eye_outer right_eye_inner right_eye right_eye_outer left_ear right_ear "
    "mouth_left mouth_right left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist left_pinky "
    "right_pinky left_index right_index left_thumb right_thumb left_hip right_hip left_knee right_knee left_ankle "
    "right_ankle left_heel right_heel left_foot_index right_foot_index",
    # MediaPipe draws face and body apart; here mouth and shoulders hang on the nose, as in coco.
    ((1, 0), (2, 1), (3, 2), (4, 0), (5, 4), (6, 5), (7, 3), (8, 6), (9, 0), (10, 0), (11, 0), (12, 0), (13, 11),
     (14, 12), (15, 13), (16, 14), (17, 15), (18, 16), (19, 15), (20, 16), (21, 15), (22, 16), (23, 11), (24, 12),
     (25, 23), (26, 24), (27, 25), (28, 26), (29, 27), (30, 28), (31, 27), (32, 28)),
    center=0,
)
# fmt: on
