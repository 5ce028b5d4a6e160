"""Layouts and adjacency: what the definitions promise, and an error for every skeleton that is none."""

import json

import pytest
import torch

from msg3d_fast import Layout, UserError, graph
from msg3d_fast.graph import adjacency, binary_adjacency, get_layout, layout_names, layouts_with, register_layout

SIZES = {
    "coco": 17,
    "nturgb+d": 25,
    "openpose": 18,
    "openpose25": 25,
    "kinect20": 20,
    "hand21": 21,
    "mediapipe33": 33,
}
PATH = {"num_node": 4, "inward": [(1, 0), (2, 1), (3, 2)], "center": 0}


def distances(layout: str, flavour: str = "mmaction2") -> torch.Tensor:
    """All pairs of joints by Floyd and Warshall, one joint at a time."""
    A = binary_adjacency(layout, flavour)
    D = torch.where(A > 0, 1.0, torch.inf).fill_diagonal_(0)
    for k in range(len(A)):
        D = torch.minimum(D, D[:, k, None] + D[None, k])
    return D


def test_registered_layouts() -> None:
    assert {name: get_layout(name).num_joints for name in layout_names()} == SIZES
    assert layouts_with(25) == ["nturgb+d", "openpose25"]
    assert layouts_with(3) == []
    assert get_layout("handmp") is get_layout("hand21")  # pyskl's name


@pytest.mark.parametrize("name", SIZES)
def test_layout_is_a_tree_and_its_mirror_the_same_tree(name: str) -> None:
    layout = get_layout(name)
    assert len(layout.inward) == layout.num_joints - 1
    assert distances(name).isfinite().all()
    assert layout.center not in {child for child, _ in layout.inward}
    assert sum(joint == parent for joint, parent in layout.bones) == 1
    mirror = list(range(layout.num_joints))
    for left, right in layout.flip_pairs:
        assert layout.joint_names[left].replace("left", "right") == layout.joint_names[right]
        mirror[left], mirror[right] = right, left
    A = binary_adjacency(name)
    assert torch.equal(A[mirror][:, mirror], A)
    assert sum("left" in joint for joint in layout.joint_names) == len(layout.flip_pairs)


def test_bone_tables_differ_from_the_graph_where_upstreams_do() -> None:
    edges = {name: {frozenset(edge) for edge in get_layout(name).inward} for name in SIZES}
    bones = {name: {frozenset(bone) for bone in get_layout(name).bones if bone[0] != bone[1]} for name in SIZES}
    differing = {name: sorted(sorted(edge) for edge in edges[name] ^ bones[name]) for name in SIZES}
    assert differing.pop("coco") == [[0, 11], [0, 12], [5, 11], [6, 12]]
    assert differing.pop("nturgb+d") == [[7, 21], [11, 23], [21, 22], [23, 24]]
    assert not any(differing.values())


def test_authors_chain_the_hand_joints() -> None:
    differing = binary_adjacency("nturgb+d") != binary_adjacency("nturgb+d", "original")
    assert differing.triu().nonzero().tolist() == [[7, 21], [11, 23], [21, 22], [23, 24]]
    assert distances("nturgb+d").max() == 11
    assert distances("nturgb+d", "original").max() == 12
    assert torch.equal(binary_adjacency("openpose"), binary_adjacency("openpose", "original"))


@pytest.mark.parametrize("flavour", ["mmaction2", "original"])
@pytest.mark.parametrize("tau", [1, 3])
def test_scales_are_exact_distances(flavour: str, tau: int) -> None:
    A, D, V = adjacency("nturgb+d", 14, tau, flavour), distances("nturgb+d", flavour), 25
    for k in range(14):
        exact = (k == D).repeat(tau, tau) if k else torch.zeros(tau * V, tau * V, dtype=torch.bool)
        if k == 1:  # a joint is a neighbour of itself in the other frames
            exact |= torch.eye(V, dtype=torch.bool).repeat(tau, tau)
        assert torch.equal(A[k] > 0, exact | torch.eye(tau * V, dtype=torch.bool))


def test_number_of_entries_per_scale() -> None:
    def count(*arguments: object) -> list[int]:
        return adjacency(*arguments).gt(0).sum((1, 2)).tolist()

    assert count("coco", 13) == [17, 49, 57, 73, 79, 65, 41, 25, 19, 17, 17, 17, 17]
    assert count("nturgb+d", 13) == [25, 73, 83, 85, 91, 97, 105, 97, 81, 65, 57, 41, 25]
    assert count("openpose", 13) == [18, 52, 58, 70, 80, 78, 58, 34, 20, 18, 18, 18, 18]
    assert count("coco", 6, 3) == [51, 441, 411, 555, 609, 483]
    assert count("nturgb+d", 6, 5) == [125, 1825, 1575, 1625, 1775, 1925]


