"""The test mode that knows host and device apart on a machine without GPU."""

import re

import pytest
import torch
import torch.distributed as dist
from places import COLLECTIVES, DEVICE, HOST, two_places
from repository import ROOT
from torch import nn

PACKAGE = ROOT / "fdistill"
WITHOUT_TENSORS = {"all_gather_object", "broadcast_object_list"}  # which bring what they send to the group's device
NO_COLLECTIVES = {"is_available", "is_initialized", "get_rank", "get_world_size", "new_group"}


def test_tensors_are_where_a_gpu_would_have_them():
    with two_places():
        host = torch.zeros(3)
        device = host.to(DEVICE)
        network = nn.Linear(3, 3)
        assert network.weight.device == HOST
        network.to(DEVICE)
        optimizer = torch.optim.Adam(network.parameters())
        network(device).sum().backward()
        optimizer.step()
        moments = [value for held in optimizer.state.values() for name, value in held.items() if name != "step"]
        on_device = [device, device + 1.0, torch.cat([device, device]), torch.zeros(2, device=device.device)]
        on_device += [network.weight, network.weight.grad, network(device), *network.state_dict().values(), *moments]
        assert {value.device for value in on_device} == {DEVICE}
        on_host = [host, device.cpu(), device.to("cpu"), device.cpu().flatten()]
        assert {value.device for value in [*on_host, torch.tensor(1.0), torch.stack([host])]} == {HOST}
        device.cpu().add_(1.0)
        assert device.tolist() == [0.0, 0.0, 0.0]  # the host has a copy


def test_a_collective_of_the_run_refuses_a_tensor_on_the_host():
    with two_places():
        x = torch.ones(2, device=DEVICE)
        for collective, arguments in ((dist.all_reduce, [x.cpu()]), (dist.all_gather, [[x, x], x.cpu()])):
            with pytest.raises(RuntimeError, match="host"):
                collective(*arguments)


def test_the_mode_minds_every_collective_that_the_package_calls():
    called = {name for path in PACKAGE.rglob("*.py") for name in re.findall(r"\bdist\.([a-z_]+)\(", path.read_text())}
    assert called - WITHOUT_TENSORS - NO_COLLECTIVES <= set(COLLECTIVES)
    assert "torch.distributed.all_" not in "".join(path.read_text() for path in PACKAGE.rglob("*.py"))
