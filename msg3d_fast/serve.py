"""A handler for TorchServe: poses come in as JSON, the likeliest classes go back.

    pip install torchserve torch-model-archiver
    torch-model-archiver --model-name actions --version 1 --serialized-file runs/mine/best.ckpt --export-path store \
        --handler $(python -c "import msg3d_fast.serve as s; print(s.__file__)")
    curl http://localhost:8080/predictions/actions -H "Content-Type: application/json" \
        -d '{"poses": [...], "img_shape": [1080, 1920], "top": 5}'

`poses` are nested lists (persons, frames, joints, channels), null a missing number; `img_shape` and `top` may be left
out. A request that is wrong gets a line that says why; the others of its batch are answered.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

# Absolute imports: TorchServe loads this file by itself, outside the package.
from msg3d_fast.errors import UserError
from msg3d_fast.predict import Predictor


class Handler:
    """What TorchServe calls: `initialize` once in each worker, then `handle` for every batch of requests."""

    def __init__(self) -> None:
        self.predictor: Predictor | None = None

    def initialize(self, context: Any) -> None:
        """Load the checkpoint of the archive onto the device that TorchServe gives this worker."""
        properties = context.system_properties
        gpu = properties.get("gpu_id")
        file = Path(properties["model_dir"]) / context.manifest["model"]["serializedFile"]
        self.predictor = Predictor(file, device="cpu" if gpu is None else f"cuda:{gpu}")

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        """Answers in the order of the requests: {"top": [{"name", "probability"}, ...]}, or {"error": one line}."""
        return [self._answer(request) for request in data]

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        body = request.get("body") or request.get("data")
        try:
            asked = json.loads(body) if isinstance(body, bytes | bytearray | str) else body
            poses, images = np.array(asked["poses"], np.float32), asked.get("img_shape")
            probabilities = self.predictor([poses], img_shape=images and (int(images[0]), int(images[1])))[0]
            found = self.predictor.top(probabilities, int(asked.get("top", 5)))
        except UserError as error:
            return {"error": str(error)}
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            return {"error": f"no poses that can be read ({type(error).__name__}: {error!s:.80})"}
        return {"top": [{"name": name, "probability": probability} for name, probability in found]}
