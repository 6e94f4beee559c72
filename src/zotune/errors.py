"""The errors a user can cause. Each message names the thing and the remedy; each class has its own exit code."""

from __future__ import annotations


class UserError(Exception):
    """Something the user gave cannot work. The message says what, and what to do instead."""

    exit_code = 2


class ConfigError(UserError):
    """An unknown key, a wrong type, or options that do not fit together."""

    exit_code = 2


class DataError(UserError):
    """A file, a row, a column, a label word or a template that cannot be used."""

    exit_code = 3


class RunError(UserError):
    """A run folder that is in use, foreign, incomplete or does not fit the request."""

    exit_code = 4


class JournalError(RunError):
    """A journal that is not one, or is corrupt before its end. Carries the byte offset in the message."""

    exit_code = 5


class NonFiniteLoss(UserError):
    """A loss was NaN or infinite. The step was not applied."""

    exit_code = 6


class CoverageError(UserError):
    """Parameters in scope were never used by the forward pass, so their direction cannot be probed."""

    exit_code = 7


class OutOfMemory(UserError):
    """Memory ran out. What was recorded is not lost."""

    exit_code = 8


class Terminated(BaseException):
    """SIGTERM arrived. No Exception, so that no handler of errors takes it for one."""


class FunctionError(UserError):
    """A reward or metric of the user raised, hung, or returned what is no score. The step was not applied."""

    exit_code = 9
