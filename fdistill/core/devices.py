"""Devices by name, checked before any work is done."""

import torch


def usable_device(name: str) -> torch.device:
    """The device of a name like cpu, cuda or cuda:1.

    Raises:
        ValueError: if there is no such device here.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device is cpu, cuda, cuda:1, mps ...: got {name!r}") from error
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= count.get(device.type, 0):
        here = ", ".join(f"{kind}:{i}" if kind == "cuda" else kind for kind, n in count.items() for i in range(n))
        raise ValueError(f"there is no device {name!r} here: expected one of {here}; fdistill doctor tells why")
    return device
