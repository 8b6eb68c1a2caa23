"""A device that is not the CPU, made of CPU tensors: it computes what the CPU does and refuses what a GPU refuses.

It goes by the name of "meta". A tensor of the CPU beside one of the device is an error, unless it is a number of shape ();
so is a generator of the other side. What a GPU does only after waiting for its queue, reading a value or being sent one from
pageable memory, is done and noted, with the place in the package that asked for it.
"""

import sys
import traceback
from collections import Counter
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

import fpsde

DEVICE = torch.device("meta")
CPU = torch.device("cpu")
PACKAGE = str(Path(fpsde.__file__).parent)
aten = torch.ops.aten

# The sizes of what these return depend on values.
READS = {aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default, aten.masked_select.default,
         aten._unique2.default, aten.unique_dim.default, aten.unique_consecutive.default, aten.is_nonzero.default,
         aten.repeat_interleave.Tensor, aten._linalg_check_errors.default}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
COPIES = {aten._to_copy.default, aten.copy_.default}


class OnDevice(torch.Tensor):
    """A tensor that says it is on the device."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held):
        self = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=DEVICE)
        self.held = held
        return self

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            copied = self.detach().clone().requires_grad_(self.requires_grad)
            memo[id(self)] = torch.nn.Parameter(copied, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copied
        return memo[id(self)]

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), named=None):
        raise AssertionError(f"{function} outside of the simulation")


PlainGenerator = torch.Generator


class _Generator(PlainGenerator):
    """A generator of the device, where one is asked for."""

    device = DEVICE

    def __new__(cls, device="cpu"):
        return super().__new__(cls) if torch.device(device) == DEVICE else PlainGenerator(device)


def _tensors(values):
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple, type({}.values()))):
            yield from _tensors(value)


def _each(change, value):
    if isinstance(value, torch.Tensor):
        return change(value)
    return type(value)([_each(change, v) for v in value]) if type(value) in (list, tuple) else value


def _held(tensor):
    return tensor.held if isinstance(tensor, OnDevice) else tensor


@cache
def _aliases(function):
    """Whether an operation changes what it is given or returns a view of it."""
    schema = function._schema
    return any(part.alias_info is not None for part in (*schema.arguments, *schema.returns))


class _Operations(TorchDispatchMode):
    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def note(self, kind):
        frames = [f for f in traceback.extract_stack() if f.filename.startswith(PACKAGE)]
        where = f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else "elsewhere"
        self.waits[f"{kind} {where}"] += 1

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        named = dict(named or {})
        tensors = list(_tensors((arguments, named.values())))
        here = [a for a in tensors if isinstance(a, OnDevice)]
        there = [a for a in tensors if not isinstance(a, OnDevice)]
        asked = named.get("device")
        if function in COPIES:
            target = DEVICE if isinstance(arguments[0], OnDevice) else CPU
            target = target if asked is None or function is aten.copy_.default else torch.device(asked)
            source = arguments[1] if function is aten.copy_.default else arguments[0]
            came = DEVICE if isinstance(source, OnDevice) else CPU
            if came != target:
                self.note("read" if target == CPU else "sent")
        else:
            target = DEVICE if here else CPU if asked is None else torch.device(asked)
            if here:
                self.check(function, arguments, there)
            if function in READS and here:
                self.note("read")
                target = CPU if function in {aten._local_scalar_dense.default, aten.equal.default} else target
        if asked is not None:
            named["device"] = CPU
        held = {name: _each(_held, a) for name, a in named.items()}
        result = function(*_each(_held, arguments), **held)
        if target == CPU:
            return arguments[0] if function is aten.copy_.default else result
        wrapped = _each(OnDevice, result)
        return return_and_correct_aliasing(function, arguments, named, wrapped) if _aliases(function) else wrapped

    def check(self, function, arguments, there):
        if function in INDEXED:
            places = [a for a in arguments[1] if a is not None]
            if any(a.dtype == torch.bool for a in places):
                self.note("read")
            if any(not isinstance(a, OnDevice) for a in places):
                self.note("sent")
            there = [a for a in there if not any(a is place for place in places)]
        if any(a.dim() for a in there):
            raise RuntimeError(f"{function}: tensors of the device and of the CPU, {[tuple(a.shape) for a in there]}")


class _Calls(TorchFunctionMode):
    """Makes tensors of numbers and lists on the CPU first, and compares generators with what they fill."""

    def __torch_function__(self, function, types, arguments=(), named=None):
        named = dict(named or {})
        if function in (torch.tensor, torch.as_tensor):
            device = named.pop("device", None)
            made = function(*arguments, **named)
            return made if device is None else made.to(device)
        if function is torch.Tensor.tolist:
            arguments = (arguments[0].cpu(),)
        if function in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and isinstance(arguments[0], OnDevice):
            place = arguments[1] if isinstance(arguments[1], tuple) else (arguments[1],)
            place = tuple(torch.tensor(p).to(DEVICE) if isinstance(p, list) else p for p in place)
            arguments = (arguments[0], place, *arguments[2:])
        result, generator = function(*arguments, **named), named.get("generator")
        if generator is not None and generator.device.type != result.device.type:
            raise RuntimeError(f"{function}: a generator of {generator.device} for a tensor of {result.device}")
        return result


@contextmanager
def simulation(monkeypatch):
    """The device, and a count of what is read from it and sent to it, by place."""
    waits = Counter()
    optimisers = sys.modules["torch.optim.optimizer"]
    supported = optimisers._get_fused_kernels_supported_devices
    monkeypatch.setattr(optimisers, "_get_fused_kernels_supported_devices", lambda: [*supported(), "meta"])
    monkeypatch.setattr(torch, "Generator", _Generator)
    # In place, module.double() would change what a tensor says of itself but not what it holds.
    monkeypatch.setattr(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True)
    with _Calls(), _Operations(waits):
        yield waits
