"""configs/cluster: two processes of torchrun, and two of a stand-in of srun, make the same run and continue it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from cli_runs import CONFIGS, last, succeeds, weights_of, write_yaml

CLUSTER = CONFIGS / "cluster"
SRUN = """#!/usr/bin/env bash
# Two machines of one process each, as srun would start them; its own options are left out.
while [[ $1 == --* ]]; do shift; done
SLURM_PROCID=0 SLURM_NODEID=0 SLURM_LOCALID=0 "$@" & first=$!
SLURM_PROCID=1 SLURM_NODEID=1 SLURM_LOCALID=0 "$@" & second=$!
wait $first && wait $second
"""
SLURM = {
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_NAME": "fdistill",
    "SLURM_JOB_ID": "12345",
    "SLURM_NODELIST": "localhost",
}


def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def run(script, folder, teacher, turns, tmp_path, student="quickstart/student", **environment):
    """A few turns of a student on two processes of the CPU."""
    trainer = {"accelerator": "cpu", "precision": "32-true", "limit_val_batches": 0, "enable_progress_bar": False}
    trainer |= {"callbacks": [{"class_path": "LastCheckpoint", "init_args": {"every_n_turns": 2}}]}
    trainer |= {"default_root_dir": str(folder), "max_steps": turns}
    small = tmp_path / "small.yaml"
    small.write_text(yaml.safe_dump({"trainer": trainer}))
    configs = [CONFIGS / "trainer.yaml", CONFIGS / f"{student}.yaml", CLUSTER / "replicated.yaml", small]
    arguments = [part for config in configs for part in ("--config", str(config))]
    paths = {"PATH": os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])}
    package = {"PYTHONPATH": os.pathsep.join([str(CONFIGS.parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        ["bash", str(script), *arguments, f"--model.teacher={teacher}", "--data.batch_size=8"],
        env=os.environ | paths | package | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Starting with 2 processes" in done.stderr
    return weights_of(folder)


@pytest.mark.slow
def test_torchrun_and_srun_make_the_same_run_and_continue_it(teacher_checkpoint, tmp_path):
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(0o755)
    torchrun, slurm = CLUSTER / "torchrun.sh", CLUSTER / "slurm.sbatch"
    by_torchrun = {"GPUS": "2", "HEAD": f"localhost:{port()}"}
    by_slurm = SLURM | {"MASTER_PORT": port()}
    whole = run(torchrun, tmp_path / "whole", teacher_checkpoint, 4, tmp_path, **by_torchrun)
    run(slurm, tmp_path / "parts", teacher_checkpoint, 2, tmp_path, **by_slurm)
    assert torch.load(last(tmp_path / "parts"), weights_only=True)["global_step"] == 2
    parts = run(slurm, tmp_path / "parts", teacher_checkpoint, 4, tmp_path, **by_slurm)
    assert whole.keys() == parts.keys()
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []


RAY = f"""#!/usr/bin/env bash
# Two "machines" of one process each, of a cluster of Ray that ends with the first of these processes.
{sys.executable} -m fdistill.serving.jobs.ray_nodes 2 1 cpu "$LOG" {sys.executable} -m fdistill fit "$@" \\
    --trainer.devices 1 --trainer.num_nodes 2 --ckpt_path last
code=$?
cat "$LOG" >&2
exit $code
"""


@pytest.mark.slow
def test_two_machines_of_ray_make_the_run_of_torchrun_and_continue_it(teacher_checkpoint, tmp_path):
    pytest.importorskip("ray")
    (tmp_path / "ray.sh").write_text(RAY)
    told = {"LOG": str(tmp_path / "log"), "RAY_USAGE_STATS_ENABLED": "0"}
    by_torchrun = {"GPUS": "2", "HEAD": f"localhost:{port()}"}
    whole = run(CLUSTER / "torchrun.sh", tmp_path / "whole", teacher_checkpoint, 4, tmp_path, **by_torchrun)
    for turns in (2, 4):
        parts = run(tmp_path / "ray.sh", tmp_path / "parts", teacher_checkpoint, turns, tmp_path, **told)
        assert torch.load(last(tmp_path / "parts"), weights_only=True)["global_step"] == turns
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []


@pytest.mark.slow
def test_two_sets_of_classes_at_once_resume_on_two_processes(tmp_path):
    quick = {"accelerator": "cpu", "max_steps": 1, "limit_val_batches": 0}
    tiny = write_yaml(tmp_path / "tiny.yaml", trainer=quick | {"default_root_dir": str(tmp_path / "teacher")})
    files = (CONFIGS / "trainer.yaml", CONFIGS / "benchmarks" / "coloured_teacher.yaml", tiny)
    named = [part for file in files for part in ("--config", file)]
    succeeds("fit", *named, "--model.network.widths", "[8,12]")

    def torchrun(folder, turns):
        by = {"GPUS": "2", "HEAD": f"localhost:{port()}"}
        script, teacher = CLUSTER / "torchrun.sh", last(tmp_path / "teacher")
        return run(script, folder, teacher, turns, tmp_path, "benchmarks/coloured", **by)

    whole = torchrun(tmp_path / "whole", 4)
    torchrun(tmp_path / "halves", 2)
    resumed = torchrun(tmp_path / "halves", 4)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
