"""Everything that needs a GPU, by one command: the tests marked gpu, the benchmarks, and a report beside the aims.

    python tools/check_gpu.py --out runs/gpu
    python tools/check_gpu.py --parts tests digits-eager digits-fast
    python tools/check_gpu.py --device cpu --small --parts digits-eager loader    # only tries the command

Each part is a process of its own with a limit of time; what it found goes to results.json of --out at once, and
report.md is written anew from all that lies there. So parts may be run one by one, and again. A part that fails is
reported and stops no other; the exit status is 1 where one failed. A missed aim is a result and no failure.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import torch

from fdistill.core.atomic_files import atomic_write, write_json

ROOT = Path(__file__).parents[1]
NETWORKS = {"digits": 128, "cifar10": 64, "imagenet64": 64}  # batches
WAYS = ("GenerativeModel.sample", "fdistill sample", "OneStepPipeline, pt")
Found = dict[str, dict[str, Any]]
"""By part: status, seconds, where and when, what it wrote, the tables that it printed, the end of its output."""


class Aim(NamedTuple):
    """One aim, and where it stands; None where nothing has been measured."""

    what: str
    measured: str
    met: bool | None


def parts(options: argparse.Namespace) -> dict[str, list[list[str]]]:
    """The commands of every part; each writes JSON or XML files to a folder of the part's name."""
    out, small, cuda = options.out, options.small, ["--device", options.device]
    commands = {"tests": [["-m", "pytest", "-m", "gpu", "tests/gpu", "--junit-xml", f"{out / 'tests' / 'tests.xml'}"]]}
    hows = {
        "eager": ["--tf32"],
        "fast": ["--precision", "bf16-mixed", "--fast"],
        "graphs": ["--precision", "bf16-mixed", "--fast", "--compile-mode", "reduce-overhead"],
    }
    for network, batch in NETWORKS.items():
        size = ["--network", network, "--batch", str(batch), "--cycles", "8"]
        if small:
            size = ["--network", "digits", "--batch", "2", "--cycles", "1"]
        for how, settings in hows.items():
            tried = ["--backend", "eager"] if small and how != "eager" else []
            name = f"{network}-{how}"
            step = ["tools/benchmark_step.py", *size, *cuda, "--fused", *settings, *tried, "--out", f"{out / name}"]
            commands[name] = [step]
    few = ["--batches", "2", "--repeats", "2"] if small else ["--repeats", "21"]
    generation = ["tools/benchmark_generation.py", *cuda, "--no-programs", *few, "--out"]
    commands["generation"] = [[*generation, f"{out / 'generation' / 'digits'}"]]
    if not small:
        commands["generation"].append([*generation, f"{out / 'generation' / 'cifar10'}", "--cifar"])
    text = ["tools/benchmark_text_step.py", "--teacher", "sd15", *cuda, "--precision", "bf16-mixed"]
    text += ["--small", "--batch", "2", "--turns", "2"] if small else ["--batch", "4", "--teacher-dtype", "bfloat16"]
    commands["sd15"] = [[*text, "--out", f"{out / 'sd15'}"]]
    more = ["--gradient-checkpointing", "--out", f"{out / 'sd15-checkpointed'}"]
    commands["sd15-checkpointed"] = [[*text, *more]]
    brief = ["--batches", "2", "--batch", "4", "--workers", "0"] if small else []
    commands["loader"] = [["tools/benchmark_loader.py", *brief, "--out", f"{out / 'loader'}"]]
    return commands


