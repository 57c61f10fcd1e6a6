"""One tiny teacher and one tiny student, trained once through the command line and shared by all tests."""

import io
import os
import shutil
import tempfile
from importlib import import_module

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: threads of such small work mostly wait for each other
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="fdistill-tests-")  # nobody's own cache is read or written

import pytest
from cli_runs import last, student_arguments, succeeds, teacher_arguments
from PIL import Image
from stock_process import StockProcess
from system_tests import starts_something

from fdistill.evaluation.report.figure_file import DPI, png

PNG = "fdistill.evaluation.report.figure_file.png"


def pytest_collection_modifyitems(items):
    """Mark as system each test that starts something itself, by a helper or by a fixture.

    Files that fork come first: they must not run in a process that has threads.
    """
    forking = {module for module in {item.module for item in items} if any(map(is_in_forked, vars(module).values()))}
    items.sort(key=lambda item: item.module not in forking)
    known, answers = {}, {}
    for item in items:
        parts = (item.function, *(found[-1].func for found in item._fixtureinfo.name2fixturedefs.values()))
        if parts not in answers:  # a test of a hundred parameters is looked at once
            answers[parts] = any(starts_something(part, known) for part in parts)
        if answers[parts]:
            item.add_marker("system")


def is_in_forked(value):
    """Whether a name of a test file is of forked.py."""
    return getattr(value, "__module__", None) == "forked"


def pytest_sessionfinish():
    """Remove the cache of the session."""
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _short_classifiers():
    """Let the classifier that an evaluation trains see a tenth of the images: tests ask what it finds, not how well."""
    from fdistill.evaluation.features import classifier  # not before a test needs torch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "IMAGES_SEEN", classifier.IMAGES_SEEN // 10)
        yield


@pytest.fixture(scope="session", autouse=True)
def _short_reports():
    """Let reports time draws of 4 samples and take intervals from 4 halves, where a test asks for no other number."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in (("evaluate", "TIMED"), ("evaluate", "FEW_TIMED"), ("report.intervals", "SPLITS")):
            patch.setattr(import_module(f"fdistill.evaluation.{module}"), name, 4)
        yield


@pytest.fixture(scope="session", autouse=True)
def _impatient_loaders():
    """Let data loaders wait half a second, not five, for workers that do not end by themselves."""
    from torch.utils.data import _utils

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.5)
        yield


@pytest.fixture(scope="session", autouse=True)
def _white_pictures():
    """Leave figures white: to draw one takes longer than to find what it shows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PNG, white)
        yield


def white(figure, dpi=DPI):
    """A PNG of the figure's size with nothing in it."""
    buffer = io.BytesIO()
    Image.new("L", [round(side * dpi) for side in figure.get_size_inches()], 255).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def drawn():
    """Figures as users see them, from here to the end of a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PNG, png)
        yield


@pytest.fixture(scope="session")
def teacher_run(tmp_path_factory):
    """Run folder of a class-conditional teacher of digits after 12 turns."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    succeeds(*teacher_arguments(folder))
    return folder


@pytest.fixture(scope="session")
def student_run(tmp_path_factory, teacher_run):
    """Run folder of its student after 12 fused turns: Jensen-Shannon with adversarial term, pictures every 6 turns."""
    folder = tmp_path_factory.mktemp("student") / "run"
    grid = '--trainer.callbacks+={"class_path": "SampleGrid", "init_args": {"every_n_turns": 6, "num_samples": 4}}'
    succeeds(*student_arguments(folder, last(teacher_run), grid))
    return folder


@pytest.fixture(scope="session")
def teacher_checkpoint(teacher_run):
    """The teacher's last checkpoint."""
    return last(teacher_run)


@pytest.fixture(scope="session")
def student_checkpoint(student_run):
    """The student's last checkpoint."""
    return last(student_run)


@pytest.fixture(scope="session")
def evaluation(tmp_path_factory, student_checkpoint):
    """Folder of fdistill evaluate: student beside teacher, 60 samples, 2 draws, all figures drawn."""
    folder = tmp_path_factory.mktemp("evaluation") / "out"
    few = ("--n", 60, "--repeats", 2, "--bootstrap", 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PNG, png)
        succeeds("evaluate", "--checkpoint", student_checkpoint, *few, "--out", folder)
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory, student_checkpoint, evaluation):
    """The student as a folder, its model card with the evaluation."""
    folder = tmp_path_factory.mktemp("exported") / "student"
    succeeds("export", student_checkpoint, folder, "--report", evaluation / "report.json")
    return folder


@pytest.fixture(scope="session")
def stock_process(tmp_path_factory):
    """Runs scripts in copies of an interpreter that has imported stock diffusers and nothing of fdistill."""
    process = StockProcess(tmp_path_factory.mktemp("stock_process"))
    yield process
    process.end()


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Each tiny text-to-image pipeline by name, saved once by whoever asks first: its folder, and itself."""
    from text_pipelines import built  # diffusers' pipelines and transformers take seconds to import

    root, saved = tmp_path_factory.mktemp("pipelines"), {}

    def folder(name):
        if name not in saved:
            saved[name] = built(name)
            saved[name].save_pretrained(root / name)
        return root / name, saved[name]

    return folder
