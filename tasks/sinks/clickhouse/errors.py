"""Classifies ClickHouse errors by the server's code if there is one, otherwise by the class of the driver's
exception.

ClickHouse has about 650 codes. An insert with well-formed statements can fail with the codes listed here; any
other code counts as a server error, which means bounded retries and then a parked batch that an operator sees. A
code is listed under BATCH only if a row can be at fault, because rows refused with a BATCH code may become dead
letters once the table has been examined. Names and numbers are those of ClickHouse's ErrorCodes.cpp; a test
compares them with a running server.
"""

from __future__ import annotations

import re

from clickhouse_connect.driver import exceptions as driver

from tasks.faults import WHAT_TO_DO, Cause, Server
from tasks.sinks.http.answers import blame_of_status
from tasks.sinks.http.errors import BLAME_BY_HTTP_CLASS
from tasks.sinks.outcome import Blame, Failure

BATCH, REQUEST, CREDENTIALS = Blame.BATCH, Blame.REQUEST, Blame.CREDENTIALS
TABLE, SERVER, NETWORK = Blame.TABLE, Blame.SERVER, Blame.NETWORK

BLAME_BY_CODE: dict[tuple[int, str], Blame] = {
    # Codes for load, memory, time, network and replication problems: the same insert can succeed later.
    (3, "UNEXPECTED_END_OF_FILE"): NETWORK,
    (23, "CANNOT_READ_FROM_ISTREAM"): NETWORK,
    (40, "CHECKSUM_DOESNT_MATCH"): NETWORK,
    (95, "CANNOT_READ_FROM_SOCKET"): NETWORK,
    (96, "CANNOT_WRITE_TO_SOCKET"): NETWORK,
    (159, "TIMEOUT_EXCEEDED"): SERVER,
    (160, "TOO_SLOW"): SERVER,
    (173, "CANNOT_ALLOCATE_MEMORY"): SERVER,
    (198, "DNS_ERROR"): NETWORK,
    (201, "QUOTA_EXCEEDED"): SERVER,
    (202, "TOO_MANY_SIMULTANEOUS_QUERIES"): SERVER,
    (203, "NO_FREE_CONNECTION"): SERVER,
    (209, "SOCKET_TIMEOUT"): NETWORK,
    (210, "NETWORK_ERROR"): NETWORK,
    (218, "TABLE_IS_DROPPED"): SERVER,
    (225, "NO_ZOOKEEPER"): SERVER,
    (236, "ABORTED"): SERVER,
    (241, "MEMORY_LIMIT_EXCEEDED"): SERVER,
    (242, "TABLE_IS_READ_ONLY"): SERVER,
    (243, "NOT_ENOUGH_SPACE"): SERVER,
    (244, "UNEXPECTED_ZOOKEEPER_ERROR"): SERVER,
    (252, "TOO_MANY_PARTS"): SERVER,
    (254, "NO_ACTIVE_REPLICAS"): SERVER,
    (265, "NO_AVAILABLE_REPLICA"): SERVER,
    (279, "ALL_CONNECTION_TRIES_FAILED"): NETWORK,
    (285, "TOO_FEW_LIVE_REPLICAS"): SERVER,
    (286, "UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE"): SERVER,
    (289, "REPLICA_IS_NOT_IN_QUORUM"): SERVER,
    (319, "UNKNOWN_STATUS_OF_INSERT"): SERVER,
    (354, "ZLIB_INFLATE_FAILED"): NETWORK,
    (364, "RECEIVED_ERROR_TOO_MANY_REQUESTS"): SERVER,
    (394, "QUERY_WAS_CANCELLED"): SERVER,
    (410, "EXTERNAL_SERVER_IS_NOT_RESPONDING"): SERVER,
    (425, "SYSTEM_ERROR"): SERVER,
    (499, "S3_ERROR"): SERVER,
    (561, "ZSTD_DECODER_FAILED"): NETWORK,
    (568, "RAFT_ERROR"): SERVER,
    (574, "DISTRIBUTED_TOO_MANY_PENDING_BYTES"): SERVER,
    (618, "LZ4_DECODER_FAILED"): NETWORK,
    (700, "USER_SESSION_LIMIT_EXCEEDED"): SERVER,
    (733, "TABLE_IS_BEING_RESTARTED"): SERVER,
    (735, "QUERY_WAS_CANCELLED_BY_CLIENT"): SERVER,
    (745, "SERVER_OVERLOADED"): SERVER,
    (749, "TCP_CONNECTION_LIMIT_REACHED"): SERVER,
    (762, "HTTP_CONNECTION_LIMIT_REACHED"): SERVER,
    (999, "KEEPER_EXCEPTION"): SERVER,
    (1000, "POCO_EXCEPTION"): SERVER,
    (1001, "STD_EXCEPTION"): SERVER,
    (1002, "UNKNOWN_EXCEPTION"): SERVER,
    # Codes for schema, permission and settings problems: no row is at fault.
    (8, "THERE_IS_NO_COLUMN"): TABLE,
    (10, "NOT_FOUND_COLUMN_IN_BLOCK"): TABLE,
    (16, "NO_SUCH_COLUMN_IN_TABLE"): TABLE,
    (46, "UNKNOWN_FUNCTION"): REQUEST,
    (47, "UNKNOWN_IDENTIFIER"): TABLE,
    (48, "NOT_IMPLEMENTED"): TABLE,
    (60, "UNKNOWN_TABLE"): TABLE,
    (62, "SYNTAX_ERROR"): REQUEST,
    (73, "UNKNOWN_FORMAT"): REQUEST,
    (81, "UNKNOWN_DATABASE"): TABLE,
    (115, "UNKNOWN_SETTING"): REQUEST,
    (164, "READONLY"): CREDENTIALS,
    (192, "UNKNOWN_USER"): CREDENTIALS,
    (193, "WRONG_PASSWORD"): CREDENTIALS,
    (194, "REQUIRED_PASSWORD"): CREDENTIALS,
    (195, "IP_ADDRESS_NOT_ALLOWED"): CREDENTIALS,
    (291, "DATABASE_ACCESS_DENIED"): CREDENTIALS,
    (344, "SUPPORT_IS_DISABLED"): REQUEST,
    (392, "QUERY_IS_PROHIBITED"): REQUEST,
    (452, "SETTING_CONSTRAINT_VIOLATION"): REQUEST,
    (471, "INVALID_SETTING_VALUE"): REQUEST,
    (472, "READONLY_SETTING"): REQUEST,
    (497, "ACCESS_DENIED"): CREDENTIALS,
    (516, "AUTHENTICATION_FAILED"): CREDENTIALS,
    (720, "USER_EXPIRED"): CREDENTIALS,
    # Codes for a value that the column does not accept.
    (6, "CANNOT_PARSE_TEXT"): BATCH,
    (25, "CANNOT_PARSE_ESCAPE_SEQUENCE"): BATCH,
    (26, "CANNOT_PARSE_QUOTED_STRING"): BATCH,
    (27, "CANNOT_PARSE_INPUT_ASSERTION_FAILED"): BATCH,
    (32, "ATTEMPT_TO_READ_AFTER_EOF"): BATCH,
    (33, "CANNOT_READ_ALL_DATA"): BATCH,
    (38, "CANNOT_PARSE_DATE"): BATCH,
    (41, "CANNOT_PARSE_DATETIME"): BATCH,
    (53, "TYPE_MISMATCH"): BATCH,
    (69, "ARGUMENT_OUT_OF_BOUND"): BATCH,
    (70, "CANNOT_CONVERT_TYPE"): BATCH,
    (72, "CANNOT_PARSE_NUMBER"): BATCH,
    (117, "INCORRECT_DATA"): BATCH,
    (128, "TOO_LARGE_ARRAY_SIZE"): BATCH,
    (130, "CANNOT_READ_ARRAY_FROM_TEXT"): BATCH,
    (131, "TOO_LARGE_STRING_SIZE"): BATCH,
    (190, "SIZES_OF_ARRAYS_DONT_MATCH"): BATCH,
    (321, "VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE"): BATCH,
    (349, "CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN"): BATCH,
    (376, "CANNOT_PARSE_UUID"): BATCH,
    (407, "DECIMAL_OVERFLOW"): BATCH,
    (441, "CANNOT_PARSE_DOMAIN_VALUE_FROM_STRING"): BATCH,
    (467, "CANNOT_PARSE_BOOL"): BATCH,
    (469, "VIOLATED_CONSTRAINT"): BATCH,
    (563, "CANNOT_READ_MAP_FROM_TEXT"): BATCH,
    (632, "UNEXPECTED_DATA_AFTER_PARSED_VALUE"): BATCH,
    (675, "CANNOT_PARSE_IPV4"): BATCH,
    (676, "CANNOT_PARSE_IPV6"): BATCH,
    (691, "UNKNOWN_ELEMENT_OF_ENUM"): BATCH,
}