def run(name: str, commands: list[list[str]], options: argparse.Namespace) -> dict[str, Any]:
    """Make one part; its output is shown when it fails, and kept in a log beside its files."""
    folder, started, status = options.out / name, time.perf_counter(), 0
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.getenv("PYTHONPATH")]))}
    with (folder / "log.txt").open("w") as log:
        for command in commands:
            left = options.limit - (time.perf_counter() - started)
            how = {"cwd": ROOT, "env": environment, "stdout": log, "stderr": subprocess.STDOUT}
            try:
                status = status or ended([sys.executable, *command], max(left, 1), **how)
            except subprocess.TimeoutExpired:
                status = f"not ended after {options.limit:g} s"
    lines = (folder / "log.txt").read_text(errors="replace").splitlines()
    if status:
        print("\n".join(lines[-30:]))
    return {
        "status": status,
        "seconds": round(time.perf_counter() - started, 1),
        "commands": [" ".join(["python", *command]) for command in commands],
        "machine": machine(options.device),
        "small": options.small,
        "date": datetime.date.today().isoformat(),
        "found": {f"{path.relative_to(folder)}": json.loads(path.read_text()) for path in folder.rglob("*.json")},
        "tests": tests_of(folder / "tests.xml"),
        "tables": [line for line in lines if line.startswith("|")],
        "end": lines[-15:] if status else [],
    }


def ended(command: list[str], seconds: float, **how: Any) -> int:
    """The exit status of a process; when it takes too long or we are stopped, its own processes end with it.

    Ranks that go on would hold the memory of the GPU, and slow down what is measured next.
    """
    with subprocess.Popen(command, start_new_session=True, **how) as process:
        try:
            return process.wait(seconds)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise


def tests_of(path: Path) -> dict[str, str]:
    """passed, skipped or failed of every test in a file of pytest's; nothing where there is none."""
    if not path.is_file():
        return {}
    verdicts = {}
    for case in ElementTree.parse(path).iter("testcase"):
        kinds = {child.tag for child in case}
        verdict = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        verdicts[f"{case.get('classname')}.{case.get('name')}"] = verdict
    return verdicts


def machine(device: str) -> str:
    """What a report says of where it was made."""
    versions = f"torch {torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} CPU cores"
    if not device.startswith("cuda"):
        return f"CPU, {versions}"
    properties, driver = torch.cuda.get_device_properties(device), ""
    if shutil.which("nvidia-smi"):
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split("\n")[0].strip()
    memory = f"{properties.total_memory / 2**30:.0f} GiB"
    gpus = f"{torch.cuda.device_count()} x {properties.name} ({memory})"
    return f"{gpus}, driver {driver or 'unknown'}, CUDA {torch.version.cuda}, {versions}"


def rows(found: Found, part: str) -> dict[str, Any] | None:
    """What benchmark_step wrote of a part; None where it has not been run or failed."""
    files = found.get(part, {}).get("found", {})
    return next(iter(files.values())) if files and not found[part]["status"] else None


def aims(found: Found) -> Iterator[Aim]:
    """Every aim, with what was measured so far."""
    hows = [made for made in (rows(found, f"imagenet64-{how}") for how in ("fast", "graphs")) if made is not None]
    fast = max(hows, key=lambda made: made["rows"]["trainer"]["images_per_second"], default=None)
    eager = rows(found, "imagenet64-eager")
    what = "at least 45% MFU at ImageNet-64 size in bf16"
    if fast is None:
        yield Aim(what, "", None)
    else:
        mfu, ceiling = fast["rows"]["trainer"]["mfu"], fast["ceiling_flops"]
        yield Aim(what, f"{mfu:.1%} of {ceiling / 1e12:,.3g} TFLOP/s, a measured product of matrices", mfu >= 0.45)
    what = "3 times the images per second of the same arithmetic in eager TF32, ImageNet-64 size"
    if fast is None or eager is None:
        yield Aim(what, "", None)
    else:
        slow, quick = eager["rows"]["bare loop"]["images_per_second"], fast["rows"]["trainer"]["images_per_second"]
        yield Aim(what, f"{quick / slow:.2f} times ({quick:,.4g} and {slow:,.4g} a second)", quick >= 3 * slow)
    for network in NETWORKS:
        for how, bare in (("eager", "bare loop"), *((how, "bare loop, compiled") for how in ("fast", "graphs"))):
            what, made = f"trainer less than 3% above a bare loop: {network}, {how}", rows(found, f"{network}-{how}")
            if made is None:
                yield Aim(what, "", None)
            else:
                more = made["rows"]["trainer"]["cycle"] / made["rows"][bare]["cycle"] - 1
                yield Aim(what, f"{more:+.1%} of {made['rows'][bare]['cycle']:.1f} ms a cycle", more < 0.03)
    yield from generation_aims(found)
    verdicts = {name: v for name, v in found.get("tests", {}).get("tests", {}).items() if "waiting" in name}
    ran = [v for v in verdicts.values() if v != "skipped"]
    said = f"{ran.count('passed')} of {len(ran)} tests passed" if ran else ""
    yield Aim("no host synchronisation inside a turn", said, ran.count("failed") == 0 if ran else None)


