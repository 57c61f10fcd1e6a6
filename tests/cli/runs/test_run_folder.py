"""One process at a time writes into a run folder, whatever ended the one before, and no run is written over another."""

import json
import os
import subprocess
import sys

import pytest

from fdistill.cli.runs import RunFolder

HOLD = "import sys, time; from fdistill.cli.runs import RunFolder; f = RunFolder(sys.argv[1]); f.enter(None); "
WAIT = "print('in', flush=True); time.sleep(60)"


@pytest.fixture
def other(tmp_path):
    """Another process that trains in tmp_path / run."""
    process = subprocess.Popen([sys.executable, "-c", HOLD + WAIT, tmp_path / "run"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "in\n"
    yield process
    process.kill()
    process.wait()


def test_second_process_is_refused_and_told_who_is_there(other, tmp_path):
    with pytest.raises(ValueError, match=f"process {other.pid};"):
        RunFolder(tmp_path / "run").enter("last")


def test_a_refused_process_does_not_let_a_third_one_in(other, tmp_path):
    for _ in range(2):
        with pytest.raises(ValueError, match="in use"):
            RunFolder(tmp_path / "run").enter("last")


def test_a_folder_is_free_again_after_a_kill(other, tmp_path):
    other.kill()
    other.wait()
    assert (tmp_path / "run" / ".lock").is_file()
    RunFolder(tmp_path / "run").enter("last")


def test_a_forked_worker_that_outlives_its_run_holds_nothing(tmp_path):
    fork = HOLD + "import os; pid = os.fork(); print(pid or '', flush=True) if pid else time.sleep(60)"
    done = subprocess.Popen([sys.executable, "-c", fork, tmp_path / "run"], stdout=subprocess.PIPE, text=True)
    worker = int(done.stdout.readline())
    try:
        done.wait()
        folder = RunFolder(tmp_path / "run")
        folder.enter("last")
        assert (tmp_path / "run" / ".lock").read_text().split()[0] == str(os.getpid())
        folder.release()
    finally:
        subprocess.run(["kill", "-9", str(worker)], check=True)


def test_letting_go_leaves_nothing_behind(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "new")
    folder.enter(None)
    folder.release()
    folder.release()
    assert list(tmp_path.iterdir()) == []


def test_letting_go_keeps_what_was_there_and_what_was_written(tmp_path):
    (tmp_path / "empty").mkdir()
    kept, written = RunFolder(tmp_path / "empty"), RunFolder(tmp_path / "runs" / "new")
    for folder in (kept, written):
        folder.enter(None)
    (tmp_path / "runs" / "new" / "notes.txt").write_text("mine")
    for folder in (kept, written):
        folder.release()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "empty",
        "runs",
        "runs/new",
        "runs/new/notes.txt",
    ]


def older(tmp_path, *names):
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"step": 5, "loss/teacher": 0.1}) + '\n{"ste' if name == "metrics.jsonl" else "")
    return RunFolder(tmp_path)


@pytest.mark.parametrize("name", ["checkpoints/last.ckpt", "checkpoints/best.ckpt", "metrics.jsonl", "config.yaml"])
def test_new_run_over_whatever_an_older_one_left_is_refused(name, tmp_path):
    folder = older(tmp_path, name)
    with pytest.raises(ValueError, match="ckpt_path"):
        folder.enter(None)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name.split("/")[0]]


def test_refusal_tells_how_long_the_older_run_is(tmp_path):
    with pytest.raises(ValueError, match="6 turns"):
        older(tmp_path, "metrics.jsonl", "checkpoints/last.ckpt").enter(None)


def test_a_folder_with_other_things_in_it_takes_a_run(tmp_path):
    assert older(tmp_path, "notes.txt", "pictures/one.png").enter(None) is None


def test_continuing_from_the_last_checkpoint_needs_no_word(tmp_path):
    folder = older(tmp_path, "metrics.jsonl", "checkpoints/last.ckpt")
    assert folder.enter(tmp_path / "checkpoints" / "last.ckpt") is None


def test_going_back_to_an_earlier_checkpoint_is_said(tmp_path):
    folder = older(tmp_path, "checkpoints/last.ckpt", "checkpoints/best.ckpt")
    assert "dropped" in folder.enter(tmp_path / "checkpoints" / "best.ckpt")


@pytest.mark.parametrize("name", ["config.yaml", "checkpoints/best.ckpt"])
def test_a_run_without_a_last_checkpoint_that_is_continued_starts_again_and_says_so(name, tmp_path):
    assert "starts again" in older(tmp_path, "metrics.jsonl", name).enter("last")


def test_a_branch_does_not_overwrite_a_third_run(tmp_path):
    with pytest.raises(ValueError, match="overwrite"):
        older(tmp_path / "here", "checkpoints/last.ckpt").enter(tmp_path / "there" / "checkpoints" / "last.ckpt")
