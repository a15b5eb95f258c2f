"""The report: one self-contained HTML page with the tables, figures, clips and costs of a run. It works offline."""

from framekd.report.gather import ReportInputs
from framekd.report.page import shown_threshold, write_report

__all__ = ["ReportInputs", "shown_threshold", "write_report"]
