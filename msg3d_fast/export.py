"""Export for deployment: the network as a file for other runtimes, held against the model before the file appears.

    .onnx   for ONNX Runtime, TensorRT, OpenVINO, ...; needs msg3d_fast[export]
    .pt2    for torch.export.load and AOTInductor

    clips (N, M, T, V, C) float32 -> logits (N, num_classes); N is free, and T from 5 frames on

It is the reference graph in eval mode, plain operations without a custom one; batch normalisations are left to the
runtime, which folds them. What the clips must be stands in the file's metadata: see `describe`.
"""

import contextlib
import copy
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from .errors import UserError
from .experiment import Trained
from .files import write_whole
from .model import Recognizer

FEWEST_FRAMES = 5
SUFFIXES = (".onnx", ".pt2")
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
SETTINGS = ("channels", "stream", "clip_len", "normalize", "semantics", "dtype", "img_shape")
FLOOR = 2.0**-19  # sixteen units of float32 rounding


def export_model(
    model: Recognizer, path: str | os.PathLike[str], *, frames: int = 100, metadata: Mapping[str, str] | None = None
) -> float:
    """Write a model for another runtime, if its logits on random poses, absent persons among them, are the model's.

    Args:
        model: of any backend and device; exported in eval mode and float32.
        path: ends in .onnx or .pt2. The file appears whole and checked, or not at all.
        frames: T of the clips that are compared; half as many are, too.
        metadata: by default what `describe` says; stands in the ONNX file's `metadata_props`, in the .pt2 file's
            `metadata.json`.

    Returns:
        The largest deviation of a logit from the float64 model, relative to the largest logit.

    Raises:
        UserError: another suffix, packages that are missing, logits that differ, a folder that takes no file.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: export writes {' and '.join(SUFFIXES)} files; give the file one of these endings")
    if not isinstance(model, Recognizer):
        raise UserError(
            f"export takes a Recognizer, found {type(model).__name__}; give the model before fuse or compile"
        )
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}; make it, or choose another")
    if path.suffix == ".onnx":
        require_packages()
    model = copy.deepcopy(model).cpu().float().eval()
    model.backend = "reference"
    metadata = describe(Trained(model, path)) if metadata is None else metadata
    program = _trace(model)
    if path.suffix == ".onnx":
        content = onnx_file(program, metadata)
        run = onnx_session(content)
    else:
        content = _pt2_file(program, metadata)
        run = torch.export.load(io.BytesIO(content)).module()
    error = _compare(model, run, frames, path)
    write_whole(path, content, what="export")
    return error


def describe(trained: Trained) -> dict[str, str]:
    """What a user of the exported file must know, as text: sizes, joints, classes, and how clips are made of poses.

    The last, `stream` and so on, is what the checkpoint or its run's configuration tells; see `preprocessing`.
    """
    from . import __version__

    model, told = trained.model, trained.model.preprocessing or {}
    found: dict[str, Any] = {
        "msg3d_fast": __version__,
        "input": "clips (N, num_person, T, joints, in_channels); absent persons are zero",
        "output": "logits (N, num_classes)",
        "layout": model.layout.name,
        "joint_names": json.dumps(model.layout.joint_names),
        "num_person": model.hparams["num_person"],
        "in_channels": model.hparams["in_channels"],
        "num_classes": model.hparams["num_classes"],
        "class_names": json.dumps(told.get("label_names", trained.label_names)),
    }
    if not told and trained.config is not None:
        told = asdict(trained.config.data)
    found |= {key: told[key] for key in SETTINGS if told.get(key) is not None}
    return {key: str(value) for key, value in found.items()}


def require_packages() -> None:
    """Raise UserError, saying what to install, unless the packages that ONNX files need are there."""
    from importlib.util import find_spec

    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(
            f"ONNX files need {', '.join(missing)}, not installed here: pip install {' '.join(missing)} (the extra "
            "msg3d_fast[export]), or export a .pt2 file"
        )


def _trace(model: Recognizer) -> ExportedProgram:
    net = model.backbone
    clips = torch.zeros(2, net.num_person, 16, net.layout.num_joints, net.in_channels)
    sizes = {0: Dim("clips"), 2: Dim("frames", min=FEWEST_FRAMES)}
    # What holds for every number of frames, but that torch cannot prove, becomes a check at run time.
    program = torch.export.export(
        model, (clips,), dynamic_shapes=(sizes,), prefer_deferred_runtime_asserts_over_guards=True
    )
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def onnx_file(model: nn.Module | ExportedProgram, metadata: Mapping[str, str], x: Tensor | None = None) -> bytes:
    """A model or its exported program as the content of an ONNX file, with the input `clips` and the output `logits`.

    Args:
        model: in eval mode.
        metadata: for `metadata_props`.
        x: input of a model, whose sizes the graph then has; not for an exported program, which knows its own.
    """
    import onnx

    with _quiet():
        program = torch.onnx.export(
            model, () if x is None else (x,), dynamo=True, input_names=["clips"], output_names=["logits"], verbose=False
        )
    proto = program.model_proto
    graph = proto.graph
    for part in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        del part.metadata_props[:]  # notes of the exporter
    del graph.value_info[:]
    if x is None:
        for value, dims in ((graph.input[0], {0: "clips", 2: "frames"}), (graph.output[0], {0: "clips"})):
            for i, name in dims.items():
                value.type.tensor_type.shape.dim[i].dim_param = name
    onnx.helper.set_model_props(proto, dict(metadata))
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


def onnx_session(content: bytes, threads: int = 0) -> Callable[[Tensor], Tensor]:
    """ONNX Runtime on the CPU for the content of a file: clips -> logits.

    Args:
        content: of the file.
        threads: how many it may use; 0 leaves that to it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"clips": x.numpy()})[0])


def _pt2_file(program: ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with _quiet():
        torch.export.save(program, buffer, extra_files={"metadata.json": json.dumps(metadata)})
    return buffer.getvalue()


@torch.no_grad()
def _compare(model: Recognizer, run: Callable[[Tensor], Tensor], frames: int, path: Path) -> float:
    """The largest error of `run` on random poses, or UserError where it is not what rounding explains."""
    net, generator = model.backbone, torch.Generator().manual_seed(0)
    exactly, worst = copy.deepcopy(model).double(), 0.0
    for clips, length in ((3, frames), (1, frames // 2)):
        shape = (clips, net.num_person, max(length, FEWEST_FRAMES), net.layout.num_joints, net.in_channels)
        x = torch.randn(shape, generator=generator)
        x[0, -1] = 0  # absent
        exact = exactly(x.double())
        own, found = model(x), run(x)
        if found.shape != exact.shape:
            raise UserError(
                f"{path}: not written: its logits have the shape {tuple(found.shape)}, the model's "
                f"{tuple(exact.shape)}; please report it with your versions of torch and onnxruntime"
            )
        scale = exact.abs().max().clamp_min(1e-30)
        error, rounding = (float((y.double() - exact).abs().max() / scale) for y in (found, own))
        if not error <= 4 * rounding + FLOOR:
            raise UserError(
                f"{path}: not written: on random poses its logits are off by {error:.1e} of the largest, the model's "
                f"own float32 by {rounding:.1e}; please report it with your versions of torch and onnxruntime"
            )
        worst = max(worst, error)
    return worst


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' words about packages that are not needed here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
