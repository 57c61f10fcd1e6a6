"""Published recipes as configurations: each says where it is from, builds on a tiny teacher and makes both turns."""

import functools

import pytest
import torch
import yaml
from cases import slow_but
from cli_runs import CONFIGS

from fdistill.cli.fit import run_trainer
from fdistill.data.teacher_pairs import TeacherPairs
from fdistill.io.export import export_folder
from fdistill.io.export.stock_text import scheduled
from fdistill.io.load import load_model
from fdistill.training import DistillationModule

RECIPES = sorted((CONFIGS / "recipes").glob("*.yaml"))
OF_TEXT = {  # the tiny pipeline that stands for its teacher
    "flux_dmd2": "flux",
    "pixart_dmd": "pixart",
    "qwen_image_dmd2": "qwen-image",
    "sana_sprint_like": "sana",
    "sd15_dmd2": "sd",
    "sd15_f_distill": "sd",
    "sd15_sid_lsg": "sd",
    "sd35m_dmd": "sd3",
    "sdxl_dmd2_1step": "sdxl",
    "sdxl_dmd2_4step": "sdxl",
    "style_lora": "sd",
}
REWARDED = {"flux_reward": "flux", "sd15_reward": "sd"}
OF_CLASSES = [path for path in RECIPES if path.stem not in OF_TEXT | REWARDED]


@pytest.fixture(scope="module")
def pairs(teacher_checkpoint, tmp_path_factory):
    """Four pairs that the tiny teacher did not make."""
    teacher = load_model(teacher_checkpoint)
    x = torch.zeros(4, *teacher.sample_shape)
    return TeacherPairs(x, x.clone(), torch.arange(4)).save(tmp_path_factory.mktemp("pairs") / "pairs.safetensors")


def tiny(recipe, teacher, pairs, folder):
    """Arguments that fit a recipe to the tiny teacher of digits, two turns of four samples."""
    text = recipe.read_text(encoding="utf-8")
    flags = ["--data=Digits"] if "ImageFolder" in text else ["--data.sample_shape=[1,8,8]", "--data.num_classes=10"]
    flags += [f"--model.pairs={pairs}"] if "pairs" in text else []
    return [*short(recipe, teacher, folder, 2), *flags, "--data.batch_size=4"]


def short(recipe, teacher, folder, turns):
    """Arguments of a recipe with a teacher, in a few turns of either side."""
    flags = ["--config", CONFIGS / "trainer.yaml", "--config", recipe, f"--model.teacher={teacher}"]
    trainer = {
        "accelerator": "cpu",
        "max_steps": turns,
        "limit_val_batches": 0,
        "log_every_n_steps": 1,
        "logger": "false",
        "enable_progress_bar": "false",
        "enable_checkpointing": "false",
        "callbacks": "[]",
        "default_root_dir": folder,
    }
    flags += [f"--trainer.{name}={value}" for name, value in trainer.items()]
    flags += [] if recipe.stem in REWARDED else ["--model.fake_updates_per_student=1"]
    return [str(flag) for flag in flags]


