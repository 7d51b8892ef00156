"""Classifies exceptions of urllib3, and of the standard library's HTTP client and sockets, for every sink."""

from __future__ import annotations

import http.client
import ssl

import urllib3.exceptions as from_urllib3

from tasks.sinks.outcome import Blame

REQUEST, NETWORK = Blame.REQUEST, Blame.NETWORK

BLAME_BY_HTTP_CLASS: dict[type[BaseException], Blame] = {
    # urllib3
    from_urllib3.HTTPError: NETWORK,
    from_urllib3.PoolError: NETWORK,
    from_urllib3.RequestError: NETWORK,
    from_urllib3.SSLError: NETWORK,
    from_urllib3.ProxyError: NETWORK,
    from_urllib3.DecodeError: NETWORK,
    from_urllib3.ProtocolError: NETWORK,
    from_urllib3.MaxRetryError: NETWORK,
    from_urllib3.HostChangedError: REQUEST,
    from_urllib3.TimeoutStateError: NETWORK,
    from_urllib3.TimeoutError: NETWORK,
    from_urllib3.ReadTimeoutError: NETWORK,
    from_urllib3.ConnectTimeoutError: NETWORK,
    from_urllib3.NewConnectionError: NETWORK,
    from_urllib3.NameResolutionError: NETWORK,
    from_urllib3.EmptyPoolError: NETWORK,
    from_urllib3.FullPoolError: NETWORK,
    from_urllib3.ClosedPoolError: NETWORK,
    from_urllib3.LocationValueError: REQUEST,
    from_urllib3.LocationParseError: REQUEST,
    from_urllib3.URLSchemeUnknown: REQUEST,
    from_urllib3.ResponseError: NETWORK,
    from_urllib3.ResponseNotChunked: NETWORK,
    from_urllib3.BodyNotHttplibCompatible: NETWORK,
    from_urllib3.IncompleteRead: NETWORK,
    from_urllib3.InvalidChunkLength: NETWORK,
    from_urllib3.InvalidHeader: NETWORK,
    from_urllib3.ProxySchemeUnknown: REQUEST,
    from_urllib3.ProxySchemeUnsupported: REQUEST,
    from_urllib3.HeaderParsingError: NETWORK,
    from_urllib3.UnrewindableBodyError: NETWORK,
    # the standard library's HTTP client and the sockets under it
    ssl.SSLCertVerificationError: REQUEST,
    http.client.HTTPException: NETWORK,
    http.client.InvalidURL: REQUEST,
    ConnectionError: NETWORK,
    TimeoutError: NETWORK,
    OSError: NETWORK,
}
