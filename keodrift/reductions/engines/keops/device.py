"""KeOps on a GPU: the stream that it launches on, and failures that are no compiler's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from keodrift.errors import EngineError

# What errors of a GPU that runs say, in lower case; NVRTC's are those of its compiler.
DEVICE_FAILURES = ("cuda error", "cublas", "device-side", "illegal memory")


def refuse_device_failures(error: BaseException, device: str) -> None:
    """Raises what a GPU that runs has failed with, which no other engine is to answer.

    Raises:
        EngineError: The error is one of a type of device that is a GPU.
    """
    if device != "cpu" and any(sign in str(error).lower() for sign in DEVICE_FAILURES):
        raise EngineError("keops", device, str(error)) from error


def on_keops_stream(call: Callable[[], Tensor], device: torch.device) -> Tensor:
    """The result of a call whose work is all on the stream that KeOps launches on, the default one.

    Called on another stream, KeOps would not wait for what is still to be done there, nor its
    backward pass. The device is set again, since KeOps leaves its own set.
    """
    if device.type != "cuda":
        return call()
    here, default = torch.cuda.current_stream(device), torch.cuda.default_stream(device)
    with torch.cuda.device(device):
        if here == default:
            return call()
        default.wait_stream(here)
        with torch.cuda.stream(default):
            found = call()
        here.wait_stream(default)
        found.record_stream(here)  # its memory is not given away before this stream is done with it
        return found
