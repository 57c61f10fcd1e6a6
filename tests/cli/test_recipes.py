"""Published recipes as configurations: each says where it is from, builds on a tiny teacher and makes both turns."""

import pytest
import torch
import yaml
from cli_runs import CONFIGS

from fdistill.cli.fit import run_trainer
from fdistill.data.teacher_pairs import TeacherPairs
from fdistill.io.load import load_model
from fdistill.training import DistillationModule

RECIPES = sorted((CONFIGS / "recipes").glob("*.yaml"))


@pytest.fixture(scope="module")
def pairs(teacher_checkpoint, tmp_path_factory):
    """Four pairs that the tiny teacher did not make."""
    teacher = load_model(teacher_checkpoint)
    x = torch.zeros(4, *teacher.sample_shape)
    return TeacherPairs(x, x.clone(), torch.arange(4)).save(tmp_path_factory.mktemp("pairs") / "pairs.safetensors")


def tiny(recipe, teacher, pairs, folder):
    """Arguments that fit a recipe to the tiny teacher of digits, two turns of four samples."""
    text = recipe.read_text(encoding="utf-8")
    flags = ["--config", CONFIGS / "trainer.yaml", "--config", recipe, f"--model.teacher={teacher}"]
    flags += ["--data=Digits"] if "ImageFolder" in text else ["--data.sample_shape=[1,8,8]", "--data.num_classes=10"]
    flags += [f"--model.pairs={pairs}"] if "pairs" in text else []
    trainer = {
        "accelerator": "cpu",
        "max_steps": 2,
        "limit_val_batches": 0,
        "log_every_n_steps": 1,
        "logger": "false",
        "enable_progress_bar": "false",
        "enable_checkpointing": "false",
        "callbacks": "[]",
        "default_root_dir": folder,
    }
    flags += [f"--trainer.{name}={value}" for name, value in trainer.items()]
    return [str(flag) for flag in [*flags, "--model.fake_updates_per_student=1", "--data.batch_size=4"]]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_makes_a_turn_of_each_side_with_a_tiny_teacher(recipe, teacher_checkpoint, pairs, tmp_path):
    cli = run_trainer(tiny(recipe, teacher_checkpoint, pairs, tmp_path), run=False)
    assert isinstance(cli.model, DistillationModule)
    before = {name: p.detach().clone() for name, p in cli.model.named_parameters()}
    cli.trainer.fit(cli.model, cli.datamodule)
    moved = {name.split(".")[0] for name, p in cli.model.named_parameters() if not torch.equal(p, before[name])}
    sides = {"student", "fake_score", "ema"} | ({"ratio"} if cli.model.objective.needs.discriminator else set())
    assert moved == sides
    assert cli.model.updates == 1


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_says_that_it_was_not_run_here_and_where_it_is_from(recipe):
    lines = recipe.read_text(encoding="utf-8").splitlines()
    comment = [line.removeprefix("# ") for line in lines if line.startswith("# ")]
    text = " ".join(comment)
    assert lines[len(comment)] == "trainer:"
    assert text.startswith("NOT RUN HERE")
    assert " Source: " in text
    assert " Differences: " in text or " Ours: " in text or " are ours" in text


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_writes_into_a_folder_of_its_own_and_ends_with_a_turn_of_the_student(recipe):
    config = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    cycle = config["model"]["init_args"]["fake_updates_per_student"] + 1
    assert config["trainer"]["default_root_dir"] == f"runs/recipes/{recipe.stem}"
    assert config["trainer"]["max_steps"] % cycle == 0


def test_data_free_methods_ask_for_no_data():
    data_free = {path.stem for path in RECIPES if "LatentsOnly" in path.read_text(encoding="utf-8")}
    assert data_free == {"cifar10_diff_instruct", "cifar10_dmd", "cifar10_sid", "cifar10_sim", "imagenet64_sid"}
