"""tools/kinetic_path.py writes a path that configurations, grids and the command line take as it is."""

import json
import math

import kinetic_path as tool
import pytest
import torch
import yaml
from cli_runs import CONFIGS, succeeds
from tiny_runs import GivenData, exact
from torch.testing import assert_close

from fdistill.cli.fit import run_trainer
from fdistill.sampling.generator import GenerativeModel
from fdistill.sampling.grids import PathGrid, SamplingGrid
from fdistill.theory.paths import KineticOptimal
from fdistill.theory.paths import Path as GaussianPath


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What the tool makes of an exact teacher of two points in the plane: the folder."""
    folder = tmp_path_factory.mktemp("kinetic")
    teacher = exact([[-1.0, -1.0], [1.0, 1.0]], [0.1, 0.1])
    x = teacher.network.sample(300, torch.Generator().manual_seed(0))[0]
    patch = pytest.MonkeyPatch()
    patch.setattr(tool, "load_model", lambda path: GenerativeModel.teacher(teacher, 8, 0.002, 80.0))
    patch.setattr(tool, "remembered_data", lambda facts: GivenData(x))
    patch.setattr(tool, "REFERENCE_STEPS", 30)
    given = ["teacher.ckpt", "--angles", "12", "--draws", "2", "--repeats", "1", "--steps", "4", "8", "--out"]
    patch.setattr("sys.argv", ["kinetic_path.py", *given, str(folder)])
    tool.main()
    patch.undo()
    return folder


def described(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_path_and_the_grid_are_written_as_they_were_used(written):
    path = GaussianPath.from_spec(described(written / "path.yaml"))
    grid = SamplingGrid.from_spec(described(written / "grid.yaml"))
    assert isinstance(path, KineticOptimal)
    assert torch.equal(grid.levels(), PathGrid(path, 8, 80.0).levels())
    report = json.loads((written / "results.json").read_text(encoding="utf-8"))
    assert report["energies"]["kinetic optimal"] == pytest.approx(path.energy, rel=0.01)  # but for the first sigma_min
    assert min(report["energies"], key=report["energies"].get) == "kinetic optimal"
    assert (written / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_every_grid_is_judged_at_as_many_steps_and_more_steps_come_closer_to_the_ode(written):
    rows = json.loads((written / "results.json").read_text(encoding="utf-8"))["rows"][1:]
    off = {(row["sampler"], row["grid"], row["steps"]): row["distance_to_ode"] for row in rows}
    assert len(off) == 2 * 3 * 2
    assert all(off[sampler, grid, 8] < off[sampler, grid, 4] for sampler, grid, _ in off)
    assert all(row["evaluations"] in (row["steps"], 2 * row["steps"] - 1) for row in rows)
    table = (written / "table.md").read_text(encoding="utf-8")
    assert all(f"| {row['sampler']} | {row['steps']} | {row['evaluations']} | {row['grid']} |" in table for row in rows)


def test_energies_are_those_of_data_of_unit_power():
    table = KineticOptimal([0.0], [1.0], 0.3)
    found = tool.energies(table, 1e-6)
    assert found["rectified flow"] == pytest.approx(2, rel=1e-4)
    assert found["cosine"] == pytest.approx(math.pi**2 / 4, rel=1e-4)


def test_grids_of_the_tool_start_and_end_at_the_same_levels():
    for grid in tool.grids(KineticOptimal([0.2, 1.0], [0.3, 0.9], 0.5), 6, 0.01, 50.0).values():
        assert len(grid.levels()) == 7
        assert_close(grid.levels()[[0, -1]], torch.tensor([50.0, 0.0], dtype=torch.float64))


def test_the_configuration_trains_and_samples_on_one_path(tmp_path, written):
    arguments = ["--config", CONFIGS / "trainer.yaml", "--config", CONFIGS / "benchmarks" / "kinetic.yaml"]
    arguments += ["--trainer.default_root_dir", tmp_path]
    module = run_trainer([str(argument) for argument in arguments], run=False).model
    path = module.denoiser.preconditioning.path
    assert isinstance(path, KineticOptimal)
    assert module.noise_levels.path.spec() == path.spec()
    assert torch.equal(module.generative_model().sigmas, PathGrid(path, 18, 80.0).levels())
    own = "--model.init_args.preconditioning.init_args.path"
    again = run_trainer([*map(str, arguments), own, str(written / "path.yaml")], run=False).model
    assert again.denoiser.preconditioning.path.spec() == described(written / "path.yaml")


def test_the_command_line_samples_a_teacher_on_the_written_grid(written, teacher_checkpoint, tmp_path):
    given = ["--checkpoint", teacher_checkpoint, "--n", 2, "--out", tmp_path / "samples.npz"]
    said = succeeds("sample", *given, "--grid", written / "grid.yaml", "--sampler", "Euler")
    assert "of 8 network evaluations each" in said
