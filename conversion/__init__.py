"""Converting checkpoints between formats, strictly and bit for bit. Installed as ``distilbert.conversion``."""

from distilbert.conversion.convert import Entry, Report, convert
from distilbert.conversion.inspection import Inspection, inspect
from distilbert.conversion.source import NAMES
from distilbert.conversion.verification import Verification, VerificationError

__all__ = ["NAMES", "Entry", "Inspection", "Report", "Verification", "VerificationError", "convert", "inspect"]
