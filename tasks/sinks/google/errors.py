"""Classifies errors of Google services: responses from the JSON APIs, and exceptions from the client libraries.

A Google JSON error is classified by its reasons first and its status second; any other response, such as a proxy's
page, is classified by its status alone. Every exception class of google-api-core, google-auth and the HTTP clients
below them is in `BLAME_BY_CLASS`; a test fails when an upgrade adds an unlisted class.
"""

from __future__ import annotations

import re

import requests.exceptions as from_requests
from google.api_core import exceptions as from_api
from google.auth import exceptions as from_auth

from tasks.sinks.http.answers import (
    BLAME_BY_STATUS,
    Answer,
    blame_of_status,
    describe_answer,
    failure_of_status,
    retry_after_seconds,
)
from tasks.sinks.http.errors import BLAME_BY_HTTP_CLASS
from tasks.sinks.outcome import Blame, Failure

BATCH, REQUEST, CREDENTIALS = Blame.BATCH, Blame.REQUEST, Blame.CREDENTIALS
TABLE, SERVER, NETWORK = Blame.TABLE, Blame.SERVER, Blame.NETWORK

BLAME_BY_CLASS: dict[type[BaseException], Blame] = {
    **BLAME_BY_HTTP_CLASS,
    # google.api_core, by HTTP status
    from_api.GoogleAPIError: SERVER,
    from_api.DuplicateCredentialArgs: CREDENTIALS,
    from_api.RetryError: SERVER,
    from_api.GoogleAPICallError: SERVER,
    from_api.Redirection: REQUEST,
    from_api.MovedPermanently: REQUEST,
    from_api.NotModified: REQUEST,
    from_api.TemporaryRedirect: REQUEST,
    from_api.ResumeIncomplete: REQUEST,
    from_api.ClientError: SERVER,
    from_api.BadRequest: BATCH,
    from_api.InvalidArgument: BATCH,
    from_api.FailedPrecondition: BATCH,
    from_api.OutOfRange: BATCH,
    from_api.Unauthorized: CREDENTIALS,
    from_api.Unauthenticated: CREDENTIALS,
    from_api.Forbidden: CREDENTIALS,
    from_api.PermissionDenied: CREDENTIALS,
    from_api.NotFound: TABLE,
    from_api.MethodNotAllowed: REQUEST,
    from_api.Conflict: SERVER,
    from_api.AlreadyExists: SERVER,
    from_api.Aborted: SERVER,
    from_api.LengthRequired: REQUEST,
    from_api.PreconditionFailed: REQUEST,
    from_api.RequestRangeNotSatisfiable: REQUEST,
    from_api.TooManyRequests: SERVER,
    from_api.ResourceExhausted: SERVER,
    from_api.Cancelled: SERVER,
    from_api.ServerError: SERVER,
    from_api.InternalServerError: SERVER,
    from_api.Unknown: SERVER,
    from_api.DataLoss: SERVER,
    from_api.MethodNotImplemented: REQUEST,
    from_api.BadGateway: SERVER,
    from_api.ServiceUnavailable: SERVER,
    from_api.GatewayTimeout: SERVER,
    from_api.DeadlineExceeded: SERVER,
    from_api.AsyncRestUnsupportedParameterError: REQUEST,
    from_api.ResumableTransferError: NETWORK,
    from_api.TransferStalledError: NETWORK,
    from_api.UnseekableStreamError: NETWORK,
    from_api.UploadCancelledError: NETWORK,
    from_api.MissingStatusHeaderError: NETWORK,
    # google.auth: the token cannot be fetched at present, or there are no credentials
    from_auth.GoogleAuthError: NETWORK,
    from_auth.TransportError: NETWORK,
    from_auth.RefreshError: CREDENTIALS,
    from_auth.UserAccessTokenError: CREDENTIALS,
    from_auth.DefaultCredentialsError: CREDENTIALS,
    from_auth.MutualTLSChannelError: CREDENTIALS,
    from_auth.ClientCertError: CREDENTIALS,
    from_auth.OAuthError: CREDENTIALS,
    from_auth.ReauthFailError: CREDENTIALS,
    from_auth.ReauthSamlChallengeFailError: CREDENTIALS,
    from_auth.MalformedError: CREDENTIALS,
    from_auth.InvalidResource: CREDENTIALS,
    from_auth.InvalidOperation: CREDENTIALS,
    from_auth.InvalidValue: CREDENTIALS,
    from_auth.InvalidType: CREDENTIALS,
    from_auth.OSError: CREDENTIALS,
    from_auth.TimeoutError: NETWORK,
    from_auth.ResponseError: NETWORK,
    # requests
    from_requests.RequestException: NETWORK,
    from_requests.InvalidJSONError: NETWORK,
    from_requests.JSONDecodeError: NETWORK,
    from_requests.HTTPError: NETWORK,
    from_requests.ConnectionError: NETWORK,
    from_requests.ProxyError: NETWORK,
    from_requests.SSLError: NETWORK,
    from_requests.Timeout: NETWORK,
    from_requests.ConnectTimeout: NETWORK,
    from_requests.ReadTimeout: NETWORK,
    from_requests.URLRequired: REQUEST,
    from_requests.TooManyRedirects: REQUEST,
    from_requests.MissingSchema: REQUEST,
    from_requests.InvalidSchema: REQUEST,
    from_requests.InvalidURL: REQUEST,
    from_requests.InvalidHeader: REQUEST,
    from_requests.InvalidProxyURL: REQUEST,
    from_requests.ChunkedEncodingError: NETWORK,
    from_requests.ContentDecodingError: NETWORK,
    from_requests.StreamConsumedError: NETWORK,
    from_requests.RetryError: NETWORK,
    from_requests.UnrewindableBodyError: NETWORK,
}

