"""Validates files named by settings: certificates, keys, service accounts.

Each function raises ValueError with the problem, so that a wrong file is reported at startup instead of by the
first connection.
"""

from __future__ import annotations

import json
import ssl
from glob import glob
from pathlib import Path


def content(path: Path) -> bytes:
    """Returns the bytes of the file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ValueError("file not found: correct the path or mount the file") from None
    except (OSError, ValueError) as error:  # a directory, no permission, a path with a null byte
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"the file cannot be read ({reason}): correct the path or its permissions") from None


def certificates(path: Path) -> None:
    """Validates a file that must contain at least one certificate in PEM format."""
    content(path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
    except (ssl.SSLError, OSError):
        raise ValueError("contains no PEM certificate: name a file with -----BEGIN CERTIFICATE-----") from None


def certificate_store(pattern: str) -> None:
    """Validates a glob that must match at least one file; each file must contain a PEM certificate."""
    found = glob(pattern)
    if not found:
        raise ValueError("matches no file: correct the pattern, or mount the certificates")
    for path in found:
        try:
            certificates(Path(path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def key_pair(certificate: Path, key: Path, password: str = "") -> None:
    """Validates a certificate in PEM format and its private key. `password` decrypts the key."""
    content(certificate)
    content(key)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, lambda: password)
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or "unreadable"
        raise ValueError(
            "the files are not a PEM certificate and its private key "
            f"({str(reason).lower().replace('_', ' ')}): name a pair that belongs together"
        ) from None


def google_credentials(path: Path) -> None:
    """Validates credentials as Google's client libraries read them: a JSON object with a `type`."""
    try:
        found = json.loads(content(path))
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
            raise ValueError("is not JSON: name a key file of a service account") from None
        raise
    if not isinstance(found, dict) or not isinstance(found.get("type"), str):
        raise ValueError("contains no Google credentials (no `type`): name a key file of a service account")
