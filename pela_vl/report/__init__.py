"""What a demonstration run found, as one HTML page and as plain text; numbers in, text out, no model is known here."""

from pela_vl.report.page import write_report
from pela_vl.report.schema import parse_demo
from pela_vl.report.table import format_table

__all__ = ["format_table", "parse_demo", "write_report"]
