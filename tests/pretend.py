"""A GPU that is none, to find on a CPU what would fail or stall on a real one.

Tensors made for `DEVICE` hold their numbers on the CPU and say that they live elsewhere. They
refuse to meet tensors that do live on the CPU (numbers without axes excepted, as on CUDA), and what
the host reads of them is counted with the line of the package that did it: on a GPU every read
waits until the device has caught up.
"""

from __future__ import annotations

import traceback
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

import keodrift

DEVICE = torch.device("cuda", 0)
PACKAGE = Path(keodrift.__file__).parent

aten = torch.ops.aten
# Operations that wait for the device on CUDA: they return to the host, or their shape depends on
# values. So do indices that are masks.
READS = {
    aten._local_scalar_dense,
    aten._linalg_check_errors,
    aten._unique2,
    aten.bincount,
    aten.equal,
    aten.masked_select,
    aten.nonzero,
    aten.repeat_interleave,
    aten.unique_consecutive,
    aten.unique_dim,
}
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class Elsewhere(Tensor):
    """A tensor of `DEVICE`."""

    @staticmethod
    def __new__(cls, raw: Tensor) -> Elsewhere:
        return Tensor._make_wrapper_subclass(
            cls, raw.shape, strides=raw.stride(), dtype=raw.dtype, device=raw.device
        )

    def __init__(self, raw: Tensor) -> None:
        self.raw = raw

    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)

    def __repr__(self) -> str:
        return f"elsewhere {self.raw}"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        given = [t for t in tree_leaves((args, kwargs or {})) if isinstance(t, Tensor)]
        operation = func.overloadpacket
        copies = operation is aten.copy_
        # An index may come from the CPU, which is a copy to the device.
        apart = given[:1] if operation in INDEXED else given
        strangers = [t for t in apart if not isinstance(t, Elsewhere) and t.dim() > 0]
        # Zeros that autograd made for itself are of the device that there really is.
        inside = torch._C._current_graph_task_id() != -1
        strangers = [t for t in strangers if not (inside and not t.any())]
        if strangers and not copies:
            raise RuntimeError(f"{func}: all tensors should be on one device")
        masks = operation in INDEXED and any(t.dtype == torch.bool for t in given[1:])
        if operation in READS or masks or (copies and not isinstance(args[0], Elsewhere)):
            _read()
        raw_args, raw_kwargs = tree_map(_raw, (args, kwargs or {}))
        found = tree_map(_wrapped, func(*raw_args, **raw_kwargs))
        return return_and_correct_aliasing(func, args, kwargs or {}, found)


def _raw(value):
    return value.raw if isinstance(value, Elsewhere) else value


def _wrapped(value):
    return Elsewhere(value) if isinstance(value, Tensor) else value


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        if not isinstance(x, Elsewhere):
            return Elsewhere(x.clone())
        _read()
        return x.raw.clone()

    @staticmethod
    def backward(ctx, slope):
        return _Move.apply(slope)


class Generator(torch.Generator):
    """A random generator of `DEVICE`."""

    device = property(lambda self: DEVICE)


class Pretend(TorchFunctionMode):
    """Within it `DEVICE` can be named.

    Attributes:
        reads: How often the host read from the device, by line of the package.
    """

    active: Pretend | None = None

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()

    def __enter__(self) -> Pretend:
        Pretend.active = self
        torch.__future__.set_swap_module_params_on_conversion(True)
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        torch.__future__.set_swap_module_params_on_conversion(False)
        Pretend.active = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is Tensor.tolist and isinstance(args[0], Elsewhere):
            _read()
            return args[0].raw.tolist()
        if func in (Tensor.numpy, Tensor.__array__) and isinstance(args[0], Elsewhere):
            raise TypeError("can't convert a tensor of a device to numpy; copy it to the CPU first")
        if func is Tensor.new_tensor and isinstance(args[0], Elsewhere):
            return Elsewhere(torch.tensor(args[1], dtype=kwargs.get("dtype", args[0].dtype)))
        if func is Tensor.cpu:
            return self._moved(args[0], "cpu")
        if func is Tensor.to:
            return self._to(*args, **kwargs)
        device = kwargs.get("device")
        wanted = "cpu" if device is None else torch.device(device).type
        here = any(isinstance(t, Elsewhere) for t in tree_leaves(args))
        random = kwargs.get("generator")
        if random is not None and random.device.type != (DEVICE.type if here else wanted):
            raise RuntimeError(f"{func}: a generator of {random.device} for numbers of {wanted}")
        if wanted != DEVICE.type:
            return func(*args, **kwargs)
        found = func(*args, **kwargs | {"device": "cpu"})
        return found if isinstance(found, Elsewhere) else Elsewhere(found)

    def _to(self, x: Tensor, *args, **kwargs) -> Tensor:
        target = kwargs.pop("device", None)
        if args and isinstance(args[0], Tensor):
            target, kwargs["dtype"], args = args[0].device, args[0].dtype, args[1:]
        elif args and not isinstance(args[0], torch.dtype):
            target, args = args[0], args[1:]
        if target is not None:
            x = self._moved(x, torch.device(target).type)
        dtype = kwargs.pop("dtype", None) or next(iter(args), None) or x.dtype
        return x.to(dtype, *args[1:], **kwargs)

    @staticmethod
    def _moved(x: Tensor, target: str) -> Tensor:
        return x if x.device.type == target else _Move.apply(x)


def _read() -> None:
    if Pretend.active is None:
        return
    for frame, line in traceback.walk_stack(None):
        if PACKAGE in Path(frame.f_code.co_filename).parents:
            where = Path(frame.f_code.co_filename).relative_to(PACKAGE)
            Pretend.active.reads[f"{where}:{line}"] += 1
            return
    Pretend.active.reads["outside"] += 1
