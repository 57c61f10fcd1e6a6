"""What SLURM, Ray and Kubernetes are handed, and what is refused where they are not."""

import json
import os
import shlex
import sys
from types import SimpleNamespace

import pytest

from fdistill.serving.jobs import Home, Job, Jobs
from fdistill.serving.jobs.ray_nodes import Machine

pytestmark = pytest.mark.system

PROGRAMS = {  # of a cluster that notes what it is asked
    "sbatch": 'echo "$2" > asked; echo "77;cluster"',
    "squeue": "cat state",
    "scancel": 'echo "$@" > asked; echo CANCELLED > state',
}


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """SLURM's programs, in a folder of their own; they run here."""
    monkeypatch.chdir(tmp_path)
    for name, script in PROGRAMS.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def job(folder, engine, **changes):
    given = {"accelerator": "gpu", "devices": 4, "nodes": 2} | changes
    return Job("run", str(folder / "a run"), str(folder), ["python", "-m", "fdistill", "fit"], engine=engine, **given)


def test_slurm_gets_the_resources_and_the_command_and_is_asked_how_it_goes(cluster):
    jobs = Jobs(cluster / "home")
    (cluster / "state").write_text("PENDING\n")
    assert jobs.submit(job(cluster, "slurm")).state == "queued"
    text = (cluster / (cluster / "asked").read_text().strip()).read_text()
    for line in ("--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--requeue", "--signal=USR1@120"):
        assert f"\n#SBATCH {line}\n" in text
    assert f"#SBATCH --output='{cluster}/a run/job.log'" in text
    assert "python -m fdistill fit\n" in text
    (cluster / "state").write_text("RUNNING\n")
    assert jobs.stop("run").state == "ended"
    assert (cluster / "asked").read_text().split() == ["--signal=TERM", "77"]
    assert jobs.resume("run").state == "ended"
    assert (cluster / "asked").read_text().strip().endswith("run.sbatch")
    for told, state in (("CONFIGURING", "queued"), ("SUSPENDED", "running"), ("TIMEOUT", "ended"), ("", "ended")):
        (cluster / "state").write_text(f"{told}\n")
        assert jobs.status("run").state == state
    (cluster / "state").unlink()  # and squeue fails
    with pytest.raises(ValueError, match=r"squeue does not say how run goes: cat: .*ask again"):
        jobs.status("run")


def test_without_sbatch_the_file_is_written(tmp_path):
    jobs = Jobs(tmp_path / "home")
    assert jobs.submit(job(tmp_path, "slurm", accelerator="cpu")).state == "written"
    assert "gpus" not in (tmp_path / "home" / ".jobs" / "run.sbatch").read_text()
    with pytest.raises(ValueError, match="nothing to stop"):
        jobs.stop("run")


def test_ray_starts_a_run_of_several_machines_by_one_process_that_starts_theirs(tmp_path, monkeypatch):
    asked = []
    client = SimpleNamespace(
        submit_job=lambda **given: asked.append(given) or "7",
        get_job_info=lambda _: SimpleNamespace(
            end_time=None, start_time=None, driver_exit_code=None, status=SimpleNamespace(value="PENDING")
        ),
    )
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "ray.job_submission", SimpleNamespace(JobSubmissionClient=lambda _: client))
    assert Jobs(tmp_path / "home").submit(job(tmp_path, "ray")).state == "queued"
    ((entry, gpus),) = [(each["entrypoint"], each["entrypoint_num_gpus"]) for each in asked]
    several = ["-m", "fdistill.serving.jobs.ray_nodes", "2", "4", "gpu", f"{tmp_path}/a run/job.log"]
    assert shlex.split(entry)[5:] == [*several, "python", "-m", "fdistill", "fit", ">>", several[-1], "2>&1"]
    assert gpus == 0  # those are asked for on each machine


def test_a_machine_starts_what_torchrun_would_and_the_first_failure_ends_all(tmp_path):
    names = ("RANK", "LOCAL_RANK", "GROUP_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE")
    told = f"print(*(os.environ[name] for name in {names}), os.getcwd(), flush=True)"
    ends = "sys.exit(7) if os.environ['LOCAL_RANK'] == '1' else time.sleep(60)"
    command = [sys.executable, "-c", f"import os, sys, time; {told}; {ends}"]
    log = tmp_path / "log"
    assert Machine().run(command, str(tmp_path), str(log), {"WORLD_SIZE": "4"}, 1, 2) == 7
    assert sorted(log.read_text().split("\n"))[1:] == [f"2 0 1 2 4 {tmp_path}", f"3 1 1 2 4 {tmp_path}"]
    told_before = Machine()
    told_before.stop()
    assert told_before.run(command, str(tmp_path), str(log), {"WORLD_SIZE": "4"}, 1, 2) == 143


def test_several_machines_are_not_silently_one(tmp_path):
    with pytest.raises(ValueError, match="num_nodes 1, got 2"):
        Jobs(tmp_path / "home").submit(job(tmp_path, "kubernetes"))
    assert list((tmp_path / "home" / ".jobs").glob("run*")) == []


def test_kubernetes_gets_a_manifest_that_kueue_starts(tmp_path):
    assert Jobs(tmp_path / "home").submit(job(tmp_path, "kubernetes", nodes=1)).state == "written"
    manifest = json.loads((tmp_path / "home" / ".jobs" / "run.rayjob.yaml").read_text())
    assert manifest["spec"]["suspend"]  # until Kueue admits it
    assert shlex.split(manifest["spec"]["entrypoint"]) == ["python", "-m", "fdistill", "fit"]
    (container,) = manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"


def test_an_engine_that_is_not_here_leaves_nothing_behind(tmp_path, monkeypatch):
    for module in ("ray", "ray.job_submission"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "dbos", None)
    for engine, extra in (("ray", "ray"), ("local", "jobs")):
        with pytest.raises(ValueError, match=rf"fdistill\[{extra}\]"):
            Jobs(tmp_path / "home").submit(job(tmp_path, engine, nodes=1))
    assert list(tmp_path.iterdir()) == []
    Home(tmp_path).write(job(tmp_path, "ray"))  # of a machine that has it
    assert [run.state for run in Jobs(tmp_path).all()] == ["unknown"]


def test_other_machines_are_told_what_a_run_needs(tmp_path):
    for changes in ({"accelerator": "auto"}, {"devices": 0}):
        with pytest.raises(ValueError, match="accelerator"):
            Jobs(tmp_path / "home").submit(job(tmp_path, "slurm", **changes))
