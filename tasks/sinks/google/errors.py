"""Google's errors, sorted: of google-api-core, google-auth, and the HTTP clients below them.

Every exception class of those libraries stands in `KIND_OF_CLASS`, and a test fails when an upgrade brings one
that does not. Where the class does not tell (403 is both a missing right and a spent quota), `sort` looks at
what the server said.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import ssl
import time
from typing import Any

import requests.exceptions as from_requests
import urllib3.exceptions as from_urllib3
from google.api_core import exceptions as from_api
from google.auth import exceptions as from_auth

from tasks.sinks.outcome import Kind, Trouble

TRANSIENT, DATA, CONFIGURATION = Kind.TRANSIENT, Kind.DATA, Kind.CONFIGURATION

KIND_OF_CLASS: dict[type[BaseException], Kind] = {
    # google.api_core, by HTTP status
    from_api.GoogleAPIError: TRANSIENT,
    from_api.DuplicateCredentialArgs: CONFIGURATION,
    from_api.RetryError: TRANSIENT,
    from_api.GoogleAPICallError: TRANSIENT,
    from_api.Redirection: CONFIGURATION,
    from_api.MovedPermanently: CONFIGURATION,
    from_api.NotModified: CONFIGURATION,
    from_api.TemporaryRedirect: CONFIGURATION,
    from_api.ResumeIncomplete: TRANSIENT,
    from_api.ClientError: CONFIGURATION,
    from_api.BadRequest: DATA,
    from_api.InvalidArgument: DATA,
    from_api.FailedPrecondition: DATA,
    from_api.OutOfRange: DATA,
    from_api.Unauthorized: CONFIGURATION,
    from_api.Unauthenticated: CONFIGURATION,
    from_api.Forbidden: CONFIGURATION,
    from_api.PermissionDenied: CONFIGURATION,
    from_api.NotFound: CONFIGURATION,
    from_api.MethodNotAllowed: CONFIGURATION,
    from_api.Conflict: TRANSIENT,
    from_api.AlreadyExists: TRANSIENT,
    from_api.Aborted: TRANSIENT,
    from_api.LengthRequired: CONFIGURATION,
    from_api.PreconditionFailed: CONFIGURATION,
    from_api.RequestRangeNotSatisfiable: DATA,
    from_api.TooManyRequests: TRANSIENT,
    from_api.ResourceExhausted: TRANSIENT,
    from_api.Cancelled: TRANSIENT,
    from_api.ServerError: TRANSIENT,
    from_api.InternalServerError: TRANSIENT,
    from_api.Unknown: TRANSIENT,
    from_api.DataLoss: TRANSIENT,
    from_api.MethodNotImplemented: CONFIGURATION,
    from_api.BadGateway: TRANSIENT,
    from_api.ServiceUnavailable: TRANSIENT,
    from_api.GatewayTimeout: TRANSIENT,
    from_api.DeadlineExceeded: TRANSIENT,
    from_api.AsyncRestUnsupportedParameterError: CONFIGURATION,
    from_api.ResumableTransferError: TRANSIENT,
    from_api.TransferStalledError: TRANSIENT,
    from_api.UnseekableStreamError: TRANSIENT,
    from_api.UploadCancelledError: TRANSIENT,
    from_api.MissingStatusHeaderError: TRANSIENT,
    # google.auth: the token could not be fetched now, or there is nothing to fetch it with
    from_auth.GoogleAuthError: TRANSIENT,
    from_auth.TransportError: TRANSIENT,
    from_auth.RefreshError: CONFIGURATION,
    from_auth.UserAccessTokenError: CONFIGURATION,
    from_auth.DefaultCredentialsError: CONFIGURATION,
    from_auth.MutualTLSChannelError: CONFIGURATION,
    from_auth.ClientCertError: CONFIGURATION,
    from_auth.OAuthError: CONFIGURATION,
    from_auth.ReauthFailError: CONFIGURATION,
    from_auth.ReauthSamlChallengeFailError: CONFIGURATION,
    from_auth.MalformedError: CONFIGURATION,
    from_auth.InvalidResource: CONFIGURATION,
    from_auth.InvalidOperation: CONFIGURATION,
    from_auth.InvalidValue: CONFIGURATION,
    from_auth.InvalidType: CONFIGURATION,
    from_auth.OSError: CONFIGURATION,
    from_auth.TimeoutError: TRANSIENT,
    from_auth.ResponseError: TRANSIENT,
    # requests
    from_requests.RequestException: TRANSIENT,
    from_requests.InvalidJSONError: TRANSIENT,
    from_requests.JSONDecodeError: TRANSIENT,
    from_requests.HTTPError: TRANSIENT,
    from_requests.ConnectionError: TRANSIENT,
    from_requests.ProxyError: TRANSIENT,
    from_requests.SSLError: TRANSIENT,
    from_requests.Timeout: TRANSIENT,
    from_requests.ConnectTimeout: TRANSIENT,
    from_requests.ReadTimeout: TRANSIENT,
    from_requests.URLRequired: CONFIGURATION,
    from_requests.TooManyRedirects: CONFIGURATION,
    from_requests.MissingSchema: CONFIGURATION,
    from_requests.InvalidSchema: CONFIGURATION,
    from_requests.InvalidURL: CONFIGURATION,
    from_requests.InvalidHeader: CONFIGURATION,
    from_requests.InvalidProxyURL: CONFIGURATION,
    from_requests.ChunkedEncodingError: TRANSIENT,
    from_requests.ContentDecodingError: TRANSIENT,
    from_requests.StreamConsumedError: TRANSIENT,
    from_requests.RetryError: TRANSIENT,
    from_requests.UnrewindableBodyError: TRANSIENT,
    # urllib3
    from_urllib3.HTTPError: TRANSIENT,
    from_urllib3.PoolError: TRANSIENT,
    from_urllib3.RequestError: TRANSIENT,
    from_urllib3.SSLError: TRANSIENT,
    from_urllib3.ProxyError: TRANSIENT,
    from_urllib3.DecodeError: TRANSIENT,
    from_urllib3.ProtocolError: TRANSIENT,
    from_urllib3.MaxRetryError: TRANSIENT,
    from_urllib3.HostChangedError: CONFIGURATION,
    from_urllib3.TimeoutStateError: TRANSIENT,
    from_urllib3.TimeoutError: TRANSIENT,
    from_urllib3.ReadTimeoutError: TRANSIENT,
    from_urllib3.ConnectTimeoutError: TRANSIENT,
    from_urllib3.NewConnectionError: TRANSIENT,
    from_urllib3.NameResolutionError: TRANSIENT,
    from_urllib3.EmptyPoolError: TRANSIENT,
    from_urllib3.FullPoolError: TRANSIENT,
    from_urllib3.ClosedPoolError: TRANSIENT,
    from_urllib3.LocationValueError: CONFIGURATION,
    from_urllib3.LocationParseError: CONFIGURATION,
    from_urllib3.URLSchemeUnknown: CONFIGURATION,
    from_urllib3.ResponseError: TRANSIENT,
    from_urllib3.ResponseNotChunked: TRANSIENT,
    from_urllib3.BodyNotHttplibCompatible: TRANSIENT,
    from_urllib3.IncompleteRead: TRANSIENT,
    from_urllib3.InvalidChunkLength: TRANSIENT,
    from_urllib3.InvalidHeader: TRANSIENT,
    from_urllib3.ProxySchemeUnknown: CONFIGURATION,
    from_urllib3.ProxySchemeUnsupported: CONFIGURATION,
    from_urllib3.HeaderParsingError: TRANSIENT,
    from_urllib3.UnrewindableBodyError: TRANSIENT,
    # the standard library's HTTP client and the sockets under it
    ssl.SSLCertVerificationError: CONFIGURATION,
    http.client.HTTPException: TRANSIENT,
    http.client.InvalidURL: CONFIGURATION,
    ConnectionError: TRANSIENT,
    TimeoutError: TRANSIENT,
    OSError: TRANSIENT,
}

# https://cloud.google.com/bigquery/docs/error-messages and the JSON API's errors of Cloud Storage: with these
# a 403 (or 400) is about load, not about rights.
TRANSIENT_REASONS = frozenset(
    {"rateLimitExceeded", "userRateLimitExceeded", "quotaExceeded", "backendError", "internalError", "timeout",
     "tableUnavailable", "dailyLimitExceeded"}
)  # fmt: skip


def advice(error: BaseException, missing: str, denied: str) -> str:
    """What to do, to be put behind the message: one text where a thing is missing, another where it is denied."""
    if isinstance(error, from_api.NotFound):
        return f"; {missing}"
    return f"; {denied}" if isinstance(error, from_api.Forbidden | from_api.Unauthorized) else ""


def sort(error: BaseException) -> Trouble:
    """Who acts on this exception. One of no known class is transient: bounded retries, then parked, never lost."""
    kind = next((KIND_OF_CLASS[cls] for cls in type(error).__mro__ if cls in KIND_OF_CLASS), TRANSIENT)
    text = f"{type(error).__name__}: {error}"
    retry_after = None
    if isinstance(error, from_api.GoogleAPICallError):
        kind = _of_status(error.code, [str(entry.get("reason", "")) for entry in _entries(error)], kind)
        headers = getattr(error.response, "headers", None) or {}
        retry_after = retry_after_seconds(headers.get("Retry-After"))
    elif isinstance(error, from_auth.RefreshError) and getattr(error, "retryable", False):
        kind = TRANSIENT
    elif "CERTIFICATE_VERIFY_FAILED" in text:
        kind = CONFIGURATION
    return Trouble(kind, text, retry_after)


def sort_answer(status: int, body: bytes, asked_seconds: float | None) -> Trouble:
    """Who acts on an HTTP answer of Google's JSON APIs that is not a success, and asked for so many seconds."""
    reasons, text = [], body[:300].decode("utf-8", "replace")
    try:
        said = json.loads(body)["error"]
        text = str(said.get("message", text))
        reasons = [str(entry.get("reason", "")) for entry in said.get("errors", ())]
    except (ValueError, LookupError, TypeError, AttributeError):
        pass  # a proxy's page, or nothing: the status alone has to do
    cls: Any = type(from_api.from_http_status(status, text))  # type: ignore[no-untyped-call]
    kind = next(KIND_OF_CLASS[base] for base in cls.__mro__ if base in KIND_OF_CLASS)
    return Trouble(_of_status(status, reasons, kind), f"HTTP {status}: {text}", asked_seconds)


def retry_after_seconds(value: str | None) -> float | None:
    """A Retry-After header, in seconds from now: it is a number or a date. None when it is neither."""
    if not value:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        at = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError):
        return None
    return max(0.0, at - time.time())


def _of_status(status: int | None, reasons: list[str], kind: Kind) -> Kind:
    if TRANSIENT_REASONS.intersection(reasons) or status in (408, 429):
        return TRANSIENT
    if status is not None and status >= 500:
        return CONFIGURATION if status == 501 else TRANSIENT
    return DATA if status == 413 else kind


def _entries(error: Any) -> list[dict[str, Any]]:
    return [entry for entry in error.errors or () if isinstance(entry, dict)]
