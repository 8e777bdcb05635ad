"""Every error the package raises on purpose, in one tree.

    Dcr2adError                 anything below; the command prints it as one line and exits with status 2
    ├── InputError              a file, folder or value the user gave cannot be used
    │   ├── ImageError          an image is missing, truncated, too large, too small, or no image
    │   ├── RecordError         a JSONL, JSON or TOML file does not hold what it should
    │   └── UnknownNameError    an object, knowledge key, model or option that does not exist
    ├── ModelError              a model cannot be built, loaded, reached, or asked for what it cannot do
    │   ├── RequestError        a server refused one request, or did not answer it in time; others may go well
    │   └── CannotScoreError    the backend gives no probabilities; it never makes one up
    └── RunError                a run folder holds work that does not belong to this configuration

Each message says what happened, where, and what to do. Anything else that escapes is a bug and keeps its traceback.
Reads nothing; knows nothing about printing.
"""

from __future__ import annotations


class Dcr2adError(Exception):
    """Root of the tree: an error whose message is written for the user.

    Args:
        what: what happened and where, one line without a final stop.
        fix: what to do about it, one line without a final stop.
    """

    def __init__(self, what: str, fix: str = "") -> None:
        self.what = " ".join(str(what).split())
        self.fix = " ".join(str(fix).split())
        super().__init__(f"{self.what}. {self.fix}." if self.fix else f"{self.what}.")


class InputError(Dcr2adError):
    """A file, folder or value the user gave cannot be used."""


class ImageError(InputError):
    """An image is missing, truncated, too large, too small, or no image."""


class RecordError(InputError):
    """A JSONL, JSON or TOML file does not hold what it should."""


class UnknownNameError(InputError):
    """An object, knowledge key, model or option that does not exist."""


class ModelError(Dcr2adError):
    """A model cannot be built, loaded, reached, or asked for what it cannot do."""


class UnusableAnswerError(ModelError):
    """A model answered, and what it wrote is not what was asked for."""


class RequestError(ModelError):
    """A server refused one request, or did not answer it in time; others may go well."""


class CannotScoreError(ModelError):
    """The backend gives no probabilities; it never makes one up."""


class RunError(Dcr2adError):
    """A run folder holds work that does not belong to this configuration."""
