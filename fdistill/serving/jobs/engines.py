"""Other people's schedulers: SLURM, Ray Jobs, Kubernetes with Kueue. Each gets the command, and stops by SIGTERM."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from typing import Any

from fdistill.core.atomic_files import atomic_write
from fdistill.serving.jobs.home import Home, Job, State

_SLURM = """#!/usr/bin/env bash
#SBATCH --job-name={name}
#SBATCH --chdir={cwd}
#SBATCH --output={log}
#SBATCH --open-mode=append
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={devices}
{gpus}#SBATCH --requeue
#SBATCH --signal=USR1@120
export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-1}}"
srun --kill-on-bad-exit=1 {command}
code=$?
[ $code -eq 138 ] && scontrol requeue "$SLURM_JOB_ID"  # the time limit is near, and the run has saved
exit $code
"""
_SLURM_STATES = {"RUNNING": "running", "SUSPENDED": "running", "COMPLETING": "stopping", "STAGE_OUT": "stopping"}
_SLURM_ENDS = ("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "DEADLINE", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY")
_RAY_STATES = {"PENDING": "queued", "RUNNING": "running", "STOPPED": "stopped", "FAILED": "failed", "SUCCEEDED": "done"}
_LONGEST_SAVE = 3600  # s that Ray waits between SIGTERM and SIGKILL; 3 by default


class Slurm:
    """An sbatch file, handed over where sbatch is. Partition, account and time: by SBATCH_PARTITION and the like."""

    def __init__(self, home: Home) -> None:
        """Args:
        home: gets the file.
        """
        self._home = home

    def submit(self, job: Job) -> str:
        """Write the file, and give it to sbatch; returns the number, empty without sbatch."""
        gpus = "" if job.accelerator == "cpu" else f"#SBATCH --gpus-per-node={job.devices}\n"
        quoted = {"cwd": shlex.quote(job.cwd), "log": shlex.quote(str(job.log)), "command": shlex.join(job.command)}
        text = _SLURM.format(name=job.name, nodes=job.nodes, devices=job.devices, gpus=gpus, **quoted)
        file = atomic_write(self._home.file(job.name, "sbatch"), text)
        return _said("sbatch", "--parsable", str(file)).split(";")[0] if shutil.which("sbatch") else ""

    resume = submit

    def state(self, job: Job) -> State:
        """Of squeue, which forgets what has ended."""
        if not job.number or not shutil.which("squeue"):
            return State("written")
        said = subprocess.run(["squeue", "-h", "-j", job.number, "-o", "%T"], capture_output=True, text=True)
        if said.returncode and "Invalid job id" not in said.stderr:
            raise ValueError(f"squeue does not say how {job.name} goes: {' '.join(said.stderr.split())}; ask again")
        name = said.stdout.strip()
        if name in ("", *_SLURM_ENDS):
            return State("ended")
        return State(_SLURM_STATES.get(name, "queued"))  # PENDING, CONFIGURING, REQUEUED and others

    def stop(self, job: Job, wait: bool) -> None:
        """SIGTERM to the processes, not to the shell; one that waits is taken out."""
        _said("scancel", *(["--signal=TERM"] if self.state(job).name == "running" else []), job.number)


class Ray:
    """Ray Jobs at RAY_ADDRESS, or a head on this machine. Run folders are on a file system that all machines see."""

    def __init__(self, home: Home) -> None:
        """Connect.

        Raises:
            ValueError: without ray, or where no head answers.
        """
        try:
            from ray.job_submission import JobSubmissionClient
        except ImportError as error:
            raise ValueError(f"--on ray needs ray: pip install 'fdistill[ray]' ({error})") from error
        address = os.environ.get("RAY_ADDRESS", "http://127.0.0.1:8265")
        try:
            self._client: Any = JobSubmissionClient(address)
        except (ConnectionError, RuntimeError) as error:
            raise ValueError(f"no Ray head answers at {address} (RAY_ADDRESS): ray start --head ({error})") from error

    def submit(self, job: Job) -> str:
        """Queue it; Ray's number of it."""
        log, command = shlex.quote(str(job.log)), job.command
        if job.nodes > 1:
            kind = "cpu" if job.accelerator == "cpu" else "gpu"
            several = ["-m", "fdistill.serving.jobs.ray_nodes", str(job.nodes), str(job.devices), kind, str(job.log)]
            command = [sys.executable, *several, *command]
        return self._client.submit_job(
            entrypoint=f"cd {shlex.quote(job.cwd)} && exec {shlex.join(command)} >> {log} 2>&1",
            runtime_env={"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_LONGEST_SAVE)}},
            metadata={"fdistill": job.name},
            entrypoint_num_gpus=0 if job.accelerator == "cpu" or job.nodes > 1 else job.devices,
        )

    resume = submit

    def state(self, job: Job) -> State:
        """As Ray says."""
        if not job.number:
            return State("failed")  # it was not taken
        info = self._client.get_job_info(job.number)
        end = info.end_time or 1000 * time.time()  # ms
        seconds = (end - (info.start_time or end)) / 1000
        return State(_RAY_STATES[str(info.status.value)], info.driver_exit_code, seconds)

    def stop(self, job: Job, wait: bool) -> None:
        """SIGTERM; Ray kills after an hour."""
        self._client.stop_job(job.number)


class Kubernetes:
    """A RayJob manifest for Kueue, to be applied by hand: never run here."""

    def __init__(self, home: Home) -> None:
        """Args:
        home: gets the file.
        """
        self._home = home

    def submit(self, job: Job) -> str:
        """Write the manifest; JSON is YAML."""
        resources = {"cpu": "4", "memory": "32Gi"}
        if job.accelerator != "cpu":
            resources["nvidia.com/gpu"] = str(job.devices)
        container = {
            "name": "ray-head",
            "image": "fdistill:latest",
            "workingDir": job.cwd,
            "resources": {"limits": resources, "requests": resources},
            "volumeMounts": [{"name": "runs", "mountPath": job.cwd}],
        }
        volume = {"name": "runs", "persistentVolumeClaim": {"claimName": "fdistill-runs"}}
        pod = {"terminationGracePeriodSeconds": _LONGEST_SAVE, "containers": [container], "volumes": [volume]}
        manifest = {
            "apiVersion": "ray.io/v1",
            "kind": "RayJob",
            "metadata": {
                "name": job.name.lower().replace("_", "-").replace(".", "-").strip("-"),
                "labels": {"kueue.x-k8s.io/queue-name": "fdistill"},
            },
            "spec": {
                "entrypoint": shlex.join(["python", *job.command[1:]]),
                "suspend": True,
                "shutdownAfterJobFinishes": True,
                "backoffLimit": 3,
                "rayClusterSpec": {"headGroupSpec": {"rayStartParams": {}, "template": {"spec": pod}}},
            },
        }
        atomic_write(self._home.file(job.name, "rayjob.yaml"), json.dumps(manifest, indent=2) + "\n")
        return ""

    resume = submit

    def state(self, job: Job) -> State:
        """Only kubectl knows more."""
        return State("written")

    def stop(self, job: Job, wait: bool) -> None:
        """Not from here.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{job.name} is Kubernetes': kubectl delete rayjob ends it, and its pod has an hour to save")


def _said(*command: str) -> str:
    """What a program of the cluster prints.

    Raises:
        ValueError: in its own words, where it is missing or fails.
    """
    if not shutil.which(command[0]):
        raise ValueError(f"{command[0]} is not on this machine: use one that belongs to the cluster")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{command[0]} refused: {done.stderr.strip()}")
    return done.stdout.strip()
