"""Training through the command line: what a run leaves, objectives and divergences by flag, composed configurations."""

import inspect
import json

import pytest
import torch
import yaml
from cases import slow_but
from cli_runs import CONFIGS, fdistill, last, student_arguments, succeeds, teacher_arguments, write_yaml
from PIL import Image

from fdistill.cli.fit import run_trainer
from fdistill.data.teacher_pairs import TeacherPairs
from fdistill.objectives import Adversarial, Objective
from fdistill.theory.divergences import FDivergence


def concrete(base):
    below = [found for sub in base.__subclasses__() for found in concrete(sub)]
    return below if inspect.isabstract(base) else [base, *below]


def shipped(base):
    room = base.__module__.rpartition(".")[0]
    return {found.__name__: found for found in concrete(base) if found.__module__.startswith(room)}


DIVERGENCES, OBJECTIVES = shipped(FDivergence), shipped(Objective)
ARGUMENTS = {  # of objectives that have no default for them
    "FDistill": {"divergence": "JensenShannon"},
    "BregmanMatching": {"divergence": "BregmanLogistic"},
    "UniInstruct": {"divergence": "ForwardKL"},
    "RewardAugmented": {
        "objective": "SiD",
        "reward": {"class_path": "TargetReward", "init_args": {"target": 0.0}},
        "beta": 0.1,
    },
    "TiltedTeacher": {
        "objective": "DMD2",
        "reward": {"class_path": "TargetReward", "init_args": {"target": 0.0}},
        "beta": 0.1,
    },
    "MongeRegularised": {"objective": "DiffInstruct", "weight": 0.1},
    "WarmStarted": {"objective": "SiDA", "first": "DiffInstruct", "updates": 2},
}


def built(arguments):
    """The module that arguments of fit build, without training."""
    return run_trainer([str(argument) for argument in arguments[1:]], run=False).model


def test_run_folder_holds_config_checkpoint_log_and_pictures(student_run):
    files = {str(path.relative_to(student_run)) for path in student_run.rglob("*") if path.is_file()}
    pictures = {"samples/0000006.png", "samples/0000012.png"}
    assert files == {"config.yaml", "checkpoints/last.ckpt", "metrics.jsonl", *pictures}
    assert all(Image.open(student_run / picture).size > (100, 50) for picture in pictures)


