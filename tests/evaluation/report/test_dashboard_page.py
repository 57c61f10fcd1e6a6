"""Every logged name has its panel, and the page holds everything in itself."""

import base64
import json
import re

import pytest

from fdistill.evaluation.report.dashboard import dashboard_page, read_runs
from fdistill.evaluation.report.panels import GROUPS, PICTURES, all_groups, beside

pytestmark = pytest.mark.system  # seconds, too many for make check

ROOMS = {
    "loss": "student fake_score discriminator adversarial teacher",
    "validation": "loss pixel_frechet_distance",
    "ratio": "log_mean clipped_fraction ess",
    "weight": "mean max",
    "grad_norm": "student fake_score discriminator teacher",
    "image_gradient": "matching adversarial balance",
    "ratio_bin/log_mean": "0 9",
    "weight_bin/mean": "0 9",
    "weight_bin/ess": "0 9",
    "see_saw/excess": "0 9",
    "see_saw/sigma": "0 9",
    "metric": "frechet_distance kernel_distance precision recall density coverage vendi_score vendi_ratio tid "
    "anchored_tid count_ratio mode_coverage class_entropy accuracy memorized_fraction pixel_frechet_distance",
    "collapse": "alarm margin/recall",
    "perf": "images_per_second step_ms mfu peak_memory_gib metrics_share",
}
LOGGED = [f"{room}/{name}" for room, names in ROOMS.items() for name in names.split()]
PANELS = [panel for group in GROUPS for panel in group.panels]


def run_folder(folder, name, **curves):
    """A run folder that logged some values of each name at steps 0, 10, ..."""
    path = folder / name
    path.mkdir(parents=True)
    lines = [
        json.dumps({"step": 10 * i, curve.replace("__", "/"): value})
        for curve, values in curves.items()
        for i, value in enumerate(values)
    ]
    (path / "metrics.jsonl").write_text("\n".join(lines))
    return path


def page_of(folder, *runs):
    return dashboard_page(read_runs(runs), folder / "page.html").read_text()


def headings(page):
    return re.findall(r"<figcaption>(.*?)</figcaption>", page)


def test_every_name_that_this_package_logs_has_one_panel():
    numbers = {name: sum(panel.holds(name) for panel in PANELS) for name in LOGGED}
    assert numbers == dict.fromkeys(LOGGED, 1)


def test_titles_are_unique_and_every_panel_says_what_is_well():
    assert len({panel.title for panel in PANELS}) == len(PANELS)
    assert all(panel.well.endswith(".") for panel in [*PANELS, PICTURES])


def test_names_that_no_panel_knows_get_their_own_and_references_none():
    names = [
        "my/own",
        "metric/own",
        "metric_teacher/own",
        "metric_floor/own",
        *LOGGED,
        *beside("metric/recall").values(),
    ]
    assert [panel.names for panel in all_groups(names)[-1].panels] == [("metric/own",), ("my/own",)]


def test_a_teacher_without_a_student_is_not_lost():
    assert [panel.names for panel in all_groups(["metric_teacher/recall"])[-1].panels] == [("metric_teacher/recall",)]


def test_a_star_stands_for_an_ending_and_for_nothing_else():
    margins = next(panel for panel in PANELS if panel.title == "Margins")
    assert margins.holds("collapse/margin/recall")
    assert not margins.holds("collapse/alarm")
    student = next(panel for panel in PANELS if panel.title == "Student")
    assert not student.holds("loss/student_")


def test_the_page_shows_the_panels_that_have_numbers_and_what_is_well_there(tmp_path):
    run = run_folder(tmp_path, "a", loss__student=[1.0, 0.5], metric__recall=[0.1, 0.2], metric_floor__recall=[0.9])
    page = page_of(tmp_path, run)
    assert headings(page) == ["Student", "Precision and recall"]
    assert page.count("data:image/png;base64,") == 2
    assert "Recall that falls while precision rises is mode dropping." in page
    assert "Collapse" not in page


def test_the_page_needs_nothing_beside_it(tmp_path):
    page = page_of(tmp_path, run_folder(tmp_path, "a", loss__student=[1.0]))
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert "http" not in re.sub(r'"data:[^"]*"', "", page)


def test_several_runs_share_their_panels(tmp_path):
    runs = [run_folder(tmp_path, name, loss__student=[1.0, 0.5]) for name in ("js", "kl")]
    page = page_of(tmp_path, *runs)
    assert headings(page) == ["Student"]
    assert re.findall(r"</span>(\w+)</li>", page) == ["js", "kl"]


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    runs = [run_folder(tmp_path / parent, "student", loss__student=[1.0]) for parent in ("first", "second")]
    assert list(read_runs(runs)) == [str(run) for run in runs]


def test_the_reasons_of_an_alarm_are_told(tmp_path):
    run = run_folder(tmp_path, "a", collapse__alarm=[0.0, 1.0], collapse__reason=["", "recall < 0.5: 3 modes"])
    assert "a, step 10: recall &lt; 0.5: 3 modes" in page_of(tmp_path, run)


def test_the_newest_picture_of_each_kind_is_shown(tmp_path):
    run = run_folder(tmp_path, "a", loss__student=[1.0])
    old = ["samples/0000009.png", "diagnosis/ratio_999.png"]
    new = ["samples/0000010.png", "diagnosis/ratio_1000.png", "diagnosis/see_saw_0.png"]
    for name in old + new:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_bytes(name.encode())
    page = page_of(tmp_path, run)
    assert [name for name in old + new if base64.b64encode(name.encode()).decode() in page] == new
    assert headings(page)[1:] == [f"a: {name}" for name in new]


def test_what_a_run_is_called_is_no_markup(tmp_path):
    page = page_of(tmp_path, run_folder(tmp_path, "<b>", **{"my<i>own": [1.0]}))
    assert "<b>" not in page
    assert "<i>" not in page


def test_numbers_that_are_not_finite_are_gaps(tmp_path):
    run = run_folder(tmp_path, "a", loss__student=[float("nan"), 1.0, float("inf")], ratio__ess=[float("nan")])
    assert headings(page_of(tmp_path, run)) == ["Student", "Effective sample share"]


def test_a_run_that_has_logged_nothing_yet_is_a_page(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    assert "<h1>run</h1>" in page_of(tmp_path, tmp_path / "run")


def test_what_is_no_run_folder_is_refused(tmp_path):
    run = run_folder(tmp_path, "a", loss__student=[1.0])
    with pytest.raises(ValueError, match="each once: got none"):
        read_runs([])
    with pytest.raises(ValueError, match="each once"):
        read_runs([run, run])
    with pytest.raises(ValueError, match="metrics"):
        read_runs([tmp_path])


def test_teacher_and_floor_are_lines_and_no_panels(tmp_path):
    curves = {"metric__recall": [0.1, 0.2]}
    references = {f"metric_{source}__recall": [0.5] for source in ("teacher", "floor")}
    pages = [
        page_of(tmp_path, run_folder(tmp_path / name, "run", **logged))
        for name, logged in (("a", curves), ("b", curves | references))
    ]
    assert headings(pages[0]) == headings(pages[1])
    assert pages[0] != pages[1]
