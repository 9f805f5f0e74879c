"""Everything that can go wrong, as one tree; each class carries the exit code a command ends with.

    LynxError                 1  something failed that the request is not to blame for
    ├── MissingDependency     1  an optional package or model is not installed; the message has the line that installs it
    ├── Cancelled             1  somebody asked to stop
    ├── Diverged              1  a training run whose loss is no number any more
    ├── Missed                1  a clip that was made and kept, but is less than what was asked for
    ├── Unverified            1  a clip that is not, bit for bit, what somebody signed
    ├── BadRequest            2  the request cannot be carried out as given (also a ValueError)
    │   ├── BadPicture        2  a picture that cannot be read, or is too small or too large
    │   ├── NoFace            2  no usable face where one is needed
    │   ├── BadData           2  a clip, training set or shard that cannot be used
    │   ├── BadWeights        2  a weights file that is missing, cut, mixed up or made for another base
    │   └── BadOutput         2  an output that cannot be written or is there already
    └── Refused               3  the safety gate said no

A message is one sentence or two: the file, key or value; what was expected; what to do.
"""

from __future__ import annotations


class LynxWarning(UserWarning):
    """Something was done in another way than the caller may expect; the message says which and why."""


class LynxError(Exception):
    """Base of all errors of this package."""

    exit_code = 1


class MissingDependency(LynxError):
    """An optional package or model that this request needs is not there."""


class Cancelled(LynxError):
    """The caller asked a running generation to stop."""


class Diverged(LynxError):
    """A training run whose loss was not finite too often."""


class Missed(LynxError):
    """A clip was made and kept, but it is less than what was asked for."""


class Unverified(LynxError):
    """A clip was altered, or nobody signed it."""


class BadRequest(LynxError, ValueError):
    """The request cannot be carried out as given."""

    exit_code = 2


class BadPicture(BadRequest):
    """A picture that cannot be used."""


class NoFace(BadRequest):
    """No usable face in a picture."""


class BadData(BadRequest):
    """A clip, a training set or a shard of one that cannot be used."""


class BadWeights(BadRequest):
    """A weights file that is missing, incomplete, mixed up or made for another base model."""


class BadOutput(BadRequest):
    """An output path that cannot be written."""


class Refused(LynxError):
    """The safety gate refused the request."""

    exit_code = 3
