"""Transforms against upstream's own results, bit for bit: clip by clip, and as ragged batches of several clips.

MSG3D_GOLDEN=DIRECTORY runs the same comparison over other files of the same kinds.
"""

import json
import os
import random
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from msg3d_fast.data import augment, original, sampling
from msg3d_fast.data.align import Alignment
from msg3d_fast.data.clips import ClipSet
from msg3d_fast.data.draws import LegacyDraws
from msg3d_fast.data.normalize import BoxNormalization, ImageNormalization, normalized
from msg3d_fast.data.pipeline import Pipeline
from msg3d_fast.data.ragged import Ragged, ragged
from msg3d_fast.data.streams import skeleton_features
from msg3d_fast.graph import get_layout

GOLDEN = Path(os.environ.get("MSG3D_GOLDEN", Path(__file__).parent / "golden"))
Case = dict
Result = dict[str, np.ndarray]


def load_cases() -> dict[str, Case]:
    cases = {}
    for path in sorted(GOLDEN.glob("tf_*.npz")):
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        for case in json.loads(str(arrays["index"])):
            for side in ("in", "out"):
                start = f"{case['name']}/{side}/"
                case[side] = {name[len(start) :]: a for name, a in arrays.items() if name.startswith(start)}
            cases[f"{path.stem}-{case['name']}"] = case
    return cases


CASES = load_cases()


