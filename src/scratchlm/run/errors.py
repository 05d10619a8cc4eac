"""The one class of exceptions that the user must act on."""


class UserError(Exception):
    """One sentence that says what is wrong, what is allowed and what to do; printed without a traceback, status 1.

    Raised for what a user gave or can change: parameters, files, servers, revisions. A defect of this project keeps
    its own exception and its traceback.
    """
