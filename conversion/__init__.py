"""Converting checkpoints between frameworks. Installed as ``distilbert.conversion``."""
