"""What a generator is worth: measured rows, a table, pictures and a page that a person reads."""

from fdistill.report.class_gaussian import per_class_gaussian
from fdistill.report.curves import training_curves_figure
from fdistill.report.grid import sample_grid_figure
from fdistill.report.page import html_page
from fdistill.report.rows import average_rows, measure, write_json
from fdistill.report.table import print_table, speedup_line, table_cells

__all__ = [
    "average_rows",
    "html_page",
    "measure",
    "per_class_gaussian",
    "print_table",
    "sample_grid_figure",
    "speedup_line",
    "table_cells",
    "training_curves_figure",
    "write_json",
]
