"""A machine without GPU that knows host and device apart: which tensors would be where, and collectives that mind it.

The module's device is called cpu:0 and the host cpu; torch computes on both alike. What a function makes without a
device, or for "cpu", is on the host; `.to` and `.cpu()` copy between the two, as they do on a GPU; everything else is
where its arguments are. Collectives of the run's own group are then what they are under NCCL, which has no backend for
the CPU: they refuse what is on the host. What no function of torch's made (torch.from_numpy) passes for the device's.
"""

import functools
import weakref
from contextlib import contextmanager

import torch
import torch.distributed as dist
from lightning.pytorch.accelerators import CPUAccelerator
from torch.distributed.tensor import DTensor
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

DEVICE, HOST = torch.device("cpu", 0), torch.device("cpu")
COLLECTIVES = ("all_reduce", "all_gather", "broadcast", "reduce", "gather", "scatter", "send", "recv")
"""Of torch.distributed, with tensors of the caller; those of objects move them to the right device themselves."""

_TO, _CPU, _NAMES = torch.Tensor.to, torch.Tensor.cpu, (torch.device, str)
_MOVES = {_TO, _CPU}
_GET_DEVICE, _SET_DATA = torch.Tensor.device.__get__, torch.Tensor.data.__set__
_host = {}  # tensors on the host, by their identity: weak references, which a plain dictionary finds fastest
_filled = {}  # what was last made at an address, for parameters, which are made without a function


def is_on_host(tensor):
    found = _host.get(id(tensor))
    return found is not None and found() is tensor


class TwoPlaces(TorchFunctionMode):
    """Inside, every tensor that Python sees is on the host or on the device."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if not isinstance(result, torch.Tensor) and type(result) not in (list, tuple):  # most calls: a shape, a number
            if isinstance(result, torch.device) and function == _GET_DEVICE:
                return DEVICE if result == HOST and not is_on_host(args[0]) else result
            if result is None and function == _SET_DATA:
                _put(args[0], is_on_host(args[1]))
            return result
        made, given = _tensors((result,)), _tensors((*args, *kwargs.values()))
        target = _asked(function, args, kwargs)
        if target is not None and function in _MOVES and result is args[0] and is_on_host(result) != target:
            result = result.clone()
            made = [result]
        on_host = target if target is not None else _is_host(given)
        for tensor in made:
            if id(tensor) not in map(id, given):
                _put(tensor, on_host)
        return result


def _tensors(values):
    """The tensors among values, and in the lists and tuples among them."""
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif type(value) in (list, tuple):
            found += _tensors(value)
    return found


def _asked(function, args, kwargs):
    """Whether a call asks for the host, or not; None where it names no device."""
    if function is _CPU:
        return True
    if function is not _TO and not isinstance(kwargs.get("device"), _NAMES):
        return None
    named = [value for value in (*args[1:], *kwargs.values()) if isinstance(value, _NAMES)]
    if function is _TO:
        named += [value.device for value in args[1:] if isinstance(value, torch.Tensor)]
    named = [torch.device(value) for value in named if str(value).split(":")[0] in ("cpu", "meta")]
    return named[0].index is None and named[0].type == "cpu" if named else None


def _is_host(given):
    """Numbers beside tensors go where these are; what is made of nothing is on the host."""
    return all(map(is_on_host, [value for value in given if value.ndim] or given))


def _put(tensor, on_host):
    if isinstance(tensor, DTensor) or tensor.is_meta:
        return
    if on_host:
        key = id(tensor)
        _host[key] = weakref.ref(tensor, lambda _: _host.pop(key, None))
    else:
        _host.pop(id(tensor), None)
    _filled[tensor.data_ptr()] = on_host


@contextmanager
def two_places():
    """Inside, the collectives of the run's own group refuse a tensor on the host, with a RuntimeError as NCCL's."""
    plain = {name: getattr(dist, name) for name in COLLECTIVES}
    devices = CPUAccelerator.get_parallel_devices
    hook = register_module_parameter_registration_hook(lambda module, name, value: _born(value))
    CPUAccelerator.get_parallel_devices = staticmethod(lambda count: [DEVICE] * len(devices(count)))
    for name, collective in plain.items():
        setattr(dist, name, _minding(collective))
    try:
        with TwoPlaces():
            yield
    finally:
        hook.remove()
        CPUAccelerator.get_parallel_devices = staticmethod(devices)
        for name, collective in plain.items():
            setattr(dist, name, collective)


def _born(parameter):
    if parameter is not None and not parameter.is_meta:
        _put(parameter, _filled.get(parameter.data_ptr(), True))


def _minding(collective):
    @functools.wraps(collective)
    def minding(*args, **kwargs):
        groups = [value for value in (*args, *kwargs.values()) if isinstance(value, dist.ProcessGroup)]
        own = not groups or groups[0] is dist.group.WORLD
        for tensor in (*_tensors(args), *_tensors(kwargs.values())):
            if own and is_on_host(tensor):
                raise RuntimeError(
                    f"{collective.__name__} of a tensor {list(tensor.shape)} on the host: No backend type associated "
                    "with device type cpu"
                )
        return collective(*args, **kwargs)

    return minding