def test_normalisations() -> None:
    columns, symmetric = adjacency("coco", 5, 3), adjacency("coco", 5, 3, "original")
    torch.testing.assert_close(columns.sum(1), torch.ones(5, 51))
    assert not torch.allclose(columns, columns.mT)
    assert torch.equal(symmetric, symmetric.mT)
    degree = symmetric.gt(0).sum(1).double()
    eigenvector = degree.sqrt()[:, :, None]  # of eigenvalue one
    torch.testing.assert_close(symmetric.double() @ eigenvector, eigenvector, rtol=1e-6, atol=0)


def test_dict_as_mmaction2_takes_it_and_back() -> None:
    layout = get_layout(PATH)
    assert layout.joint_names == ("joint_0", "joint_1", "joint_2", "joint_3")
    assert layout.bones == ((1, 0), (2, 1), (3, 2), (0, 0))
    again = get_layout(json.loads(json.dumps(layout.to_hparam())))
    assert again == layout
    assert get_layout("coco").to_hparam() == "coco"
    two_hands = {"num_node": 4, "inward": [(1, 0), (3, 2)], "center": 0}  # parts need not hang together
    assert get_layout(two_hands).bones == ((1, 0), (3, 2), (0, 0), (2, 2))


def test_registering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "_LAYOUTS", dict(graph._LAYOUTS))
    dog = Layout(("head", "body", "tail"), ((0, 1), (2, 1)), 1, name="dog")
    assert register_layout(dog) is get_layout("dog") is register_layout(dog)
    assert dog.to_hparam() == "dog"
    for taken in ("coco", "custom", "handmp"):
        with pytest.raises(UserError, match="cannot register"):
            register_layout(Layout(dog.joint_names, dog.inward, 0, name=taken))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inward": []}, "the graph has no edges"),
        ({"inward": [(1, 0), (2, 1)]}, r"joint 3 \(joint_3\) has no edge"),
        (
            {"inward": [(1, 0), (2, 1), (3, 4)]},
            r"inward holds the pair \(3, 4\), expected joints 0 to 3: joints count from 0",
        ),
        ({"inward": [(1, 0), (2, 1), (3, 3)]}, "inward pairs joint 3 with itself"),
        ({"inward": [(1, 0), (2, 1), (3, 2), (0, 1)]}, "an edge is listed twice"),
        ({"inward": [(1, 0), (2, 1, 0), (3, 2)]}, "inward must be a list of pairs"),
        ({"inward": 5}, "inward must be a list of pairs"),
        ({"center": 4}, "center is 4, expected 0 to 3"),
        ({"center": -1}, "center is -1, expected 0 to 3"),
        ({"center": None}, "center is None, expected 0 to 3"),
        ({"center": "neck"}, "center is 'neck', expected 0 to 3"),
        ({"num_node": None}, "num_node is None, expected the number of joints"),
        ({"num_node": 0}, "num_node is 0, expected the number of joints"),
        ({"inward": [(1, 0), (2, 1), (3, 2.5)]}, "inward must be a list of pairs"),
        ({"joint_names": 4}, "joint_names is 4, expected a list"),
        ({"joint_names": "knee"}, "joint_names is 'knee', expected a list"),
        ({"name": {"a": 1}}, "has the name {'a': 1}, expected text"),
        ({"joint_names": ["a", "b", "c", "a"]}, "two joints have the same name"),
        ({"joint_names": ["a", "b"]}, "names 2 joints, but num_node is 4"),
        ({"flip_pairs": [(0, 1), (1, 2)]}, "stands in two flip_pairs"),
        ({"flip_pairs": [(0, 9)]}, "flip_pairs holds the pair"),
        ({"bones": [(0, 0), (1, 0)]}, "bones must list each of the 4 joints once"),
        ({"mode": "spatial"}, "unknown key mode"),
        ({"edges": []}, "unknown key edges"),
        ({"edges": [], 1: 2}, "unknown key 1, edges"),
    ],
)
def test_skeletons_that_are_none(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        get_layout(PATH | change)
    assert "\n" not in str(error.value)


def test_requests_that_make_no_sense() -> None:
    with pytest.raises(UserError, match="unknown layout 'cocco'; known are coco, nturgb"):
        get_layout("cocco")
    with pytest.raises(UserError, match="lacks center, inward"):
        get_layout({"num_node": 3})
    with pytest.raises(UserError, match="found int"):
        get_layout(17)
    with pytest.raises(UserError, match="num_scales 0 and window_size 1 must be at least 1"):
        adjacency("coco", 0)
    with pytest.raises(UserError, match="unknown flavour 'mmaction'; expected one of mmaction2, pyskl, original"):
        adjacency("coco", 3, flavour="mmaction")
