"""The results of a demo run as an HTML page and as plain text. No model is imported here."""

from pela_vl.report.page import write_report
from pela_vl.report.schema import parse_demo
from pela_vl.report.table import format_table

__all__ = ["format_table", "parse_demo", "write_report"]
