"""What a generator is worth: measured rows, a table, pictures and a page that a person reads."""

from fdistill.evaluation.report.class_gaussian import per_class_gaussian
from fdistill.evaluation.report.curves import training_curves_figure
from fdistill.evaluation.report.grid import sample_grid_figure
from fdistill.evaluation.report.intervals import intervals
from fdistill.evaluation.report.page import html_page
from fdistill.evaluation.report.rows import average_rows, compare, measure, per_class, write_json
from fdistill.evaluation.report.table import print_table
from fdistill.evaluation.report.verdict import verdict
from fdistill.evaluation.samples import Samples, joined

__all__ = [
    "Samples",
    "average_rows",
    "compare",
    "html_page",
    "intervals",
    "joined",
    "measure",
    "per_class",
    "per_class_gaussian",
    "print_table",
    "sample_grid_figure",
    "training_curves_figure",
    "verdict",
    "write_json",
]
