"""Which skeleton the clips of a file have."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import UserError
from ..graph import Layout, get_layout, layout_names, layouts_with

_FLAT = ("coco", "openpose", "openpose25")  # image layouts: their third channel is a confidence


def choose_layout(joints: int, channels: str, given: str | Layout | Mapping[str, Any] | None, what: str) -> Layout:
    """The given layout if it fits, else the one that the number of joints tells.

    Args:
        joints: V of the clips.
        channels: "xy", "xys" or "xyz".
        given: what the user says, or None.
        what: the file, for messages.

    Raises:
        UserError: the layout has another number of joints, or none can be told.
    """
    told = {17: "coco", 18: "openpose", 25: "nturgb+d" if channels == "xyz" else "openpose25"}
    if given is None and joints not in told:
        fitting = layouts_with(joints)
        hint = f"layouts with as many: {', '.join(fitting)}" if fitting else "describe it as a layout dict"
        raise UserError(f"{what}: {joints} joints do not tell the skeleton; name its layout ({hint})")
    layout = get_layout(told[joints] if given is None else given)
    if layout.num_joints != joints:
        raise UserError(f"{what}: clips have {joints} joints, layout {layout.name!r} has {layout.num_joints}")
    return layout


def named_layout(joint_names: list[str], inward: np.ndarray, center: int) -> Layout:
    """The registered layout with these joints and edges, else a custom one; left and right are told from the names."""
    names = tuple(joint_names)
    edges = {tuple(edge) for edge in inward.tolist()}
    for layout in map(get_layout, layout_names()):
        if layout.joint_names == names and set(layout.inward) == edges and layout.center == center:
            return layout
    pairs = [
        (names.index(n), names.index(m)) for n in names if "left" in n and (m := n.replace("left", "right")) in names
    ]
    return Layout(names, tuple(tuple(edge) for edge in inward.tolist()), center, tuple(pairs))


def third_channel(layout: Layout, width: int) -> str:
    """What the channels of a file that does not say so are."""
    if width == 2:
        return "xy"
    return "xys" if layout.name in _FLAT else "xyz"
