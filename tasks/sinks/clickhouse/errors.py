"""ClickHouse's errors, sorted: by the server's code where there is one, by the driver's class otherwise.

The server knows about 650 codes. An insert of well-formed statements can meet those listed here; any other one
counts as transient, which means bounded retries and then a parked batch that a person sees. A code stands under
DATA only if a row can be at fault and nothing else, because what is sorted there ends as dead letters.
Names and numbers are those of ClickHouse's ErrorCodes.cpp; a test compares them with a running server.
"""

from __future__ import annotations

import re

from clickhouse_connect.driver import exceptions as driver

from tasks.sinks.google.errors import KIND_OF_CLASS as KIND_OF_HTTP_CLASS
from tasks.sinks.outcome import Kind, Trouble

TRANSIENT, DATA, CONFIGURATION = Kind.TRANSIENT, Kind.DATA, Kind.CONFIGURATION

KIND_OF_CODE: dict[tuple[int, str], Kind] = {
    # Load, memory, time, network, replication: the same insert works later.
    (3, "UNEXPECTED_END_OF_FILE"): TRANSIENT,
    (23, "CANNOT_READ_FROM_ISTREAM"): TRANSIENT,
    (40, "CHECKSUM_DOESNT_MATCH"): TRANSIENT,
    (95, "CANNOT_READ_FROM_SOCKET"): TRANSIENT,
    (96, "CANNOT_WRITE_TO_SOCKET"): TRANSIENT,
    (159, "TIMEOUT_EXCEEDED"): TRANSIENT,
    (160, "TOO_SLOW"): TRANSIENT,
    (173, "CANNOT_ALLOCATE_MEMORY"): TRANSIENT,
    (198, "DNS_ERROR"): TRANSIENT,
    (201, "QUOTA_EXCEEDED"): TRANSIENT,
    (202, "TOO_MANY_SIMULTANEOUS_QUERIES"): TRANSIENT,
    (203, "NO_FREE_CONNECTION"): TRANSIENT,
    (209, "SOCKET_TIMEOUT"): TRANSIENT,
    (210, "NETWORK_ERROR"): TRANSIENT,
    (218, "TABLE_IS_DROPPED"): TRANSIENT,
    (225, "NO_ZOOKEEPER"): TRANSIENT,
    (236, "ABORTED"): TRANSIENT,
    (241, "MEMORY_LIMIT_EXCEEDED"): TRANSIENT,
    (242, "TABLE_IS_READ_ONLY"): TRANSIENT,
    (243, "NOT_ENOUGH_SPACE"): TRANSIENT,
    (244, "UNEXPECTED_ZOOKEEPER_ERROR"): TRANSIENT,
    (252, "TOO_MANY_PARTS"): TRANSIENT,
    (254, "NO_ACTIVE_REPLICAS"): TRANSIENT,
    (265, "NO_AVAILABLE_REPLICA"): TRANSIENT,
    (279, "ALL_CONNECTION_TRIES_FAILED"): TRANSIENT,
    (285, "TOO_FEW_LIVE_REPLICAS"): TRANSIENT,
    (286, "UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE"): TRANSIENT,
    (289, "REPLICA_IS_NOT_IN_QUORUM"): TRANSIENT,
    (319, "UNKNOWN_STATUS_OF_INSERT"): TRANSIENT,
    (354, "ZLIB_INFLATE_FAILED"): TRANSIENT,
    (364, "RECEIVED_ERROR_TOO_MANY_REQUESTS"): TRANSIENT,
    (394, "QUERY_WAS_CANCELLED"): TRANSIENT,
    (410, "EXTERNAL_SERVER_IS_NOT_RESPONDING"): TRANSIENT,
    (425, "SYSTEM_ERROR"): TRANSIENT,
    (499, "S3_ERROR"): TRANSIENT,
    (561, "ZSTD_DECODER_FAILED"): TRANSIENT,
    (568, "RAFT_ERROR"): TRANSIENT,
    (574, "DISTRIBUTED_TOO_MANY_PENDING_BYTES"): TRANSIENT,
    (618, "LZ4_DECODER_FAILED"): TRANSIENT,
    (700, "USER_SESSION_LIMIT_EXCEEDED"): TRANSIENT,
    (733, "TABLE_IS_BEING_RESTARTED"): TRANSIENT,
    (735, "QUERY_WAS_CANCELLED_BY_CLIENT"): TRANSIENT,
    (745, "SERVER_OVERLOADED"): TRANSIENT,
    (749, "TCP_CONNECTION_LIMIT_REACHED"): TRANSIENT,
    (762, "HTTP_CONNECTION_LIMIT_REACHED"): TRANSIENT,
    (999, "KEEPER_EXCEPTION"): TRANSIENT,
    (1000, "POCO_EXCEPTION"): TRANSIENT,
    (1001, "STD_EXCEPTION"): TRANSIENT,
    (1002, "UNKNOWN_EXCEPTION"): TRANSIENT,
    # Schema, rights, settings: no row is to blame.
    (8, "THERE_IS_NO_COLUMN"): CONFIGURATION,
    (10, "NOT_FOUND_COLUMN_IN_BLOCK"): CONFIGURATION,
    (16, "NO_SUCH_COLUMN_IN_TABLE"): CONFIGURATION,
    (46, "UNKNOWN_FUNCTION"): CONFIGURATION,
    (47, "UNKNOWN_IDENTIFIER"): CONFIGURATION,
    (48, "NOT_IMPLEMENTED"): CONFIGURATION,
    (60, "UNKNOWN_TABLE"): CONFIGURATION,
    (62, "SYNTAX_ERROR"): CONFIGURATION,
    (73, "UNKNOWN_FORMAT"): CONFIGURATION,
    (81, "UNKNOWN_DATABASE"): CONFIGURATION,
    (115, "UNKNOWN_SETTING"): CONFIGURATION,
    (164, "READONLY"): CONFIGURATION,
    (192, "UNKNOWN_USER"): CONFIGURATION,
    (193, "WRONG_PASSWORD"): CONFIGURATION,
    (194, "REQUIRED_PASSWORD"): CONFIGURATION,
    (195, "IP_ADDRESS_NOT_ALLOWED"): CONFIGURATION,
    (291, "DATABASE_ACCESS_DENIED"): CONFIGURATION,
    (344, "SUPPORT_IS_DISABLED"): CONFIGURATION,
    (392, "QUERY_IS_PROHIBITED"): CONFIGURATION,
    (452, "SETTING_CONSTRAINT_VIOLATION"): CONFIGURATION,
    (471, "INVALID_SETTING_VALUE"): CONFIGURATION,
    (472, "READONLY_SETTING"): CONFIGURATION,
    (497, "ACCESS_DENIED"): CONFIGURATION,
    (516, "AUTHENTICATION_FAILED"): CONFIGURATION,
    (720, "USER_EXPIRED"): CONFIGURATION,
    # A value that the column does not take.
    (6, "CANNOT_PARSE_TEXT"): DATA,
    (25, "CANNOT_PARSE_ESCAPE_SEQUENCE"): DATA,
    (26, "CANNOT_PARSE_QUOTED_STRING"): DATA,
    (27, "CANNOT_PARSE_INPUT_ASSERTION_FAILED"): DATA,
    (32, "ATTEMPT_TO_READ_AFTER_EOF"): DATA,
    (33, "CANNOT_READ_ALL_DATA"): DATA,
    (38, "CANNOT_PARSE_DATE"): DATA,
    (41, "CANNOT_PARSE_DATETIME"): DATA,
    (53, "TYPE_MISMATCH"): DATA,
    (69, "ARGUMENT_OUT_OF_BOUND"): DATA,
    (70, "CANNOT_CONVERT_TYPE"): DATA,
    (72, "CANNOT_PARSE_NUMBER"): DATA,
    (117, "INCORRECT_DATA"): DATA,
    (128, "TOO_LARGE_ARRAY_SIZE"): DATA,
    (130, "CANNOT_READ_ARRAY_FROM_TEXT"): DATA,
    (131, "TOO_LARGE_STRING_SIZE"): DATA,
    (190, "SIZES_OF_ARRAYS_DONT_MATCH"): DATA,
    (321, "VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE"): DATA,
    (349, "CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN"): DATA,
    (376, "CANNOT_PARSE_UUID"): DATA,
    (407, "DECIMAL_OVERFLOW"): DATA,
    (441, "CANNOT_PARSE_DOMAIN_VALUE_FROM_STRING"): DATA,
    (467, "CANNOT_PARSE_BOOL"): DATA,
    (469, "VIOLATED_CONSTRAINT"): DATA,
    (563, "CANNOT_READ_MAP_FROM_TEXT"): DATA,
    (632, "UNEXPECTED_DATA_AFTER_PARSED_VALUE"): DATA,
    (675, "CANNOT_PARSE_IPV4"): DATA,
    (676, "CANNOT_PARSE_IPV6"): DATA,
    (691, "UNKNOWN_ELEMENT_OF_ENUM"): DATA,
}

