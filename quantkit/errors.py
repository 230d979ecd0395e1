"""Errors that a user can act on. The command line prints them as one line and exits with `exit_code`."""


class QuantkitError(Exception):
    """A run that could not finish; the message names file, tensor and remedy."""

    exit_code = 1


class BadInput(QuantkitError):
    """The input, the arguments or the machine cannot give the result; nothing was written under a final name."""

    exit_code = 2


class RunFailed(QuantkitError):
    """The network, or a server, stayed away after all retries; repeating the same command goes on."""
