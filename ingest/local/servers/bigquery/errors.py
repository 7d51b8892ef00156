"""Errors in the format of Google's APIs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STATUS_NAMES = {
    400: "INVALID_ARGUMENT",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ALREADY_EXISTS",
    412: "FAILED_PRECONDITION",
}


class ApiError(Exception):
    """An error in the format of Google's APIs, with an HTTP status, a reason and a message."""

    def __init__(self, code: int, reason: str, message: str, location: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.location = location


def bad_request(message: str, reason: str = "invalid", location: str = "") -> ApiError:
    """Returns an error with status 400."""
    return ApiError(400, reason, message, location)


def check_etag(resource: Mapping[str, Any], if_match: str) -> None:
    """Raises ApiError 412 if the client's etag is not the resource's current one."""
    if if_match not in ("", "*", resource["etag"]):
        raise ApiError(412, "conditionNotMet", "Precondition Failed", "If-Match")


def error_body(code: int, reason: str, message: str, location: str = "") -> dict[str, Any]:
    """Returns the JSON body of the error, in the format of Google's APIs."""
    detail = {"message": message, "domain": "global", "reason": reason}
    if location:
        detail |= {"location": location, "locationType": "parameter"}
    status = STATUS_NAMES.get(code, "UNKNOWN")
    return {"error": {"code": code, "message": message, "errors": [detail], "status": status}}
