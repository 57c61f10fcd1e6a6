"""The exported folder appears whole or not at all, says what is broken in it, and its card tells what was measured."""

import json
import shutil

import pytest
from cli_runs import fdistill, one_error_line, succeeds
from safetensors.torch import load_file, save_file

import fdistill.io.export.folder as folder_module
from fdistill.core.weight_files import CheckpointError
from fdistill.io.export import export_folder, model_card
from fdistill.io.load import load_model, read_folder
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import MLP
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.preconditioning import EDM


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def small():
    return GenerativeModel.student(Denoiser(MLP(width=8, depth=2), EDM(0.5)), 2.0, {"seed": 4})


def test_export_replaces_an_older_folder_completely(small, tmp_path):
    (tmp_path / "model" / "old").mkdir(parents=True)
    (tmp_path / "model" / "old" / "weights.bin").write_text("old")
    with pytest.raises(ValueError, match="old"):
        export_folder(small, tmp_path / "model")
    export_folder(small, tmp_path / "model", overwrite=True)
    assert content(tmp_path / "model").keys() == {
        "README.md",
        "denoiser.safetensors",
        "fdistill.json",
        "model/generator.py",
        "model_index.json",
        "pipeline.py",
    }


@pytest.mark.parametrize("exists", [False, True])
def test_a_failure_in_the_middle_leaves_the_old_folder_and_nothing_else(exists, small, tmp_path, monkeypatch):
    target = tmp_path / "model"
    if exists:
        export_folder(small, target)
        before = content(target)

    def full_disk(*_):
        raise OSError(28, "No space left on device", "README.md")

    monkeypatch.setattr(folder_module, "model_card", full_disk)
    with pytest.raises(OSError, match="left"):
        export_folder(small, target)
    assert [path.name for path in tmp_path.iterdir()] == (["model"] if exists else [])
    assert not exists or content(target) == before


def test_full_disk_is_one_line(student_checkpoint, tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device", "README.md")

    monkeypatch.setattr(folder_module, "model_card", full_disk)
    line = one_error_line(fdistill("export", student_checkpoint, tmp_path / "model"))
    assert line == f"cannot write {tmp_path / 'model'}: No space left on device; name a place that you may write to"
    assert list(tmp_path.iterdir()) == []


def test_target_that_is_a_file_or_below_one(student_checkpoint, tmp_path):
    (tmp_path / "file").write_text("keep me")
    line = one_error_line(fdistill("export", student_checkpoint, tmp_path / "file"))
    assert line == f"cannot write {tmp_path / 'file' / 'README.md'}: {tmp_path / 'file'} is a file; name another place"
    assert "is a file" in one_error_line(fdistill("export", student_checkpoint, tmp_path / "file" / "below"))
    assert (tmp_path / "file").read_text() == "keep me"


def test_exporting_a_folder_again_keeps_model_and_facts(exported, evaluation, tmp_path):
    succeeds("export", exported, tmp_path / "again", "--report", evaluation / "report.json")
    first, second = content(exported), content(tmp_path / "again")
    assert first.keys() == second.keys()
    same = first.keys() - {"README.md", "unet/config.json", "model_index.json"}
    assert [name for name in same if first[name] != second[name]] == []


def test_a_teacher_is_exported_and_used_as_a_teacher(teacher_checkpoint, tmp_path):
    out = succeeds("export", teacher_checkpoint, tmp_path / "teacher")
    assert "a teacher of 35 network evaluations per sample, loaded by fdistill" in out
    found, made = load_model(tmp_path / "teacher"), load_model(teacher_checkpoint)
    assert (found.kind, found.facts) == ("teacher", made.facts)
    assert (found.sample(found.noise(2, 0), found.labels(2)) == made.sample(made.noise(2, 0), made.labels(2))).all()


SPOILED = {
    "no weights": (lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").unlink(), "incomplete"),
    "weights cut in half": (
        lambda f: halve(f / "unet" / "diffusion_pytorch_model.safetensors"),
        "is truncated or no safetensors",
    ),
    "a weight too few": (
        lambda f: drop_one(f / "unet" / "diffusion_pytorch_model.safetensors"),
        r"1 tensors differ.*missing",
    ),
    "no index": (lambda f: (f / "model_index.json").unlink(), "there is no .*model_index.json"),
    "index cut in half": (lambda f: halve(f / "model_index.json"), "is no readable JSON"),
    "another pipeline": (
        lambda f: edit(f / "model_index.json", _class_name="DDPMPipeline"),
        "holds a DDPMPipeline: expected Cons",
    ),
    "another network": (
        lambda f: edit(f / "unet" / "config.json", _class_name="UNet1DModel"),
        "is of UNet1DModel: expected UNet2DM",
    ),
    "other widths": (lambda f: edit(f / "unet" / "config.json", block_out_channels=[8, 24]), "another architecture"),
    "impossible groups": (lambda f: edit(f / "unet" / "config.json", norm_num_groups=7), "is no student"),
    "features of others": (lambda f: edit(f / "unet" / "config.json", freq_shift="a"), "is no student|architecture"),
    "no unet config": (lambda f: (f / "unet" / "config.json").unlink(), "there is no .*config.json"),
    "another scheduler": (
        lambda f: edit(f / "scheduler" / "scheduler_config.json", sigma_min=0.002),
        "only sigma_min = 0",
    ),
    "no sigma_data": (lambda f: edit(f / "scheduler" / "scheduler_config.json", sigma_data=None), "sigma_data"),
    "impossible sigma_data": (
        lambda f: edit(f / "scheduler" / "scheduler_config.json", sigma_data=-1),
        "positive: got -1",
    ),
}


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def drop_one(path):
    weights = load_file(path)
    weights.pop("conv_in.weight")
    save_file(weights, path)


def edit(path, **changes):
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: entry for name, entry in value.items() if entry is not None}))


