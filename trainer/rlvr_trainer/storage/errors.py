"""What can go wrong with the object store, in words a person can act on.

Every failure of S3 becomes a `StorageError` that says what was tried, where, what the store answered and what to do next.
`permanent` separates what only a person can mend (credentials, bucket, rights) from what may pass by itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from botocore import exceptions as boto


class StorageError(Exception):
    """The object store did not do what was asked."""

    permanent = False
    """Trying again without a change by a person cannot help."""


class StorageSetupError(StorageError):
    """Credentials, bucket, rights or address are wrong."""

    permanent = True


class CredentialsError(StorageSetupError):
    """No credentials, or the store refuses them."""


class BucketMissingError(StorageSetupError):
    """The bucket does not exist."""


class AccessDeniedError(StorageSetupError):
    """The credentials are known and lack a right."""


class UnsupportedStoreError(StorageSetupError):
    """The store lacks something that exactly-once commits need."""


class UnreachableError(StorageError):
    """Nobody answers at the endpoint, or not in time."""


class StoreFailedError(StorageError):
    """The store answers that it failed; often its disk is full."""


class ObjectMissingError(StorageError):
    """There is no such object."""


class AlreadyExistsError(StorageError):
    """A conditional write lost: the object is there, with other content."""

    def __init__(self, message: str, content: bytes) -> None:
        super().__init__(message)
        self.content = content
        """What is there, byte by byte."""


class CorruptObjectError(StorageError):
    """An object is not what was committed: size, digest or form differ."""

    permanent = True


class SupersededError(StorageError):
    """Another attempt has taken over; this process must stop writing."""

    permanent = True


class RolledBackError(StorageError):
    """An attempt before this one rolled the stage back just before it was fenced off; the next attempt goes on from there."""


class CheckpointBusyError(StorageError):
    """The previous checkpoint is still being uploaded."""


_CREDENTIALS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired", "AuthFailure"}
_DENIED = {"AccessDenied", "AllAccessDisabled", "AccountProblem", "Forbidden", "403"}
_MISSING = {"NoSuchKey", "NoSuchUpload", "404", "NotFound"}
_CREDENTIALS_STEP = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_NO_ANSWER = (
    boto.EndpointConnectionError,
    boto.ConnectTimeoutError,
    boto.ReadTimeoutError,
    boto.ConnectionClosedError,
    boto.ConnectionError,
)


@contextmanager
def explained(action: str, place: str, endpoint: str) -> Iterator[None]:
    """Turns botocore's errors of the block into `StorageError`.

    Args:
        action: a verb, for example `write`.
        place: `s3://bucket/key`.
        endpoint: address of the store, for people.

    Raises:
        StorageError: with `action`, `place`, the store's answer and the next step.
    """
    try:
        yield
    except boto.ClientError as error:
        raise _explain_answer(error, f"cannot {action} {place}", place, endpoint) from error
    except (boto.NoCredentialsError, boto.PartialCredentialsError) as error:
        raise CredentialsError(
            f"cannot {action} {place}: no S3 credentials ({error}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    except _NO_ANSWER as error:
        raise UnreachableError(
            f"cannot {action} {place}: no answer from {endpoint} ({_one_line(error)}); check storage.endpoint and that the store is up"
        ) from error
    except boto.FlexibleChecksumError as error:
        raise CorruptObjectError(f"cannot {action} {place}: its checksum is wrong ({_one_line(error)}); restore it or delete it") from error
    except boto.BotoCoreError as error:
        raise StorageError(f"cannot {action} {place} at {endpoint}: {_one_line(error)}") from error


def error_code(error: boto.ClientError) -> str:
    """S3's error code, for example `PreconditionFailed`; the HTTP status as text where the answer has no body."""
    return str(error.response.get("Error", {}).get("Code", "")) or str(_status(error))


def _explain_answer(error: boto.ClientError, failed: str, place: str, endpoint: str) -> StorageError:
    code, status = error_code(error), _status(error)
    answer = f"{endpoint} answered {status} {code}" if code != str(status) else f"{endpoint} answered {status}"
    if code == "NoSuchBucket":
        bucket = place.removeprefix("s3://").split("/", 1)[0]
        return BucketMissingError(f"{failed}: bucket '{bucket}' does not exist at {endpoint}; create it or change storage.uri")
    if code in _CREDENTIALS:
        return CredentialsError(f"{failed}: {answer}, the credentials are wrong or expired; {_CREDENTIALS_STEP}")
    if code in _DENIED:
        return AccessDeniedError(f"{failed}: {answer}; give these credentials the right to read, write, list and delete there")
    if code in _MISSING:
        return ObjectMissingError(f"{failed}: there is no such object")
    if code == "BadDigest":
        return StoreFailedError(f"{failed}: {answer}, the bytes changed on their way; look for a faulty network or proxy")
    if code == "InvalidBucketName":
        return StorageSetupError(f"{failed}: {answer}, the bucket's name is not valid; change storage.uri")
    if status >= 500:
        return StoreFailedError(f"{failed}: {answer}; look whether the store's disk is full, and at its log")
    return StorageError(f"{failed}: {answer} ({error.response.get('Error', {}).get('Message', 'no message')})")


def _status(error: boto.ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