def generation_aims(found: Found) -> Iterator[Aim]:
    """The smallest share of the bare network's throughput at the largest batch."""
    part = found.get("generation", {})
    for network in ("digits", "cifar10"):
        made = part.get("found", {}).get(f"{network}/results.json")
        for way in WAYS:
            what = f"{way} reaches 90% of the bare network: {network}"
            if made is None:
                yield Aim(what, "", None)
            else:
                batch = max(made, key=int)
                yield Aim(what, f"{made[batch][way]:.1%} at batch {batch}", made[batch][way] >= 0.9)


def report(found: Found) -> str:
    """Markdown, to be pasted into docs/benchmarks.md."""
    where = sorted({f"{part['date']}: {part['machine']}" for part in found.values()})
    lines = ["## On a GPU", "", "`make gpu` (`python tools/check_gpu.py`).", "", *where, ""]
    if any(part["small"] for part in found.values()):
        lines += ["**Made with --small, to try the command: nothing here is a measurement.**", ""]
    lines += ["| aim | measured | |", "|---|---|---|"]
    words = {True: "met", False: "**missed**", None: "not yet run"}
    lines += [f"| {aim.what} | {aim.measured} | {words[aim.met]} |" for aim in aims(found)]
    verdicts = found.get("tests", {}).get("tests", {})
    if verdicts:
        counts = {kind: list(verdicts.values()).count(kind) for kind in ("passed", "failed", "skipped")}
        lines += ["", "Tests marked gpu: " + ", ".join(f"{n} {kind}" for kind, n in counts.items()) + "."]
        lines += [f"* failed: `{name}`" for name, verdict in verdicts.items() if verdict == "failed"]
    for name, part in found.items():
        if part["tables"]:
            lines += ["", f"### {name}", "", *(f"`{command}`" for command in part["commands"]), "", *part["tables"]]
        if part["status"]:
            lines += ["", f"**{name} failed ({part['status']}):**", "", "```", *part["end"], "```"]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--parts", nargs="+", metavar="PART", help="some of them; all where not given")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="the smallest sizes, to try the command itself")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds of a part")
    options = parser.parse_args(arguments)
    options.out = options.out.absolute()
    commands = parts(options)
    unknown = sorted(set(options.parts or []) - set(commands))
    if unknown:
        parser.error(f"--parts are some of {', '.join(commands)}: got {', '.join(unknown)}")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.exit(1, "check_gpu needs a CUDA device, and torch finds none: run it on a machine that has one\n")
    file = options.out / "results.json"
    found: Found = json.loads(file.read_text()) if file.is_file() else {}
    failed = []
    for name in options.parts or commands:
        print(f"{name} ...", flush=True)
        found[name] = run(name, commands[name], options)
        found = {part: found[part] for part in commands if part in found}
        write_json(file, found)
        atomic_write(options.out / "report.md", report(found).encode())
        failed += [name] if found[name]["status"] else []
        print(f"{name}: {'failed' if found[name]['status'] else 'done'} in {found[name]['seconds']} s", flush=True)
    print(report(found))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
