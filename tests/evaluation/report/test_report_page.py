"""The page stands alone, and both tables say what the report says."""

import base64
import io
import re
from html.parser import HTMLParser

import pytest
import torch
from rich.console import Console

from fdistill.evaluation.report.grid import sample_grid_figure
from fdistill.evaluation.report.page import html_page
from fdistill.evaluation.report.table import print_table

ROW = {"frechet_distance": 0.25, "precision": 0.9, "recall": 0.8, "accuracy": None, "class_entropy": 0.99, "vendi": 7.1}


@pytest.fixture
def report():
    return {
        "student": {**ROW, "intervals": {"frechet_distance": [0.125, 0.375], "vendi": [6.5, 11.25]}},
        "teacher": {**ROW, "precision": 0.95},
        "floor": {**ROW, "frechet_distance": 0.0625},
        "class_gaussian": {**ROW, "recall": 0.6},
        "n": 500,
        "repeats": 3,
        "seed": 7,
        "seconds": {"student": 0.5, "teacher": 17.5},
        "speedup": 35.0,
        "features": "32 features & more",
        "teacher_evaluations": 35,
        "verdict": "Recall < precision: mode dropping.",
    }


class Page(HTMLParser):
    """Collects tags, attributes and the words of a page, and checks that tags close in order."""

    def __init__(self, path):
        super().__init__()
        self.attributes, self.words, self.open = [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_a_page_loads_nothing_and_holds_the_pictures_themselves(tmp_path, report):
    png = sample_grid_figure({"a": torch.zeros(2, 1, 8, 8)}, tmp_path / "grid.png")
    path = html_page(tmp_path / "out" / "index.html", "Digits", report, {"Samples": png}, "One.\n\nTwo.")
    source = path.read_text(encoding="utf-8")
    assert not re.search(r"https?:|//\w|<script|<link|@import|url\(", re.sub(r'base64,[^"]+', "", source))
    sources = [value for tag, name, value in Page(path).attributes if name in ("src", "href")]
    assert [base64.b64decode(value.removeprefix("data:image/png;base64,")) for value in sources] == [png.read_bytes()]
    assert str(tmp_path) not in source


def test_a_page_escapes_what_it_is_given(tmp_path, report):
    report["features"] = "<script>alert(1)</script>"
    path = html_page(tmp_path / "index.html", "a < b & <b>c</b>", report, {}, "<img src=x>")
    page = Page(path)
    assert not any(tag in ("script", "img", "b") for tag, *_ in page.attributes)
    assert "a < b & <b>c</b>" in page.words
    assert "<script>alert(1)</script>" in page.words


def test_a_page_shows_every_row_and_how_it_was_measured(tmp_path, report):
    words = Page(html_page(tmp_path / "index.html", "Digits", report, {})).words
    titles = ["Real data (floor)", "Teacher, 35 evaluations", "Student, 1 evaluation", "One Gaussian per class"]
    assert list(dict.fromkeys(word for word in words if word in titles)) == titles
    for wanted in ("0.250", ".125-.375", "0.062", "500", "7", "32 features & more", "student 0.5, teacher 17.5"):
        assert wanted in words


def test_rows_that_were_not_measured_are_left_out(tmp_path, report):
    del report["teacher"]
    report["class_gaussian"] = None
    report["speedup"] = None
    text = " ".join(Page(html_page(tmp_path / "index.html", "Digits", report, {})).words)
    assert "Teacher, 35" not in text
    assert "times as many samples" not in text
    assert "Student, 1 evaluation" in text
    html_page(tmp_path / "bare.html", "Nothing yet", {}, {})
    print_table({}, Console(file=io.StringIO()))


def test_the_terminal_table_fits_eighty_columns_and_cuts_nothing(report):
    stream = io.StringIO()
    print_table(report, Console(file=stream, width=80))
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    row = next(line for line in text.splitlines() if "Student" in line)
    assert row.split()[-6:] == ["0.250", "0.900", "0.800", "-", "0.990", "7.10"]
    assert ".125-.375" in text
    assert "6.50-11.2" in text
    assert "Recall < precision: mode dropping." in text
    assert "35 times as many samples per second" in text
    assert "500 samples, mean of 3 draws, 95% intervals" in text


def test_large_numbers_fit_too(report):
    wide = {"frechet_distance": [1234.0, 2345.0], "vendi": [100.0, 900.0], "recall": [0.9, 1.0]}
    for row in ("student", "teacher", "floor", "class_gaussian"):
        report[row] = {**ROW, "frechet_distance": 1500.0, "vendi": 512.0, "accuracy": 0.5, "intervals": wide}
    stream = io.StringIO()
    print_table(report, Console(file=stream, width=80))
    assert max(map(len, stream.getvalue().splitlines())) <= 80
    assert "1234-2345" in stream.getvalue()


def test_a_fixed_set_has_no_evaluations(tmp_path, report):
    report["student_evaluations"] = None
    words = Page(html_page(tmp_path / "index.html", "Digits", report, {})).words
    assert "Student" in words
    assert not any(word.startswith("Student,") for word in words)


def test_every_metric_that_was_measured_is_explained(tmp_path, report):
    report["student"] |= {"tid": -0.25, "memorized_fraction": None, "intervals": {"tid": [-0.5, 0.0]}}
    words = Page(html_page(tmp_path / "index.html", "Digits", report, {})).words
    assert {"Tail index difference", "-0.250", "-.500 to .000"} <= set(words)
    assert "Near copies" not in words


def test_the_verdict_stands_before_the_table(tmp_path, report):
    words = Page(html_page(tmp_path / "index.html", "Digits", report, {})).words
    assert words.index("Recall < precision: mode dropping.") < words.index("Real data (floor)")
    assert words.count("Recall < precision: mode dropping.") == 1


def test_what_follows_the_first_line_of_a_caption_stands_below_the_picture(tmp_path, report):
    png = sample_grid_figure({"a": torch.zeros(2, 1, 8, 8)}, tmp_path / "grid.png")
    page = Page(html_page(tmp_path / "index.html", "Digits", report, {"Samples\nof a < b": png}))
    assert ("img", "alt", "Samples") in page.attributes
    assert page.words.index("Samples") < page.words.index("of a < b")