# Without a code the error arose in the driver, on the network or in a proxy.
KIND_OF_CLASS: dict[type[BaseException], Kind] = {
    driver.ClickHouseError: TRANSIENT,
    driver.Warning: TRANSIENT,
    driver.Error: TRANSIENT,
    driver.InterfaceError: CONFIGURATION,
    driver.DatabaseError: TRANSIENT,
    driver.DataError: DATA,
    driver.OperationalError: TRANSIENT,
    driver.IntegrityError: DATA,
    driver.InternalError: TRANSIENT,
    driver.ProgrammingError: CONFIGURATION,
    driver.NotSupportedError: CONFIGURATION,
    driver.StreamClosedError: TRANSIENT,
    driver.StreamCompleteException: TRANSIENT,
    driver.StreamFailureError: TRANSIENT,
}

_KIND_OF_NUMBER = {number: kind for (number, _), kind in KIND_OF_CODE.items()}
_ROW = re.compile(r"\(at row (\d+)\)")
_STATUS = re.compile(r"HTTP status (\d{3})")
_URL = re.compile(r"\s*\(for url [^)]*\)")

# A column that the table lacks looks like a wrong value to the server, but then every row has it: the reader
# is newer than the schema. Such rows are fine and must not become dead letters.
UNKNOWN_FIELD = "Unknown field found while parsing"


def sort(error: BaseException) -> Trouble:
    """Who acts on this exception."""
    text = _URL.sub("", str(error))
    code = getattr(error, "code", None)
    if isinstance(code, int) and isinstance(error, driver.Error):
        if UNKNOWN_FIELD in text:
            return Trouble(CONFIGURATION, f"{text}; run `replays-ingest migrate`")
        return Trouble(_KIND_OF_NUMBER.get(code, TRANSIENT), text)
    classes = type(error).__mro__
    tables = (KIND_OF_CLASS, KIND_OF_HTTP_CLASS)
    kind = next((table[cls] for cls in classes for table in tables if cls in table), TRANSIENT)
    status = _STATUS.search(text)
    if status and status[1] in ("401", "403", "404"):
        kind = CONFIGURATION  # no ClickHouse behind that URL, or a proxy that wants a login
    if "CERTIFICATE_VERIFY_FAILED" in text:
        kind = CONFIGURATION
    return Trouble(kind, f"{type(error).__name__}: {text}")


def row_of(message: str) -> int | None:
    """The 0-based position of the row that the server says it could not take; None when it does not say."""
    found = _ROW.search(message)
    return int(found[1]) - 1 if found else None
