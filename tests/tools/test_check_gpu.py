"""tools/check_gpu.py, tried on the CPU at the smallest sizes: parts, what they leave, and how aims are judged."""

import json
import subprocess
import sys
import time

import check_gpu as tool
import pytest
import torch


def call(folder, *arguments):
    return tool.main(["--device", "cpu", "--small", "--out", str(folder), *arguments])


@pytest.mark.slow
def test_parts_that_are_run_one_by_one_end_up_in_one_report(tmp_path):
    for part in ("digits-eager", "loader"):
        assert call(tmp_path, "--parts", part) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert list(found) == ["digits-eager", "loader"]
    assert found["digits-eager"]["found"]["digits.json"]["rows"].keys() == {"trainer", "bare loop"}
    report = (tmp_path / "report.md").read_text()
    assert "nothing here is a measurement" in report
    for told in (
        "### digits-eager",
        "### loader",
        "CPU, torch",
        "| no host synchronisation inside a turn |  | not yet run |",
    ):
        assert told in report


def test_a_part_that_fails_or_takes_too_long_is_told_and_stops_no_other(tmp_path, monkeypatch):
    scripts = {
        "first": "print('it broke'); raise SystemExit(3)",
        "slow": "import time; time.sleep(60)",
        "last": "print('| a |')",
    }
    monkeypatch.setattr(tool, "parts", lambda options: {name: [["-c", script]] for name, script in scripts.items()})
    assert call(tmp_path, "--limit", "2") == 1
    found = json.loads((tmp_path / "results.json").read_text())
    assert [part["status"] for part in found.values()] == [3, "not ended after 2 s", 0]
    report = (tmp_path / "report.md").read_text()
    assert "**first failed (3):**\n\n```\nit broke\n```" in report
    assert "### last" in report


def test_the_processes_of_a_part_that_takes_too_long_end_with_it(tmp_path):
    sleeps = "import subprocess, sys; subprocess.run([sys.executable, '-c', {!r}])"
    writes = f"import time; time.sleep(1.5); open({str(tmp_path / 'alive')!r}, 'w')"
    with pytest.raises(subprocess.TimeoutExpired):
        tool.ended([sys.executable, "-c", sleeps.format(writes)], 0.7)
    time.sleep(2)
    assert not (tmp_path / "alive").exists()
    assert tool.ended([sys.executable, "-c", "raise SystemExit(3)"], 20) == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so_in_one_line_and_runs_nothing(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        tool.main(["--out", str(tmp_path / "out")])
    assert stopped.value.code == 1
    assert capsys.readouterr().err == (
        "check_gpu needs a CUDA device, and torch finds none: run it on a machine that has one\n"
    )
    assert not (tmp_path / "out").exists()


def test_an_unknown_part_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        call(tmp_path, "--parts", "everything")
    assert "--parts are some of tests, digits-eager" in capsys.readouterr().err


def step(trainer, **others):
    """As much of benchmark_step's file as aims are judged by: milliseconds of a cycle by who made it."""
    rows = {"trainer": trainer, **others}
    rows = {name: {"cycle": ms, "images_per_second": 1000 / ms, "mfu": 40 / ms} for name, ms in rows.items()}
    return {"status": 0, "found": {"a.json": {"ceiling_flops": 8e14, "rows": rows}}}


def judged(found):
    return {aim.what: (aim.measured, aim.met) for aim in tool.aims(found)}


def test_nothing_measured_is_neither_met_nor_missed():
    aims = judged({})
    assert len(aims) == 21
    assert set(aims.values()) == {("", None)}


def test_aims_are_judged_by_the_better_of_compiled_networks_and_cuda_graphs():
    found = {
        "imagenet64-eager": step(310.0, **{"bare loop": 303.0}),
        "imagenet64-fast": step(110.0, **{"bare loop": 160.0, "bare loop, compiled": 100.0}),
        "imagenet64-graphs": step(80.0, **{"bare loop": 160.0, "bare loop, compiled": 79.0}),
    }
    aims = judged(found)
    assert aims["at least 45% MFU at ImageNet-64 size in bf16"] == (
        "50.0% of 800 TFLOP/s, a measured product of matrices",
        True,
    )
    quick = "3 times the images per second of the same arithmetic in eager TF32, ImageNet-64 size"
    assert aims[quick] == ("3.79 times (12.5 and 3.3 a second)", True)
    assert aims["trainer less than 3% above a bare loop: imagenet64, eager"] == ("+2.3% of 303.0 ms a cycle", True)
    assert aims["trainer less than 3% above a bare loop: imagenet64, fast"] == ("+10.0% of 100.0 ms a cycle", False)
    slow = judged(found | {"imagenet64-graphs": found["imagenet64-graphs"] | {"status": 1}})
    assert (slow[quick][1], slow["at least 45% MFU at ImageNet-64 size in bf16"][1]) == (False, False)


def test_host_synchronisation_is_judged_by_its_tests_alone(tmp_path):
    (tmp_path / "tests.xml").write_text(
        "<testsuites><testsuite>"
        '<testcase classname="tests.gpu.test_gpu_waiting" name="a"/>'
        '<testcase classname="tests.gpu.test_gpu_waiting" name="b"><failure/></testcase>'
        '<testcase classname="tests.gpu.test_gpu_turns" name="c"><error/></testcase>'
        '<testcase classname="tests.gpu.test_gpu_waiting" name="d"><skipped/></testcase>'
        "</testsuite></testsuites>"
    )
    verdicts = tool.tests_of(tmp_path / "tests.xml")
    assert list(verdicts.values()) == ["passed", "failed", "failed", "skipped"]
    aim = "no host synchronisation inside a turn"
    assert judged({"tests": {"tests": verdicts}})[aim] == ("1 of 2 tests passed", False)
    healthy = {name: verdict for name, verdict in verdicts.items() if not name.endswith("b")}
    assert judged({"tests": {"tests": healthy}})[aim] == ("1 of 1 tests passed", True)


def test_generation_is_judged_at_the_largest_batch():
    shares = {"GenerativeModel.sample": 0.97, "fdistill sample": 0.89, "OneStepPipeline, pt": 0.9}
    found = {"generation": {"found": {"digits/results.json": {"16": dict.fromkeys(shares, 0.1), "128": shares}}}}
    aims = judged(found)
    assert aims["GenerativeModel.sample reaches 90% of the bare network: digits"] == ("97.0% at batch 128", True)
    assert aims["fdistill sample reaches 90% of the bare network: digits"][1] is False
    assert aims["fdistill sample reaches 90% of the bare network: cifar10"] == ("", None)
