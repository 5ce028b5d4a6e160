"""The other ways to run the same network on a CPU. Each takes the reference model in eval mode, gives clip -> logits.

All of them get the reference's plain operations, the same weights, float32 and the same number of threads; what each
recommends for latency on a CPU is switched on. One that is not installed, fails or computes something else is named in
the results as not measured, with the reason.
"""

import io
import logging
import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from msg3d_fast.export import onnx_session

from .harness import failure

Call = Callable[[Tensor], Tensor]


def eager(model: nn.Module, x: Tensor) -> Call:
    """PyTorch, one operation after the other."""

    def call(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return model(x)

    return call


def torch_compile(model: nn.Module, x: Tensor) -> Call:
    """torch.compile with the default mode, static shapes."""
    torch._dynamo.reset()
    return eager(torch.compile(model, dynamic=False), x)


def torchscript(model: nn.Module, x: Tensor) -> Call:
    """TorchScript: traced, frozen, optimize_for_inference."""
    with torch.no_grad():
        return eager(
            torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(model, x, check_trace=False))), x
        )


def onnx_runtime(model: nn.Module, x: Tensor) -> Call:
    """ONNX Runtime on the exported graph, all graph optimisations."""
    file = io.BytesIO()
    torch.onnx.export(model, (x,), file, dynamo=False, input_names=["clips"])  # by tracing: in seconds
    return onnx_session(file.getvalue(), torch.get_num_threads())


def openvino(model: nn.Module, x: Tensor) -> Call:
    """OpenVINO converted from PyTorch, latency hint, float32."""
    from openvino import Core, convert_model

    with torch.no_grad():
        graph = convert_model(model, example_input=x, input=[list(x.shape)])
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = Core().compile_model(graph, "CPU", settings).create_infer_request()
    return lambda x: torch.from_numpy(request.infer([x.numpy()])[0])


RIVALS: dict[str, Callable[[nn.Module, Tensor], Call]] = {
    "eager": eager,
    "torch.compile": torch_compile,
    "TorchScript": torchscript,
    "ONNX Runtime": onnx_runtime,
    "OpenVINO": openvino,
}


def build(names: Iterable[str], model: nn.Module, x: Tensor) -> tuple[dict[str, Call], dict[str, str]]:
    """Prepare rivals for inputs of x's shape: ({name: call}, {name: why it is not measured})."""
    calls, missing = {}, {}
    for name in names:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                logging.getLogger("torch.onnx").setLevel(logging.ERROR)
                calls[name] = RIVALS[name](model, x)
        except Exception as problem:  # a rival that does not build is a finding, not an end
            missing[name] = failure(problem)
    return calls, missing
