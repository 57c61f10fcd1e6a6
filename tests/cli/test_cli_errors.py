"""A user error in training is one line on stderr that names the rule, the value and the remedy, and leaves nothing."""

import pytest
import torch
import yaml
from cli_runs import (
    CONFIGS,
    fdistill,
    last,
    one_error_line,
    student_arguments,
    teacher_arguments,
    write_yaml,
)
from PIL import Image

from fdistill.cli.fit import run_trainer
from fdistill.training import NonFiniteError

TEACHER = {  # what a configuration file says wrongly, and words of the line that explains it
    "key at the top": ({"modle": 3}, "did you mean model?"),
    "key of the trainer": ({"trainer": {"max_step": 5}}, "did you mean trainer.max_steps?"),
    "key of the model": (
        {"model": {"init_args": {"sigma_dta": 1}}},
        "'sigma_dta' is not accepted; did you mean sigma_data?",
    ),
    "key of the network": (
        {"model": {"init_args": {"network": {"init_args": {"width": [8]}}}}},
        "did you mean widths? expected one of resolution,",
    ),
    "key of the optimiser": (
        {"model": {"init_args": {"optimizer": {"init_args": {"lrr": 1}}}}},
        "did you mean lr? expected one of lr, betas",
    ),
    "key of the data": ({"data": {"init_args": {"batchsize": 1}}}, "did you mean batch_size?"),
    "class of the model": ({"model": {"class_path": "TecherModule"}}, "TecherModule; did you mean TeacherModule?"),
    "class of the network": (
        {"model": {"init_args": {"network": {"class_path": "DiffuserUNet"}}}},
        "DiffuserUNet; did you mean DiffusersUNet?",
    ),
    "class of the optimiser": (
        {"model": {"init_args": {"optimizer": {"class_path": "torch.optim.AdamWW"}}}},
        "did you mean AdamW?",
    ),
    "class of the logger": ({"trainer": {"logger": {"class_path": "JsonLogger"}}}, "did you mean JsonlLogger?"),
    "class of a callback": (
        {"trainer": {"callbacks": [{"class_path": "SamplGrid"}]}},
        "SamplGrid; did you mean SampleGrid?",
    ),
    "class of the wrong kind": (
        {"model": {"init_args": {"network": {"class_path": "fdistill.theory.preconditioning.EDM"}}}},
        "fdistill.theory.preconditioning.EDM does not",
    ),
    "reference to nothing": ({"model": {"init_args": {"sigma_data": "${data.nothing}"}}}, "data.nothing"),
    "reference that is torn": ({"model": {"init_args": {"sigma_data": "${data.seed"}}}, "data.seed"),
    "text for a number": ({"model": {"init_args": {"sigma_data": "wide"}}}, "number, got wide"),
    "text for a learning rate": ({"model": {"init_args": {"optimizer": {"init_args": {"lr": "abc"}}}}}, "number"),
    "text for a count": ({"trainer": {"max_steps": "many"}}, "number, got many"),
    "resolution that cannot be halved": (
        {"model": {"init_args": {"network": {"init_args": {"resolution": 7}}}}},
        "a UNet of 2 levels halves the image 1 times: expected a resolution divisible by 2, got 7",
    ),
    "resolution that is not the data's": (
        {"model": {"init_args": {"network": {"init_args": {"resolution": 16}}}}},
        "denoiser makes samples of (1, 16, 16), the data has (1, 8, 8)",
    ),
    "classes that are not the data's": (
        {"model": {"init_args": {"network": {"init_args": {"num_classes": 7}}}}},
        "denoiser takes labels (7 classes), the data has labels (10 classes)",
    ),
    "batch of nothing": ({"data": {"init_args": {"batch_size": 0}}}, "expected batch_size >= 1, got 0"),
    "no such accelerator": ({"trainer": {"accelerator": "abacus"}}, "`accelerator='abacus'`"),
}

