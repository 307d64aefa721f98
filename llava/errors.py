"""Errors that a user can cause and can repair: one clear sentence each, never a traceback."""


class UserError(ValueError):
    """Something in a command, a file or a setting that its author can correct.

    The message is one sentence that names the offending value and, where short, what would be accepted.
    """


class PromptTooLongError(UserError):
    """A prompt that leaves no room for an answer in what the model can read."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that was named, or is needed, and is not there."""

    # OSError would render its arguments in its own way; the sentence is all there is to say.
    __str__ = ValueError.__str__