def test_log_has_one_line_a_turn_with_the_documented_names(student_run):
    lines = [json.loads(line) for line in (student_run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(12))
    documented = {"loss/student", "loss/fake_score", "loss/discriminator", "ratio/log_mean", "ratio/clipped_fraction"}
    documented |= {
        "ratio/ess",
        "weight/mean",
        "weight/max",
        "grad_norm/student",
        "perf/images_per_second",
        "perf/step_ms",
    }
    assert documented <= set(lines[-1])


def test_saved_config_is_resolved_and_trains_the_same_again(teacher_run, tmp_path):
    saved = yaml.safe_load((teacher_run / "config.yaml").read_text())
    assert "${" not in json.dumps(saved)
    succeeds("fit", "--config", teacher_run / "config.yaml", "--trainer.default_root_dir", tmp_path / "again")
    again, first = (torch.load(last(f), weights_only=True)["state_dict"] for f in (tmp_path / "again", teacher_run))
    assert all(torch.equal(again[name], first[name]) for name in first)


def test_checkpoint_is_plain_and_holds_no_teacher(student_checkpoint):
    checkpoint = torch.load(student_checkpoint, weights_only=True)
    roles = {name.split(".")[0] for name in checkpoint["state_dict"]}
    assert roles == {"student", "fake_score", "ema", "ratio"}


def test_exported_generator_is_the_average_alone(student_checkpoint):
    checkpoint = torch.load(student_checkpoint, weights_only=True)
    average = {name for name in checkpoint["state_dict"] if name.startswith("ema.average.")}
    assert average == {f"ema.average.{n[8:]}" for n in checkpoint["state_dict"] if n.startswith("student.")}


@pytest.mark.parametrize("name", slow_but(sorted(DIVERGENCES), *sorted(DIVERGENCES)[:4]))
def test_every_divergence_is_one_flag(name, teacher_checkpoint, tmp_path):
    flags = [f"--model.objective.divergence={name}", "--model.objective.adversarial_weight=0"]
    module = built(student_arguments(tmp_path / "run", teacher_checkpoint, *flags))
    assert type(module.objective.divergence) is DIVERGENCES[name]
    assert (module.ratio is not None) == module.objective.divergence.needs_ratio


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A file of pairs of digits; nobody made them."""
    x = torch.zeros(10, 1, 8, 8)
    return TeacherPairs(x, x.clone(), torch.arange(10)).save(tmp_path_factory.mktemp("pairs") / "pairs.safetensors")


@pytest.mark.parametrize("name", slow_but(sorted(OBJECTIVES), *sorted(OBJECTIVES)[::4]))
def test_every_objective_is_one_flag(name, teacher_checkpoint, pairs, tmp_path):
    flag = json.dumps({"class_path": name, "init_args": ARGUMENTS[name]}) if name in ARGUMENTS else name
    also = {"DMD": [f"--model.pairs={pairs}"], "DiversityPreserving": ["--model.renoise_levels=[0.5]"]}
    flags = [f"--model.objective={flag}", *also.get(name, [])]
    module = built(student_arguments(tmp_path / "run", teacher_checkpoint, *flags))
    assert type(module.objective) is OBJECTIVES[name]
    assert (module.fake_score is None) == (OBJECTIVES[name] is Adversarial)
    assert (module.ratio is not None) == module.objective.needs.discriminator


def test_an_objective_keeps_what_the_file_says_of_it_and_takes_the_rest_by_flag(teacher_checkpoint, tmp_path):
    flags = ["--model.objective=UniInstruct", "--model.objective.clip=2"]
    objective = built(student_arguments(tmp_path / "run", teacher_checkpoint, *flags)).objective
    assert type(objective.divergence).__name__ == "JensenShannon"
    assert objective.clip == 2


def test_a_schedule_is_given_like_a_number(teacher_checkpoint, tmp_path):
    flag = "--model.objective.adversarial_weight"
    flags = [f"{flag}=Linear", f"{flag}.start=0", f"{flag}.end=0.3", f"{flag}.updates=10"]
    weight = built(student_arguments(tmp_path / "run", teacher_checkpoint, *flags)).objective.adversarial_weight
    assert weight.at(5) == pytest.approx(0.15)


def test_a_student_of_two_steps_is_one_flag(teacher_checkpoint, tmp_path):
    module = built(student_arguments(tmp_path / "run", teacher_checkpoint, "--model.renoise_levels=[0.8]"))
    assert module.generative_model().sigmas.tolist() == [5.0, 0.8]


def test_divergence_takes_its_argument_by_flag(teacher_checkpoint, tmp_path):
    flags = ["--model.objective.divergence=AlphaDivergence", "--model.objective.divergence.alpha=2"]
    assert built(student_arguments(tmp_path / "run", teacher_checkpoint, *flags)).objective.divergence.alpha == 2


def test_reverse_kl_without_adversarial_term_has_no_discriminator(teacher_checkpoint, tmp_path):
    flags = ["--model.objective.divergence=ReverseKL", "--model.objective.adversarial_weight=0"]
    module = built(student_arguments(tmp_path / "run", teacher_checkpoint, *flags))
    assert module.ratio is None
    assert {name.split(".")[0] for name, _ in module.named_parameters()} == {"teacher", "student", "fake_score", "ema"}


def test_references_between_files_resolve_after_overrides(tmp_path):
    more = write_yaml(
        tmp_path / "more.yaml",
        model={"init_args": {"preconditioning": {"init_args": {"sigma_data": "${model.init_args.sigma_data}"}}}},
    )
    arguments = teacher_arguments(tmp_path / "run", "--config", more, "--model.sigma_data=0.625")
    assert built(arguments).denoiser.preconditioning.sigma_data == 0.625


def test_print_config_prints_yaml_and_runs_nothing(tmp_path):
    arguments = teacher_arguments(tmp_path / "run", "--print_config")
    shown = yaml.safe_load(succeeds(*arguments))
    assert shown["model"]["class_path"] == "fdistill.training.TeacherModule"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("verb", "run"),
    [("validate", "student_run"), ("test", "teacher_run"), ("predict", "student_run"), ("predict", "teacher_run")],
)
def test_other_trainer_commands_run_and_leave_the_run_folder_alone(verb, run, request):
    folder = request.getfixturevalue(run)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    flags = ["--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1", "--trainer.limit_predict_batches=1"]
    out = succeeds(verb, "--config", folder / "config.yaml", "--ckpt_path", last(folder), *flags)
    assert verb == "predict" or "validation/" in out
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_validation_uses_the_given_checkpoint(student_run, tmp_path):
    arguments = ["--config", student_run / "config.yaml", "--trainer.limit_val_batches=1"]
    trained = succeeds("validate", *arguments, "--ckpt_path", "last")
    fresh = succeeds("validate", *arguments)
    assert trained != fresh


@pytest.mark.parametrize("config", sorted(CONFIGS.rglob("*/*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_parses(config):
    if "class_path" not in (yaml.safe_load(config.read_text(encoding="utf-8")).get("model") or {}):
        pytest.skip("a part of a configuration")
    outcome = fdistill("fit", "--config", CONFIGS / "trainer.yaml", "--config", config, "--print_config")
    assert outcome.status == 0, outcome.err


def test_seed_everything_is_the_seed_of_model_and_data(tmp_path):
    cli = run_trainer([str(a) for a in teacher_arguments(tmp_path / "run", "--seed_everything=7")[1:]], run=False)
    assert (cli.model.seed, cli.datamodule.seed) == (7, 7)


def test_progress_bar_is_switched_off_by_one_flag(tmp_path):
    arguments = ["fit", "--config", CONFIGS / "trainer.yaml", "--config", CONFIGS / "quickstart" / "teacher.yaml"]
    flags = ["--trainer.max_steps=2", "--trainer.accelerator=cpu", "--trainer.default_root_dir"]
    assert "Teacher:" in succeeds(*arguments, *flags, tmp_path / "a")
    assert "Teacher:" not in succeeds(*arguments, *flags, tmp_path / "b", "--trainer.enable_progress_bar=false")