# Error reasons that are more specific than the HTTP status, both for whole requests and for single rows:
# https://cloud.google.com/bigquery/docs/error-messages,
# https://cloud.google.com/storage/docs/json_api/v1/status-codes
BLAME_BY_REASON: dict[str, Blame] = {
    # With these reasons, a 403 (or a 400) means overload, not missing permissions.
    "backendError": SERVER,
    "blocked": SERVER,
    "dailyLimitExceeded": SERVER,
    "internalError": SERVER,
    "jobBackendError": SERVER,
    "jobInternalError": SERVER,
    "quotaExceeded": SERVER,
    "rateLimitExceeded": SERVER,
    "resourceInUse": SERVER,
    "resourcesExceeded": SERVER,
    "stopped": SERVER,
    "tableUnavailable": SERVER,
    "timeout": SERVER,
    "userRateLimitExceeded": SERVER,
    # The account is at fault: its permissions, its billing, or the project that pays for the request.
    "accessDenied": CREDENTIALS,
    "accountDisabled": CREDENTIALS,
    "authError": CREDENTIALS,
    "billingNotEnabled": CREDENTIALS,
    "billingTierLimitExceeded": CREDENTIALS,
    "forbidden": CREDENTIALS,
    "insufficientPermissions": CREDENTIALS,
    "userProjectAccountProblem": CREDENTIALS,
    "userProjectInconsistent": CREDENTIALS,
    "userProjectMissing": CREDENTIALS,
    # The bucket, dataset or table is at fault.
    "notFound": TABLE,
    # The form of the request is at fault, not its content.
    "invalidAltValue": REQUEST,
    "invalidParameter": REQUEST,
    "invalidQuery": REQUEST,
    "notImplemented": REQUEST,
    "responseTooLarge": REQUEST,
    "wrongUrlForUpload": REQUEST,
    # The request is too large, whatever the status.
    "requestTooLarge": Blame.SIZE,
    "uploadTooLarge": Blame.SIZE,
}
_BLAME_BY_LOWERCASE_REASON = {reason.lower(): blame for reason, blame in BLAME_BY_REASON.items()}

# A request that exceeds the front end's size limit gets a 400 whose reason does not mention the size.
_TOO_LARGE = re.compile(
    r"payload size exceeds|request (?:entity )?(?:is )?too large|too many rows present in the request",
    re.IGNORECASE,
)


def advice(error: BaseException, missing: str, denied: str) -> str:
    """Returns the advice that is appended to the message: one text for a missing resource, another text for denied
    access.
    """
    if isinstance(error, from_api.NotFound):
        return f"; {missing}"
    return f"; {denied}" if isinstance(error, from_api.Forbidden | from_api.Unauthorized) else ""


def blame_of_reasons(reasons: list[str]) -> Blame | None:
    """Returns the cause that the reasons in one error indicate; None if they add nothing to the error's status.
    SERVER takes precedence, because its reasons include overload."""
    found = [
        _BLAME_BY_LOWERCASE_REASON[reason.lower()]
        for reason in reasons
        if reason.lower() in _BLAME_BY_LOWERCASE_REASON
    ]
    return SERVER if SERVER in found else found[0] if found else None


def classify(error: BaseException) -> Failure:
    """Returns the cause of this exception. An unknown class counts as a server error: the write is retried, then
    the batch is parked, and nothing is lost."""
    blame = next((BLAME_BY_CLASS[cls] for cls in type(error).__mro__ if cls in BLAME_BY_CLASS), SERVER)
    text = f"{type(error).__name__}: {error}"
    retry_after = None
    if isinstance(error, from_api.GoogleAPICallError):
        reasons = [str(entry.get("reason", "")) for entry in error.errors or () if isinstance(entry, dict)]
        blame = blame_of_reasons(reasons) or _blame_of_google_status(error.code, text, blame)
        headers = getattr(error.response, "headers", None) or {}
        retry_after = retry_after_seconds(headers.get("Retry-After"))
    elif isinstance(error, from_auth.RefreshError) and getattr(error, "retryable", False):
        blame = SERVER
    elif "CERTIFICATE_VERIFY_FAILED" in text:
        blame = REQUEST
    return Failure(blame, text, retry_after)


def classify_answer(answer: Answer) -> Failure:
    """Returns the cause of an unsuccessful response from Google's JSON APIs."""
    error_object = (answer.json_object() or {}).get("error")
    if not isinstance(error_object, dict):
        return failure_of_status(answer)  # a proxy's page or an empty body; only the status is usable
    text = str(error_object.get("message") or describe_answer(answer))
    entries = error_object.get("errors")
    reasons = [
        str(entry.get("reason", ""))
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, dict)
    ]
    blame = blame_of_reasons(reasons) or _blame_of_google_status(answer.status, text, BATCH)
    return Failure(blame, f"HTTP {answer.status}: {text}", answer.retry_after_seconds)


def _blame_of_google_status(status: int | None, text: str, bad_request_blame: Blame) -> Blame:
    """Classifies an error that Google itself returned (not a proxy), based on the error's HTTP status.
    `bad_request_blame`: classification of a plain 400."""
    if status == 400:
        return Blame.SIZE if _TOO_LARGE.search(text) else bad_request_blame
    if status is None or status not in BLAME_BY_STATUS:
        return SERVER
    return blame_of_status(status)
