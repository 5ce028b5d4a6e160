"""The command line's verbs for a network that is there: their options, and what they print."""

import argparse
from pathlib import Path
from typing import Any


def add_verbs(verb: Any) -> None:
    """Gives the command line these verbs; `verb` adds one and returns its parser."""
    command = verb(
        "export",
        _export,
        "Write a trained network as .onnx or .pt2 for other runtimes, checked against the model before it appears.",
        "msg3d-fast export runs/quickstart quickstart.onnx",
    )
    command.add_argument("source", metavar="RUN|CHECKPOINT", help="run folder, or any checkpoint, upstream's or ours")
    command.add_argument("destination", metavar="FILE", help="ends in .onnx or .pt2")


def _export(options: argparse.Namespace) -> None:
    from . import export
    from .experiment import load_trained

    destination = Path(options.destination)
    if destination.suffix == ".onnx":
        export.require_packages()
    trained = load_trained(options.source, backend="reference")
    metadata = export.describe(trained)
    frames = 100 if trained.config is None else trained.config.data.clip_len
    print(f"exporting {trained.checkpoint}; about half a minute", flush=True)
    error = export.export_model(trained.model, destination, frames=frames, metadata=metadata)
    shape = f"(N, {metadata['num_person']}, T, {trained.model.layout.num_joints}, {metadata['in_channels']})"
    print(
        f"wrote {destination}: clips {shape} -> logits (N, {metadata['num_classes']}), "
        f"{destination.stat().st_size / 1e6:.1f} MB; on random poses within {error:.0e} of the float64 model"
    )