@pytest.mark.parametrize("how", SPOILED)
def test_spoiled_folder(how, exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "model")
    spoil, words = SPOILED[how]
    spoil(folder)
    with pytest.raises(CheckpointError, match=words) as error:
        read_folder(folder)
    assert "\n" not in str(error.value)
    one_error_line(fdistill("sample", "--checkpoint", folder, "--out", tmp_path / "out.png"))
    assert not (tmp_path / "out.png").exists()


def test_own_folder_with_spoiled_weights(small, tmp_path):
    folder = export_folder(small, tmp_path / "model")
    drop_name = next(iter(load_file(folder / "denoiser.safetensors")))
    weights = load_file(folder / "denoiser.safetensors")
    weights.pop(drop_name)
    save_file(weights, folder / "denoiser.safetensors")
    with pytest.raises(CheckpointError, match=f"{drop_name} missing"):
        read_folder(folder)
    halve(folder / "denoiser.safetensors")
    with pytest.raises(CheckpointError, match="truncated"):
        read_folder(folder)


def test_card_tells_measurement_teacher_divergence_and_seed(exported, evaluation, teacher_checkpoint):
    card = (exported / "README.md").read_text()
    report = json.loads((evaluation / "report.json").read_text())
    for row in ("student", "teacher", "floor"):
        assert f"| {report[row]['frechet_distance']:.3f} | {report[row]['precision']:.3f} |" in card
    assert "60 samples of each row against as many held-out real ones, mean of 2 draws, seed 0" in card
    assert f"- teacher: {teacher_checkpoint}\n" in card
    assert "- objective: FDistill(divergence=JensenShannon(), adversarial_weight=0.3" in card
    assert "\n- seed: 0\n" in card
    assert "- data: Digits(batch_size=16" in card
    assert card.startswith("---\nlibrary_name: diffusers\ntags:\n- one-step-generation")
    assert "10 classes, 1 network evaluation per sample" in card


def test_card_without_a_report_claims_nothing(small):
    card = model_card(small, "model", stock=False, report=None)
    assert "Nothing yet." in card
    assert "library_name: diffusers" not in card
    assert "|" not in card


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "there is no"),
        ("{", "is no readable JSON: expected a report.json of fdistill evaluate"),
        ("[]", "holds no JSON object: expected a report.json of fdistill evaluate, got list"),
        ("{}", "is no report of fdistill evaluate: it has no student row and facts"),
        ('{"student": 3, "student_facts": {}}', "is no report of fdistill evaluate"),
        ('{"student": {}, "student_facts": {"seed": 9}}', "measured another model than"),
    ],
)
def test_report_that_does_not_fit(text, words, student_checkpoint, tmp_path):
    if text is not None:
        (tmp_path / "report.json").write_text(text)
    before = sorted(path.name for path in tmp_path.iterdir())
    outcome = fdistill("export", student_checkpoint, tmp_path / "model", "--report", tmp_path / "report.json")
    assert words in one_error_line(outcome)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_missing_arguments():
    assert "required: checkpoint, folder" in one_error_line(fdistill("export"))


def test_weights_are_as_readable_as_the_card(exported, small, tmp_path):
    for folder in (exported, export_folder(small, tmp_path / "own")):
        assert len({path.stat().st_mode for path in folder.rglob("*") if path.is_file()}) == 1
