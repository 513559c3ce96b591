"""A device that is not there: tensors that say they are on it compute on the CPU, and what a GPU would not do fails.

Of a GPU it has what goes wrong without one being noticed: its tensors do not mix with the host's, and reading them on
the host waits until all work is done. It calls itself ``meta``, for which autograd needs no hardware either.
"""

import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
DEVICE = torch.device("meta")
TORCH = str(Path(torch.__file__).parent)
BY_VALUE = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}  # the host must know values to go on
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}


class OnDevice(Tensor):
    """A tensor on the device, and ``inner`` on the CPU, which has its values."""

    inner: Tensor
    is_cuda = True  # so that the ways of a GPU are taken
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnDevice":
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        made = Tensor._make_wrapper_subclass(cls, inner.shape, **layout, dtype=inner.dtype, device=DEVICE)
        made.inner = inner
        return made

    def tolist(self) -> list:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Callable, types: Sequence, args: Sequence = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of PretendedDevice")


class MixedDevicesError(AssertionError):
    """A tensor of the host where one of the device is needed."""


class HostValuesError(AssertionError):
    """A tensor of the device made from a list or number of the host, for which ``new_full`` does not wait."""


class PretendedDevice(TorchDispatchMode):
    """While entered, ``DEVICE`` is there.

    Attributes:
        waits: where the host waited for the device, and by which operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Sequence, args: Sequence = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
        host = [tensor for tensor in tensors if not isinstance(tensor, OnDevice)]
        goal = kwargs.get("device")
        made_here = bool(here) if goal is None else torch.device(goal) == DEVICE
        if any(tensor.device == DEVICE for tensor in host):  # its values are lost, so that it cannot be counted
            raise HostValuesError(f"torch.tensor or new_tensor copies values to the device and waits: {_place()}")
        if here or made_here:
            self._judge(func, args, kwargs, here, host, made_here)
        inner = tree_map(lambda leaf: leaf.inner if isinstance(leaf, OnDevice) else leaf, (args, kwargs))
        plain = inner[1] if goal is None else inner[1] | {"device": torch.device("cpu")}
        found = func(*inner[0], **plain)
        if func is aten.copy_.default and not isinstance(args[0], OnDevice):
            return args[0]
        if not made_here:
            return found
        wrapped = tree_map(lambda leaf: OnDevice(leaf) if isinstance(leaf, Tensor) else leaf, found)
        return return_and_correct_aliasing(func, args, kwargs, wrapped) if here else wrapped

    def _judge(
        self, func: Any, args: Sequence, kwargs: Mapping, here: Sequence, host: Sequence[Tensor], made_here: bool
    ) -> None:
        """Note that the host waits, or raise MixedDevicesError."""
        if func in (aten._to_copy.default, aten.copy_.default):
            crosses = bool(here) != made_here or bool(host and here)
            pinned = kwargs.get("non_blocking", False) or len(args) > 2 and args[2]
            from_host = not here or isinstance(args[0], OnDevice) and bool(host)
            if crosses and not (from_host and pinned):
                self._wait(func)
            return
        if func in INDEXING:
            indices = [index for index in args[1] if index is not None]
            if host or any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                self._wait(func)
            return
        if BY_VALUE & set(func.tags):
            self._wait(func)
        if here and any(tensor.dim() or torch.Tag.pointwise not in func.tags for tensor in host):
            shapes = [tuple(tensor.shape) for tensor in host]
            raise MixedDevicesError(f"{func} of a tensor on the device and of one on the host, {shapes}: {_place()}")

    def _wait(self, func: Any) -> None:
        self.waits.append(f"{_place()}: {func}")


def _place() -> str:
    """The innermost line that is being run, of neither torch nor this file."""
    frames = traceback.extract_stack()
    callers = [frame for frame in frames if not frame.filename.startswith((TORCH, __file__))]
    return f"{Path(callers[-1].filename).name}: {callers[-1].line}"