class PythonDraws:
    """Draws from `random.Random`, as the authors' feeder takes them."""

    def __init__(self, seeds: list[int]) -> None:
        self.states = [random.Random(seed) for seed in seeds]

    def integers(self, high: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return np.array([self.states[r].randint(0, int(bound) - 1) for r, bound in zip(rows, high, strict=True)])


def legacy(cases: list[Case], key: str = "np_random_seed") -> LegacyDraws:
    return LegacyDraws([np.random.RandomState(case[key]) for case in cases])


def clips_of(cases: list[Case]) -> Ragged:
    return ragged([case["in"]["keypoint"] for case in cases])


def scored_clips(cases: list[Case]) -> tuple[Ragged, bool]:
    """Clips with the confidence as the last channel, where the case has one."""
    keypoints = []
    for case in cases:
        x = case["in"]["keypoint"]
        if "keypoint_score" in case["in"]:
            x = np.concatenate([x, case["in"]["keypoint_score"][..., None]], -1)
        keypoints.append(x)
    return ragged(keypoints), "keypoint_score" in cases[0]["in"]


def unpack(clips: Ragged) -> list[Result]:
    return [{"keypoint": clips.clip(i)} for i in range(len(clips))]


def image_shapes(cases: list[Case]) -> np.ndarray | None:
    return None if cases[0]["img_shape"] is None else np.array([case["img_shape"] for case in cases])


def pre_normalize_3d(cases: list[Case]) -> list[Result]:
    kwargs = dict(cases[0]["kwargs"])
    spine, shoulder = kwargs.pop("align_spine", True), kwargs.pop("align_shoulder", True)
    if cases[0]["lib"] == "pyskl":
        shoulder = spine
    if not spine:
        kwargs["zaxis"] = None
    if not shoulder:
        kwargs["xaxis"] = None
    normal = Alignment(clips_of(cases), **kwargs)
    results = unpack(normalized(normal))
    for i, result in enumerate(results):
        result["total_frames"] = normal.total_frames[i]
        if normal.active[i]:
            result["body_center"] = normal.body_center[i]
    return results


def pre_normalize_2d(cases: list[Case]) -> list[Result]:
    case = cases[0]
    if case["lib"] == "mmaction2":
        results = unpack(normalized(ImageNormalization(clips_of(cases), image_shapes(cases))))
        for result, one in zip(results, cases, strict=True):
            result |= {name: a for name, a in one["in"].items() if name != "keypoint"}
        return results
    clips, _ = scored_clips(cases)
    if case["kwargs"].get("mode", "fix") == "auto":
        return unpack(normalized(BoxNormalization(clips, upstream=True)))
    return unpack(normalized(ImageNormalization(clips, image_shapes(cases), masked=True)))


def gen_ske_feat(cases: list[Case]) -> list[Result]:
    kwargs = cases[0]["kwargs"]
    clips, _ = scored_clips(cases)
    scored = kwargs["dataset"] != "nturgb+d" and clips.keypoint.shape[-1] == 3
    return unpack(skeleton_features(clips, get_layout(kwargs["dataset"]), kwargs["feats"], scored))


def uniform_sample(cases: list[Case]) -> list[Result]:
    kwargs, pyskl = dict(cases[0]["kwargs"]), cases[0]["lib"] == "pyskl"
    frames = np.array([case["total_frames"] for case in cases])
    semantics = "pyskl" if pyskl else "mmaction2"
    interval = kwargs.pop("p_interval", 1.0)
    interval = tuple(interval) if isinstance(interval, list) else (interval, interval)
    test = kwargs.pop("test_mode", pyskl and "np_random_seed" not in cases[0])
    if test:
        inds = sampling.sample_for_test(frames, **kwargs, semantics=semantics, p_interval=interval)
    else:
        inds = sampling.uniform_sample(frames, draws=legacy(cases), **kwargs, semantics=semantics, p_interval=interval)
    inds = inds.reshape(len(cases), -1).astype(np.int64 if pyskl else np.int32)
    return [{"frame_inds": one + case.get("start_index", 0)} for one, case in zip(inds, cases, strict=True)]


def format_gcn_input(cases: list[Case]) -> list[Result]:
    clips, _ = scored_clips(cases)
    out = sampling.format_input(clips, **cases[0]["kwargs"], num_clips=cases[0].get("num_clips", 1))
    return [{"keypoint": one} for one in out]


def pad_to(cases: list[Case]) -> list[Result]:
    return unpack(sampling.pad_to(clips_of(cases), **cases[0]["kwargs"]))


def pose_decode(cases: list[Case]) -> list[Result]:
    inds = np.stack([case["in"]["frame_inds"] for case in cases])
    clips, scored = scored_clips(cases)
    out = sampling.decode(clips, inds)
    if scored:
        return [{"keypoint": one[..., :-1], "keypoint_score": one[..., -1]} for one in out]
    return [{"keypoint": one} for one in out]


def whole_pipeline(cases: list[Case]) -> list[Result]:
    case = cases[0]
    flat = case["op"] == "pipeline2d_test"
    clips, scored = scored_clips(cases)
    channels = ("xys" if scored else "xy") if flat else "xyz"
    clip_set = ClipSet(
        keypoint=clips.keypoint,
        num_person=clips.num_person,
        total_frames=clips.total_frames,
        label=np.zeros(len(cases)),
        frame_dir=np.array([case["name"] for case in cases]),
        label_names=("action",),
        layout=get_layout("coco" if flat else "nturgb+d"),
        channels=channels,
        img_shape=image_shapes(cases) if flat else None,
    )
    (stream,) = case["feats"]
    pipeline = Pipeline(
        clip_set, stream=stream, clip_len=case["clip_len"], num_clips=case["num_clips"], test_mode=True,
        semantics=case["lib"], normalize="2d" if flat else "3d",
    )  # fmt: skip
    x, _ = pipeline.batch(np.arange(len(cases)))
    return [{"keypoint": one} for one in x.numpy()]


def stacked(call: Callable[[np.ndarray, list[Case]], np.ndarray], key: str) -> Callable[[list[Case]], list[Result]]:
    """An operation on dense batches as one on cases."""
    return lambda cases: [{key: one} for one in call(np.stack([case["in"][key] for case in cases]), cases)]


def digits(cases: list[Case]) -> int:
    return int(re.search(r"\d+$", cases[0]["op"]).group())


OPERATIONS = {
    "PreNormalize3D": pre_normalize_3d,
    "PreNormalize2D": pre_normalize_2d,
    "GenSkeFeat": gen_ske_feat,
    "UniformSampleFrames": uniform_sample,
    "FormatGCNInput": format_gcn_input,
    "PadTo": pad_to,
    "PoseDecode": pose_decode,
    "pipeline3d_test": whole_pipeline,
    "pipeline2d_test": whole_pipeline,
    "RandomScale": stacked(lambda x, cases: augment.random_scale(x, 0.1, legacy(cases)), "keypoint"),
    "RandomRot": stacked(lambda x, cases: augment.random_rotate(x, 0.3, legacy(cases)), "keypoint"),
    "RandomGaussianNoise": stacked(lambda x, cases: augment.gaussian_noise(x, 0.01, legacy(cases)), "keypoint"),
    "RandomGaussianNoise_video": stacked(
        lambda x, cases: augment.gaussian_noise(x, 0.02, legacy(cases), base="video"), "keypoint"
    ),
    "RandomGaussianNoise_shared": stacked(
        lambda x, cases: augment.gaussian_noise(x, 0.02, legacy(cases), base="video", shared=True), "keypoint"
    ),
    "random_move": stacked(lambda x, cases: original.random_move(x, legacy(cases)), "data"),
    "random_shift": stacked(
        lambda x, cases: original.random_shift(x, PythonDraws([case["py_random_seed"] for case in cases])), "data"
    ),
    "random_choose": stacked(
        lambda x, cases: original.random_choose(
            x, digits(cases), PythonDraws([case["py_random_seed"] for case in cases])
        ),
        "data",
    ),
    "auto_pading": stacked(lambda x, cases: original.auto_pad(x, digits(cases)), "data"),
    "openpose_match": stacked(lambda x, cases: original.openpose_match(x), "data"),
    "pre_normalization": lambda cases: [{"data": original.pre_normalization(case["in"]["data"])} for case in cases],
}


def operation(case: Case) -> Callable[[list[Case]], list[Result]]:
    return OPERATIONS.get(case["op"]) or OPERATIONS[re.sub(r"\d+$", "", case["op"])]


def assert_same(found: Result, case: Case, exact_type: bool = True) -> None:
    expected = case["out"]
    assert found.keys() == expected.keys(), case["name"]
    for name, value in expected.items():
        where = f"{case['name']}: {name}"
        assert np.shape(found[name]) == value.shape, where
        if exact_type:
            assert found[name].dtype == value.dtype, where
        np.testing.assert_array_equal(found[name], value, err_msg=where)


def test_every_operation_has_a_case() -> None:
    if "MSG3D_GOLDEN" not in os.environ:
        assert {operation(case) for case in CASES.values()} == set(OPERATIONS.values())


@pytest.mark.parametrize("name", CASES)
def test_one_clip(name: str) -> None:
    case = CASES[name]
    (found,) = operation(case)([case])
    assert_same(found, case)


def groups() -> dict[str, list[Case]]:
    """Cases that can run as one batch: the same operation and arguments, the same V, C and dtype of what goes in."""
    together = defaultdict(list)
    for case in CASES.values():
        varying = ("name", "in", "out", "total_frames", "img_shape", "start_index", "np_random_seed", "py_random_seed")
        what = {name: value for name, value in case.items() if name not in varying}
        shape_free = case["op"] in ("PreNormalize3D", "PreNormalize2D", "GenSkeFeat") or case["op"].startswith(
            "pipeline"
        )
        for name, array in case["in"].items():
            what[name] = [str(array.dtype), array.shape[2:] if shape_free else array.shape]
        what["img_shape"] = case.get("img_shape", "") is None
        together[json.dumps(what)].append(case)
    return {
        f"{cases[0]['op']}-{cases[0]['name']}-x{len(cases)}": cases for cases in together.values() if len(cases) > 1
    }


GROUPS = groups()


@pytest.mark.parametrize("name", GROUPS)
def test_many_clips_at_once(name: str) -> None:
    cases = GROUPS[name]
    # Clips in which nobody is visible keep their own type when they are alone; in a batch they take the batch's.
    exact_type = len({str(case["out"].get("keypoint", np.empty(0)).dtype) for case in cases}) == 1
    for found, case in zip(operation(cases[0])(cases), cases, strict=True):
        assert_same(found, case, exact_type)
