"""The handler for TorchServe, called as TorchServe calls it."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from clip_sets import small
from test_predict import network

import msg3d_fast as m
from msg3d_fast import serve


def test_handler_answers_as_the_predictor(tmp_path: Path) -> None:
    # TorchServe copies the file out of the package and loads it by its path.
    copy = tmp_path / "handler.py"
    copy.write_bytes(Path(serve.__file__).read_bytes())
    spec = importlib.util.spec_from_file_location("handler", copy)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert [name for name, one in vars(module).items() if getattr(one, "__module__", "") == "handler"] == ["Handler"]
    m.save_checkpoint(network(), tmp_path / "net.ckpt")
    context = SimpleNamespace(
        system_properties={"model_dir": str(tmp_path), "gpu_id": None},
        manifest={"model": {"serializedFile": "net.ckpt"}},
    )
    handler = module.Handler()
    handler.initialize(context)
    pose = small(num_clips=1).clip(0)
    asked = pose.tolist()
    asked[0][1][2][0] = None
    body = json.dumps({"poses": asked, "top": 2})
    requests = [
        {"body": body.encode()},
        {"data": json.loads(body)},
        {"body": b"{"},
        {"body": json.dumps({"poses": pose[:, :, :5].tolist()})},
        {"body": json.dumps({"poses": [[["nose"]]]})},
        {"body": json.dumps([1, 2])},
        {"body": 100000 * "["},
        {"body": body.replace('"top": 2', '"top": 1e999')},
    ]
    answers = handler.handle(requests, context)
    missing = pose.copy()
    missing[0, 1, 2] = np.nan
    predictor = m.Predictor(tmp_path / "net.ckpt", device="cpu")
    expected = predictor.top(predictor(missing), 2)
    for answer in answers[:2]:
        assert [(one["name"], one["probability"]) for one in answer["top"]] == expected
    assert "5 joints" in answers[3]["error"]
    for i in (2, 4, 5, 6, 7):
        assert answers[i]["error"].startswith("no poses that can be read")
    json.dumps(answers)
