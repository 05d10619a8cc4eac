"""The one exception that a person must act on."""


class UserError(Exception):
    """What is wrong, what is allowed and what to do, in one sentence: printed without a traceback, status 1.

    Raised for what a user gave or can change: parameters, files, servers, revisions. A defect of this project keeps
    its own exception and its traceback.
    """