# The user or the password is not accepted, or no password was sent. The other codes under CREDENTIALS
# concern permissions.
LOGIN_CODES = frozenset((192, 193, 194, 516))
REFUSED_LOGIN = WHAT_TO_DO[Server.CLICKHOUSE, Cause.LOGIN]

# An error without a code arose in the driver, on the network or in a proxy.
BLAME_BY_CLASS: dict[type[BaseException], Blame] = {
    driver.ClickHouseError: SERVER,
    driver.Warning: SERVER,
    driver.Error: SERVER,
    driver.InterfaceError: REQUEST,
    driver.DatabaseError: SERVER,
    driver.DataError: BATCH,
    driver.OperationalError: NETWORK,
    driver.IntegrityError: BATCH,
    driver.InternalError: SERVER,
    driver.ProgrammingError: REQUEST,
    driver.NotSupportedError: REQUEST,
    driver.StreamClosedError: NETWORK,
    driver.StreamCompleteException: NETWORK,
    driver.StreamFailureError: NETWORK,
}

_BLAME_BY_NUMBER = {number: blame for (number, _), blame in BLAME_BY_CODE.items()}
# A format error contains `(at row 3)`; a violated constraint is reported with `is violated at row 3.`
_ROW = re.compile(r"\(at row (\d{1,9})\)|is violated at row (\d{1,9})\.")
_STATUS = re.compile(r"HTTP status (\d{3})")
_URL = re.compile(r"\s*\(for url [^)]*\)")