STUDENT = {
    "divergence with a typo": (
        "--model.objective.divergence=JensenShanon",
        "JensenShanon; did you mean JensenShannon? expected one of ",
    ),
    "divergence's argument": ("--model.objective.divergence.skw=0.5", "it takes none"),
    "divergence outside the objective": ("--model.divergence=ReverseKL", "did you mean objective.divergence?"),
    "objective with a typo": ("--model.objective=FDistil", "FDistil; did you mean FDistill? expected one of "),
    "objective's argument": ("--model.objective.adversarial_wieght=0.5", "did you mean adversarial_weight?"),
    "objective without its argument": ("--model.objective=WarmStarted", "objective, first, updates"),
    "schedule with a typo": (
        "--model.objective.adversarial_weight=Linaer",
        "Linaer; did you mean Linear? expected one of Balance, Cosine, Exponential, Linear, Steps",
    ),
    "balance with a typo": ("--model.objective.adversarial_weight=Ballance", "Ballance; did you mean Balance?"),
    "balance of nothing": (
        '--model.objective.adversarial_weight={"class_path": "Balance", "init_args": {"share": 0}}',
        "share is finite and above 0: got 0.0; leave the term out by adversarial_weight 0",
    ),
    "schedule over no updates": (
        "--model.objective.adversarial_weight="
        '{"class_path": "Linear", "init_args": {"start": 1, "end": 0, "updates": 0}}',
        "Linear takes updates >= 1 after delay >= 0: got updates 0, delay 0",
    ),
    "schedule without its arguments": ("--model.objective.adversarial_weight=Linear", "start, end, updates"),
    "objective without a discriminator": (
        "--model.discriminator=none",
        "FDistill needs the density ratio: set discriminator to teacher, fake_score or sample, got none",
    ),
    "objective without pairs": ("--model.objective=DMD", "DMD needs pairs of the teacher's ODE: make them with"),
    "pairs that are not there": ("--model.pairs=nowhere.safetensors", "FDistill reads no pairs: leave pairs out"),
    "levels that rise": ("--model.renoise_levels=[0.5,0.8]", "positive numbers that fall from sigma_init 5.0, got"),
    "callback's argument": (
        '--trainer.callbacks+={"class_path": "SampleGrid", "init_args": {"every_n_turns": "often"}}',
        "number, got often",
    ),
    "turn": ("--model.turn=fusd", "['fused', 'alternating'], got fusd"),
    "sigma_init of zero": (
        "--model.sigma_init=0",
        "sigma_init is the noise level the student starts from and positive: got 0.0",
    ),
    "sigma_init below zero": ("--model.sigma_init=-1", "positive: got -1.0"),
    "missing teacher": ("--model.teacher=nowhere.ckpt", "no checkpoint at nowhere.ckpt: expected a .ckpt file or"),
    "checkpoint from the net": ("--ckpt_path=https://example.com/a.ckpt", "no checkpoint at https:"),
    "unknown option": ("--model.sigma_int=3", "did you mean sigma_init?"),
    "unknown option of the trainer": ("--trainer.max_stps=3", "did you mean trainer.max_steps?"),
    "missing configuration": ("--config=nowhere.yaml", "there is no configuration file"),
}


@pytest.mark.parametrize("mistake", TEACHER)
def test_mistake_in_a_file(mistake, tmp_path):
    content, words = TEACHER[mistake]
    wrong = write_yaml(tmp_path / "wrong.yaml", **content)
    line = one_error_line(fdistill(*teacher_arguments(tmp_path / "run", "--config", wrong)))
    assert words in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mistake", STUDENT)
def test_mistake_in_an_option(mistake, teacher_checkpoint, tmp_path):
    flag, words = STUDENT[mistake]
    line = one_error_line(fdistill(*student_arguments(tmp_path / "run", teacher_checkpoint, flag)))
    assert words in line
    assert not (tmp_path / "run").exists()


def test_divergence_may_be_a_users_own_as_soon_as_it_is_imported(teacher_checkpoint, tmp_path, monkeypatch):
    (tmp_path / "my_divergences.py").write_text(
        "from fdistill.theory.divergences import FDivergence\n\n"
        "class Bhattacharyya(FDivergence):\n    def f(self, r):\n        return -r.sqrt().log()\n"
    )
    fit = student_arguments(tmp_path / "run", teacher_checkpoint, "--print_config")
    monkeypatch.syspath_prepend(tmp_path)
    wrong, right = (
        fdistill("--import", "my_divergences", *fit, f"--model.objective.divergence={name}")
        for name in ("Bhattacharya", "Bhattacharyya")
    )
    assert "did you mean Bhattacharyya? expected one of AlphaDivergence, AnnealedAlpha, Bhattacharyya," in wrong.err
    assert len(wrong.err.splitlines()) == 1
    objective = yaml.safe_load(right.out)["model"]["init_args"]["objective"]
    assert objective["init_args"]["divergence"] == {"class_path": "my_divergences.Bhattacharyya"}


