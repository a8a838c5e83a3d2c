"""One look at a server's health path, judged the way every provider judges it. Copy it as it is."""

import contextlib
import http.client
import json
import socket
import ssl
import threading
import urllib.parse

from berth.provider.v1 import provider_pb2 as pb

DEFAULT_TIMEOUT = 5.0
BODY_LIMIT = 64 << 10


def probe(endpoint: pb.Endpoint, check: pb.HealthCheck, on_end) -> pb.PingResponse:
    """Asks the paths in order, the next one only after a 404.

    no connection, reset, time-out, 404 or any other 4xx, 5xx   NOT_YET
    2xx without the JSON fields asked for                       NOT_YET
    401, 403, any redirect (login pages answer 200)             DENIED
    2xx                                                         ALIVE

    on_end(f) has f called when the call ends, and is false if it has: it is how a cancelled call ends its probe.
    """
    timeout = check.timeout.seconds + check.timeout.nanos / 1e9
    request = _Request(endpoint, timeout if timeout > 0 else DEFAULT_TIMEOUT)
    if not on_end(request.abort):  # it has ended already
        request.abort()
    try:
        for path in list(check.paths) or ["/"]:
            result, status = request.get(path, dict(check.json_fields))
            if status != 404:
                break
        return result
    finally:
        request.timer.cancel()


class _Request:
    """Some requests under one time limit, which http.client alone does not have: it limits each read."""

    def __init__(self, endpoint: pb.Endpoint, timeout: float):
        self.endpoint, self.timeout = endpoint, timeout
        self.aborted = False
        self.socket: socket.socket | None = None
        self.timer = threading.Timer(timeout, self.abort)
        self.timer.daemon = True
        self.timer.start()

    def abort(self) -> None:
        self.aborted = True
        if self.socket:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)

    def get(self, path: str, fields: dict[str, str]) -> tuple[pb.PingResponse, int]:
        try:
            url = urllib.parse.urlsplit(self.endpoint.url + path)
            kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
            connection = kind(url.hostname or "", url.port, timeout=self.timeout)
        except (ValueError, http.client.InvalidURL):
            return _answer(pb.PING_STATUS_NOT_YET, f"GET {path}: the URL is malformed"), 0
        target = urllib.parse.urlunsplit(("", "", url.path or "/", url.query, ""))
        response, said = None, ""
        try:
            connection.connect()
            self.socket = connection.sock  # kept: the connection forgets it once the answer begins
            if self.aborted:
                raise TimeoutError
            connection.request("GET", target, headers=dict(self.endpoint.headers))
            response = connection.getresponse()
            said = f"GET {path}: {response.status} {response.reason}"
            body = response.read(BODY_LIMIT)
        except (OSError, http.client.HTTPException, ValueError) as problem:
            if response is None:
                return _answer(pb.PING_STATUS_NOT_YET, f"GET {path}: {self.words(problem)}"), 0
            body = None
        finally:
            connection.close()
        return _judge(said, response.status, body, fields), response.status

    def words(self, problem: Exception) -> str:
        """Words a transport error without the URL, which may carry a token."""
        if self.aborted or isinstance(problem, TimeoutError):
            return "no answer in time"
        if isinstance(problem, ssl.SSLCertVerificationError):
            return f"the certificate is not trusted: {problem.verify_message}"
        if isinstance(problem, (http.client.RemoteDisconnected, http.client.IncompleteRead)):
            return "the connection was closed without an answer"
        return problem.strerror.lower() if isinstance(problem, OSError) and problem.strerror else "no valid HTTP answer"


def _judge(said: str, status: int, body: bytes | None, fields: dict[str, str]) -> pb.PingResponse:
    if status in (401, 403):
        return _answer(pb.PING_STATUS_DENIED, said)
    if 300 <= status < 400:
        return _answer(pb.PING_STATUS_DENIED, f"{said}: redirected, probably to a login page")
    if not 200 <= status < 300:
        return _answer(pb.PING_STATUS_NOT_YET, said)
    if body is None:
        return _answer(pb.PING_STATUS_NOT_YET, f"{said}, but the answer broke off")
    problem = _missing(body, fields)
    if problem:
        return _answer(pb.PING_STATUS_NOT_YET, f"{said}, but {problem}")
    return _answer(pb.PING_STATUS_ALIVE, said)


def _missing(body: bytes, fields: dict[str, str]) -> str:
    if not fields:
        return ""
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        return "the answer is not a JSON object"
    problems = []
    for name, wanted in fields.items():
        value = answer.get(name)
        got = value if isinstance(value, str) else json.dumps(value)
        if got != wanted:
            problems.append(f'"{name}" is "{got[:40]}" instead of "{wanted}"')
    return ", ".join(problems)


def _answer(status: int, reason: str) -> pb.PingResponse:
    return pb.PingResponse(status=status, reason=reason)
