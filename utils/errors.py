"""The one exception that stands for a mistake of the person at the keyboard."""


class UserError(ValueError):
    """Bad input from outside; its message is one line that names the file or argument and says how to fix it.

    Scripts print it and end with exit code 2; anything else that is raised is a defect of ours and keeps its traceback.
    """