def test_an_objective_by_flag_without_what_it_needs(teacher_checkpoint, tmp_path):
    student = CONFIGS / "quickstart" / "student.yaml"
    content = yaml.safe_load(student.read_text())
    del content["model"]["init_args"]["objective"]
    without = write_yaml(tmp_path / "student.yaml", **content)
    arguments = student_arguments(tmp_path / "run", teacher_checkpoint, "--model.objective=FDistill")
    line = one_error_line(fdistill(*[without if argument == student else argument for argument in arguments]))
    assert "(FDistill): the following arguments are required: divergence" in line


@pytest.mark.parametrize(
    ("option", "words"),
    [("every_n_turns=often", "number, got often"), ("every_n_trns=3", "did you mean every_n_turns?")],
)
def test_mistake_in_an_option_of_a_callback_added_by_flag(option, words, tmp_path):
    flags = ["--trainer.callbacks+=SampleGrid", f"--trainer.callbacks.{option}"]
    line = one_error_line(fdistill(*teacher_arguments(tmp_path / "run", *flags)))
    assert words in line
    assert "Callback)" not in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1\nb: {\n", "is no valid YAML"),
        ("- 1\n- 2\n", "is no configuration: expected a mapping (trainer, model, data), got list"),
        ("\xff\x00", "is no valid YAML"),
        ("model: {class_path: TeacherModule}\n", "network, preconditioning,"),
    ],
)
def test_broken_file(text, words, tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_bytes(text.encode("latin-1"))
    line = one_error_line(fdistill("fit", "--config", path, "--data=Digits"))
    assert words in line


def test_nothing_to_train():
    assert "--config FILE" in one_error_line(fdistill("fit"))


@pytest.fixture
def pictures(tmp_path):
    """A folder of eight 8x8 pictures, and the arguments to train on it."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(8):
        Image.new("L", (8, 8), 30 * i).save(folder / f"{i}.png")
    data = {"class_path": "ImageFolder", "init_args": {"folder": str(folder), "resolution": 8, "channels": 1}}
    config = write_yaml(tmp_path / "pictures.yaml", data=data)
    flags = ["--config", config, "--model.network.init_args.num_classes=0", "--data.batch_size=4"]
    return folder, teacher_arguments(tmp_path / "run", *flags)


def test_pictures_train(pictures):
    assert fdistill(*pictures[1]).status == 0


def test_empty_folder_of_pictures(pictures, tmp_path):
    folder, arguments = pictures
    for path in folder.iterdir():
        path.unlink()
    assert "folder holds images" in one_error_line(fdistill(*arguments))
    assert not (tmp_path / "run").exists()


def test_broken_picture(pictures, tmp_path):
    folder, arguments = pictures
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:40])
    line = one_error_line(fdistill(*arguments))
    assert "cannot decode" in line
    assert str(folder / "3.png") in line
    assert not (tmp_path / "run").exists()


def test_run_folder_below_a_file(tmp_path):
    (tmp_path / "file").write_text("keep me")
    place = f"--trainer.default_root_dir={tmp_path / 'file' / 'run'}"
    line = one_error_line(fdistill(*teacher_arguments(tmp_path / "run", place)))
    assert "not a directory; name a file or folder that you may use" in line
    assert (tmp_path / "file").read_text() == "keep me"


def test_resuming_a_run_of_other_widths(teacher_checkpoint, tmp_path):
    before = teacher_checkpoint.read_bytes()
    flags = ["--model.network.init_args.widths=[16,16]", f"--ckpt_path={teacher_checkpoint}"]
    line = one_error_line(fdistill(*teacher_arguments(tmp_path / "run", *flags)))
    assert "this checkpoint is of another architecture or configuration" in line
    assert "expected (16, 1, 3, 3), got (8, 1, 3, 3)" in line
    assert not (tmp_path / "run").exists()
    assert teacher_checkpoint.read_bytes() == before


def test_resuming_a_teacher_from_a_student(student_checkpoint, tmp_path):
    line = one_error_line(fdistill(*teacher_arguments(tmp_path / "run", f"--ckpt_path={student_checkpoint}")))
    assert "another architecture or configuration" in line


def test_continuing_from_what_no_trainer_saved(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    line = one_error_line(fdistill(*teacher_arguments(tmp_path / "run", f"--ckpt_path={tmp_path / 'other.ckpt'}")))
    assert "was saved by no trainer of Lightning" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["validate", "test"])
def test_measuring_no_batches(command, teacher_checkpoint, tmp_path):
    batches = "--trainer.limit_val_batches=0" if command == "validate" else "--trainer.limit_test_batches=0"
    arguments = teacher_arguments(tmp_path / "run", batches, f"--ckpt_path={teacher_checkpoint}")
    line = one_error_line(fdistill(command, *arguments[1:]))
    assert f"{command} measures batches of the held-out split: got {batches[2:-2]} 0; give" in line


def test_loss_that_explodes_names_term_and_turn_and_keeps_the_last_checkpoint(tmp_path):
    lasts = '--trainer.callbacks=[{"class_path": "LastCheckpoint", "init_args": {"every_n_turns": 1}}]'
    arguments = teacher_arguments(tmp_path / "run", lasts, "--model.optimizer.lr=1e30")
    line = one_error_line(fdistill(*arguments))
    assert "loss/teacher, gradient of teacher became NaN or infinite in turn 1; no weight was changed" in line
    saved = torch.load(last(tmp_path / "run"), weights_only=True)
    assert saved["global_step"] == 1
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


def test_no_network_moves_when_one_loss_is_not_finite(teacher_checkpoint, tmp_path):
    arguments = student_arguments(tmp_path / "run", teacher_checkpoint, "--model.fake_score_optimizer.lr=1e30")
    cli = run_trainer([str(argument) for argument in arguments[1:]], run=False)
    seen = []
    cli.model.on_train_batch_start = lambda *_: seen.append({n: p.clone() for n, p in cli.model.named_parameters()})
    with pytest.raises(NonFiniteError, match="fake_score"):
        cli.trainer.fit(cli.model, cli.datamodule)
    assert all(torch.equal(p, seen[-1][n]) for n, p in cli.model.named_parameters())


def test_data_with_nan_in_a_users_module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "nan_data.py").write_text(
        "import torch\nfrom fdistill.data import GenerativeDataModule, InMemorySplit\n\n"
        "class Holes(GenerativeDataModule):\n    sample_shape, num_classes = (1, 8, 8), 10\n\n"
        "    def __init__(self, batch_size: int = 4, seed: int = 0, num_workers: int = 0):\n"
        "        super().__init__(batch_size, seed, num_workers)\n\n"
        "    def load_splits(self):\n        x = torch.zeros(20, 1, 8, 8)\n        x[3] = float('nan')\n"
        "        return InMemorySplit(x, torch.zeros(20)), InMemorySplit(x, torch.zeros(20))\n"
    )
    config = write_yaml(tmp_path / "data.yaml", data={"class_path": "nan_data.Holes"})
    arguments = teacher_arguments(tmp_path / "run", "--config", config)
    line = one_error_line(fdistill("--import", "nan_data", *arguments))
    assert "data is finite: expected no NaN or infinity, got 64 such values in 1 samples, the first in sample 3" in line


def test_a_good_run_is_quiet_on_stderr(stock_process, teacher_checkpoint, tmp_path):
    configs = [CONFIGS / "trainer.yaml", CONFIGS / "quickstart" / "student.yaml"]
    flags = [f"--model.teacher={teacher_checkpoint}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    flags += ["--trainer.accelerator=cpu", "--data.batch_size=8", "--trainer.limit_val_batches=1"]
    flags += ["--trainer.max_steps=51", "--trainer.val_check_interval=25"]  # measures and saves the best at 50
    code = "import sys; from fdistill.cli.main import main; sys.exit(main(sys.argv[1:]))"
    outcome = stock_process(code, "fit", "--config", configs[0], "--config", configs[1], *flags)
    assert [line for line in outcome.err.splitlines() if not line.startswith("`Trainer")] == []
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").is_file()
