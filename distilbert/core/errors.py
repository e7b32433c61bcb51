"""The errors this library raises on purpose.

Each carries one line that names the thing, what was expected, what was found and what to do. They also
inherit the built-in type that Python users expect, so ``except ValueError`` and ``except OSError`` work.
"""


class DistilBertError(Exception):
    """Everything below: what the command line prints as one line instead of a traceback."""


class ConfigError(DistilBertError, ValueError):
    """A config field that is missing, contradictory or out of range."""


class CheckpointError(DistilBertError, OSError):
    """A checkpoint that is absent, damaged, unsafe to read, or does not fit the config."""


class InputError(DistilBertError, ValueError):
    """An argument or a batch that the model, the tokenizer or a pipeline cannot accept."""


class MissingBackendError(DistilBertError, ImportError):
    """A framework that is not installed; the message names the extra to install."""
