"""Produces messages with header names that are not UTF-8, which the Python client cannot send.

Clients in other languages can send such names. This module calls the C library that is shipped with the Python
client.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import confluent_kafka

PRODUCER = 0
FLUSH_MS_MAX = 20_000
ERROR_BYTES_MAX = 512
# rd_kafka_vtype_t
END, TOPIC, PARTITION, VALUE, KEY, MSGFLAGS, HEADERS = 0, 1, 3, 4, 5, 7, 10
COPY_FLAG = 2


class _Any(ctypes.Structure):
    """The part of the union rd_kafka_vu_t that is used here."""

    class _Value(ctypes.Union):
        class _Bytes(ctypes.Structure):
            _fields_ = (("ptr", ctypes.c_char_p), ("size", ctypes.c_size_t))

        _fields_ = (
            ("text", ctypes.c_char_p),
            ("number", ctypes.c_int32),
            ("pointer", ctypes.c_void_p),
            ("mem", _Bytes),
            ("padding", ctypes.c_char * 64),
        )

    _fields_ = (("vtype", ctypes.c_int), ("u", _Value))


def _library() -> ctypes.CDLL:
    package = Path(confluent_kafka.__file__).parent
    found = [*package.parent.glob("confluent_kafka.libs/librdkafka*"), *package.glob(".dylibs/librdkafka*")]
    return ctypes.CDLL(str(found[0]))


class RawProducer:
    """A producer whose `produce` returns when the message is acknowledged."""

    def __init__(self, brokers: str) -> None:
        self._library = library = _library()
        pointer = ctypes.c_void_p
        for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_headers_new", "rd_kafka_produceva"):
            getattr(library, name).restype = pointer
        library.rd_kafka_error_string.restype = ctypes.c_char_p
        library.rd_kafka_error_string.argtypes = [pointer]
        library.rd_kafka_conf_set.argtypes = [pointer, *[ctypes.c_char_p] * 3, ctypes.c_size_t]
        library.rd_kafka_new.argtypes = [ctypes.c_int, pointer, ctypes.c_char_p, ctypes.c_size_t]
        library.rd_kafka_headers_new.argtypes = [ctypes.c_size_t]
        text, size = ctypes.c_char_p, ctypes.c_ssize_t
        library.rd_kafka_header_add.argtypes = [pointer, text, size, text, size]
        library.rd_kafka_produceva.argtypes = [pointer, ctypes.POINTER(_Any), ctypes.c_size_t]
        library.rd_kafka_flush.argtypes = [pointer, ctypes.c_int]
        library.rd_kafka_destroy.argtypes = [pointer]
        error = ctypes.create_string_buffer(ERROR_BYTES_MAX)
        config = library.rd_kafka_conf_new()
        for key, value in ((b"bootstrap.servers", brokers.encode()), (b"log_level", b"0")):
            assert library.rd_kafka_conf_set(config, key, value, error, ERROR_BYTES_MAX) == 0, error.value
        self._producer = library.rd_kafka_new(PRODUCER, config, error, ERROR_BYTES_MAX)
        assert self._producer, error.value

    def produce(
        self, topic: str, value: bytes, headers: Sequence[tuple[bytes, bytes]], partition: int = 0
    ) -> None:
        made = self._library.rd_kafka_headers_new(len(headers))
        for name, content in headers:
            assert self._library.rd_kafka_header_add(made, name, len(name), content, len(content)) == 0
        parts = (_Any * 5)()
        parts[0].vtype, parts[0].u.text = TOPIC, topic.encode()
        parts[1].vtype, parts[1].u.number = PARTITION, partition
        parts[2].vtype, parts[2].u.mem.ptr, parts[2].u.mem.size = VALUE, value, len(value)
        parts[3].vtype, parts[3].u.number = MSGFLAGS, COPY_FLAG
        parts[4].vtype, parts[4].u.pointer = HEADERS, made
        failure = self._library.rd_kafka_produceva(self._producer, parts, len(parts))
        assert not failure, self._library.rd_kafka_error_string(failure)
        assert self._library.rd_kafka_flush(self._producer, FLUSH_MS_MAX) == 0

    def close(self) -> None:
        self._library.rd_kafka_destroy(self._producer)
