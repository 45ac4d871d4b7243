"""Errors that become HTTP answers; every other RemembrandtError is the client's mistake, 400."""

from remembrandt.errors import RemembrandtError


class TooManyRequestsError(RemembrandtError):
    """Beyond a quota, a rate, or what the system can take now: 429, with seconds to wait."""

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.retry_after)


class NotFoundError(RemembrandtError):
    """Nothing there that this tenant may see: 404."""


class ConflictError(RemembrandtError):
    """It is there already, or somebody else is changing it: 409."""


class UploadError(RemembrandtError):
    """Uploaded content that is not accepted: 400."""


class TooLargeError(RemembrandtError):
    """More bytes or pixels than are accepted: 413."""


class DeadlineError(RemembrandtError):
    """Not finished in the time that the request had: 504."""
