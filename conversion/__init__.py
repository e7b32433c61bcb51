"""Converting checkpoints between formats, strictly and bit for bit. Installed as ``distilbert.conversion``."""

from distilbert.conversion.convert import Entry, Report, convert
from distilbert.conversion.inspection import Inspection, inspect

__all__ = ["Entry", "Inspection", "Report", "convert", "inspect"]
