"""The one exception for what a user can put right."""


class UserError(ValueError):
    """Input or environment that the user can put right; its message is one line.

    The line says what the thing is, what was found, what was expected and what to do. The command line prints it
    without a traceback and ends with status 2.
    """