def run_and_compare(cli, data):
    """Train; the roles of which some weight moved."""
    before = {name: p.detach().clone() for name, p in cli.model.named_parameters()}
    cli.trainer.fit(cli.model, data)
    assert all(bool(p.isfinite().all()) for p in cli.model.parameters())
    return {name.split(".")[0] for name, p in cli.model.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_without_real_samples_does_not_validate(recipe):
    """The runs below never do."""
    asked = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    if asked.get("data", {}).get("class_path") in ("Prompts", "LatentsOnly"):
        assert asked["trainer"]["limit_val_batches"] == 0


@pytest.mark.parametrize("recipe", OF_CLASSES, ids=lambda path: path.stem)
def test_recipe_makes_a_turn_of_each_side_with_a_tiny_teacher(recipe, teacher_checkpoint, pairs, tmp_path):
    cli = run_trainer(tiny(recipe, teacher_checkpoint, pairs, tmp_path), run=False)
    assert isinstance(cli.model, DistillationModule)
    assert run_and_compare(cli, cli.datamodule) == sides_of(cli.model)
    assert cli.model.updates == 1


def sides_of(module):
    """What a run of both sides moves."""
    return {"student", "fake_score", "ema"} | ({"ratio"} if module.objective.needs.discriminator else set())


@pytest.fixture(scope="module")
def text_teachers(folders, tmp_path_factory):
    """By family: the folder of a tiny teacher, a file of its pairs, and data of its prompts."""
    from text_teachers import teacher_and_prompts  # imports diffusers' pipelines

    def made(name):
        root = tmp_path_factory.mktemp(name)
        teacher, prompts = teacher_and_prompts(folders(name)[0], name)
        teacher.guidance = 8.0 if name == "sdxl" else teacher.guidance  # of its recipe, which its pairs are for
        pairs = root / "pairs.safetensors"
        if name == "sdxl":
            TeacherPairs.make(teacher, 4, 0, condition=prompts.condition).save(pairs)
        return export_folder(teacher, root / "teacher"), pairs, prompts

    return functools.cache(made)


QUICK = ("qwen_image_dmd2", "sdxl_dmd2_1step")


@pytest.mark.system
@pytest.mark.parametrize("name", slow_but(OF_TEXT, *QUICK))
def test_recipe_of_text_makes_three_turns_with_the_tiny_pipeline_of_its_family(name, text_teachers, tmp_path):
    teacher, pairs, prompts = text_teachers(OF_TEXT[name])
    recipe = CONFIGS / "recipes" / f"{name}.yaml"
    text = recipe.read_text(encoding="utf-8")
    flags = short(recipe, teacher, tmp_path, 3)
    flags += [f"--data.{given}=nowhere" for given in ("folder", "prompts") if given == "folder" or "Prompted" in text]
    flags += ["--model.roles.rank=2"] if "SharedBase" in text else []
    flags += ["--model.feature_blocks=[0,1]"] if "feature_blocks" in text else []
    flags += [f"--model.pairs={pairs}"] if "--model.pairs" in text else []
    cli = run_trainer(flags, run=False)
    assert type(cli.datamodule).__name__ == ("PromptedLatents" if cli.model.objective.needs.real else "Prompts")
    assert run_and_compare(cli, prompts) == sides_of(cli.model)
    assert cli.model.updates == 1
    assert scheduled(cli.model.generative_model()).name  # a stock scheduler makes its steps


@pytest.mark.system
@pytest.mark.parametrize("name", slow_but(REWARDED))
def test_recipe_of_a_reward_tunes_the_tiny_pipeline_of_its_family_for_three_turns(name, text_teachers, tmp_path):
    teacher, _, prompts = text_teachers(REWARDED[name])
    flags = short(CONFIGS / "recipes" / f"{name}.yaml", teacher, tmp_path, 3)
    few = ["--model.algorithm.group=2", "--model.algorithm.updates=2", "--data.folder=nowhere"]
    few += ["--model.roles.rank=2"] if name == "flux_reward" else []
    cli = run_trainer([*flags, *few, "--trainer.val_check_interval=null"], run=False)
    assert run_and_compare(cli, prompts) == {"denoiser", "ema"}
    assert cli.trainer.global_step == 3
    assert cli.model.generative_model().kind == "teacher"


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
    cycle = config["model"]["init_args"].get("fake_updates_per_student", 0) + 1
    assert config["trainer"]["default_root_dir"] == f"runs/recipes/{recipe.stem}"
    assert config["trainer"]["max_steps"] % cycle == 0


def test_data_free_methods_ask_for_no_data():
    data_free = {path.stem for path in RECIPES if "LatentsOnly" in path.read_text(encoding="utf-8")}
    assert data_free == {"cifar10_diff_instruct", "cifar10_dmd", "cifar10_sid", "cifar10_sim", "imagenet64_sid"}
