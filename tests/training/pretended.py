"""A pretended device: its tensors compute on the CPU, and an operation that fails on a GPU fails here too.

It imitates two mistakes that a CPU does not show: tensors of device and host cannot be mixed, and reading a tensor on
the host waits until all work is done. Its name is ``meta``, for which autograd also needs no hardware.
"""

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
DEVICE = torch.device("meta")
OTHERS = (str(Path(torch.__file__).parent), __file__)
BY_VALUE = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}  # the host needs the values to continue
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}


class OnDevice(Tensor):
    """A tensor on the device; ``inner``, on the CPU, has its values."""

    inner: Tensor
    is_cuda = True  # so that the code for a GPU runs
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


class PretendedDevice(TorchDispatchMode):
    """Context in which ``DEVICE`` exists. An operation that a GPU would refuse raises AssertionError.

    Attributes:
        waits: lines where the host waited for the device, and by which operation.
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
        # its values are lost, so the wait cannot be counted
        assert not any(tensor.device == DEVICE for tensor in host), "torch.tensor or new_tensor copies values and waits"
        if func in (aten._to_copy.default, aten.copy_.default):
            to_here = isinstance(args[0], OnDevice) if func is aten.copy_.default else made_here
            asynchronous = to_here and (kwargs.get("non_blocking") or args[2:] == (True,))
            waits = to_here != all(isinstance(tensor, OnDevice) for tensor in tensors[-1:]) and not asynchronous
        elif func in INDEXING:
            masks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
            waits = bool(here) and bool(host or masks)
        else:
            waits = bool(here and BY_VALUE & set(func.tags))
            numbers = torch.Tag.pointwise in func.tags and not any(tensor.dim() for tensor in host)
            assert not (here and host) or numbers, f"{func} of tensors on the device and on the host"
        if waits:
            frames = [frame for frame in traceback.extract_stack() if not frame.filename.startswith(OTHERS)]
            self.waits.append(f"{frames[-1].filename}: {frames[-1].line}: {func}")
        inner, plain = tree_map(lambda leaf: leaf.inner if isinstance(leaf, OnDevice) else leaf, (args, kwargs))
        found = func(*inner, **(plain if goal is None else plain | {"device": torch.device("cpu")}))
        if func is aten.copy_.default and not isinstance(args[0], OnDevice):
            return args[0]
        if not made_here:
            return found
        wrapped = tree_map(lambda leaf: OnDevice(leaf) if isinstance(leaf, Tensor) else leaf, found)
        return return_and_correct_aliasing(func, args, kwargs, wrapped) if here else wrapped