# If a row has a column that the table lacks, the server returns the same error code as for an invalid value. If
# the reader is newer than the schema, every row has such a column. These rows are valid and must not become dead
# letters.
UNKNOWN_FIELD = "Unknown field found while parsing"
# If a materialized view fails on rows that its source table accepts, the view is at fault.
PUSHING_TO_VIEW = "while pushing to view"


def failure_of_code(code: int, text: str) -> Failure:
    """Returns the cause of a server exception, by its code; `text` is its message.

    For a refused login, only the first line is kept, because the server adds advice for its own administrator.
    """
    if code in LOGIN_CODES:
        first, _, _ = text.strip().partition("\n")
        return Failure(CREDENTIALS, f"{first.rstrip('.')}; {REFUSED_LOGIN}")
    if UNKNOWN_FIELD in text:
        return Failure(TABLE, f"{text}; run `replays-ingest migrate`")
    blame = _BLAME_BY_NUMBER.get(code, SERVER)
    if blame is BATCH and PUSHING_TO_VIEW in text:
        blame = TABLE
    return Failure(blame, text)


def classify(error: BaseException) -> Failure:
    """Returns the cause of this driver exception."""
    text = _URL.sub("", str(error))
    code = getattr(error, "code", None)
    if isinstance(code, int) and isinstance(error, driver.Error):
        return failure_of_code(code, text)
    classes = type(error).__mro__
    tables = (BLAME_BY_CLASS, BLAME_BY_HTTP_CLASS)
    blame = next((table[cls] for cls in classes for table in tables if cls in table), SERVER)
    status = _STATUS.search(text)
    if status:
        blame = blame_of_status(int(status[1]))  # a proxy's error: the server itself would send a code
    if "CERTIFICATE_VERIFY_FAILED" in text:
        blame = REQUEST
    return Failure(blame, f"{type(error).__name__}: {text}")


def row_of(message: str) -> int | None:
    """Returns the 0-based position of the row that the server reports as refused; None if it does not report
    one.
    """
    found = _ROW.search(message)
    return int(found[1] or found[2]) - 1 if found else None
