"""Several processes on CUDA with NCCL: sharded networks are whole ones, ranks stay equal, compressed or not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from forked import free_port

pytestmark = pytest.mark.gpu
SCRIPT = Path(__file__).parent / "nccl_ranks.py"
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")


def job(what, ranks, folder, *arguments):
    """What each of so many processes wrote."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    shared |= {"LOCAL_WORLD_SIZE": str(ranks), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
    command = [sys.executable, str(SCRIPT), what, str(folder), *arguments]
    processes = []
    for rank in range(ranks):
        environment = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        with (folder / f"{what}.{rank}.log").open("w") as log:
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    statuses = [process.wait(300) for process in processes]
    logs = [(folder / f"{what}.{rank}.log").read_text()[-2000:] for rank in range(ranks)]
    assert statuses == [0] * ranks, "\n".join(logs)
    return [torch.load(folder / f"{what}.{rank}.pt", weights_only=True) for rank in range(ranks)]


def assert_close(found, expected, rtol, atol):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=atol, msg=lambda text, name=name: name + text)


def assert_sharded_is_whole(found):
    for parts in found.values():
        assert_close(parts["sharded"], parts["replicated"], rtol=1e-3, atol=1e-3)
        assert all(value.isfinite().all() for value in parts["sharded, bf16"].values())


def test_sharded_networks_of_one_gpu_are_whole_ones(tmp_path):
    (found,) = job("sharded", 1, tmp_path)
    assert_sharded_is_whole(found)


@two_gpus
def test_sharded_networks_of_two_gpus_are_whole_ones(tmp_path):
    for found in job("sharded", 2, tmp_path):
        assert_sharded_is_whole(found)


@two_gpus
@pytest.mark.parametrize("what", ["replicated", "compressed"])
def test_weights_of_two_gpus_are_equal_bit_for_bit(what, tmp_path):
    first, second = job(what, 2, tmp_path)
    for name, values in first.items():
        assert [key for key, value in values.items() if not torch.equal(value, second[name][key])] == []
