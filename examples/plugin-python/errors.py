"""The one error of the contract, and how it travels. Copy it as it is."""

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2 as details
from google.rpc import status_pb2
from grpc_status import rpc_status

DOMAIN = "berth.dev"
MESSAGE_BYTES = 2 << 10
TAIL_LINES, TAIL_BYTES = 20, 4 << 10  # of a log: status details travel in trailers, which should stay under 8 KiB


class ProviderError(Exception):
    """No field may contain a secret.

    code        the class: INVALID_ARGUMENT, PERMISSION_DENIED, NOT_FOUND, ALREADY_EXISTS, FAILED_PRECONDITION,
                RESOURCE_EXHAUSTED, UNAVAILABLE, UNIMPLEMENTED, UNKNOWN or INTERNAL of grpc.StatusCode
    reason      a stable, finer word, such as QUOTA, RATE_LIMIT, SERVER_EXITED or GONE
    retryable   the same call may succeed later; retry_after: in how many seconds
    sandbox_id  what this is about. From Create it means: this one was made and is still there
    fields      the configuration attributes that were refused, each with what is wrong with it
    """

    def __init__(self, code: grpc.StatusCode, message: str, *, reason: str = "", retryable: bool = False,
                 retry_after: float = 0, sandbox_id: str = "", exit_code: int | None = None,
                 log_tail: list[str] | None = None, fields: dict[str, str] | None = None):
        super().__init__(message)
        self.code, self.message, self.reason = code, message, reason
        self.retryable, self.retry_after, self.sandbox_id = retryable, retry_after, sandbox_id
        self.exit_code, self.log_tail, self.fields = exit_code, log_tail or [], fields or {}


def server_exited(exit_code: int | None, log_tail: list[str], sandbox_id: str) -> ProviderError:
    message = "the server exited" + ("" if exit_code is None else f" with code {exit_code}")
    return ProviderError(grpc.StatusCode.UNKNOWN, message, reason="SERVER_EXITED", exit_code=exit_code, log_tail=log_tail,
                         sandbox_id=sandbox_id)


def to_status(error: ProviderError) -> grpc.Status:
    """The error as a gRPC status with details."""
    metadata = {"sandbox_id": text(error.sandbox_id), "retryable": "true" if error.retryable else "",
                "exit_code": "" if error.exit_code is None else str(error.exit_code)}
    metadata = {key: value for key, value in metadata.items() if value}
    found: list = [details.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)]
    if error.retry_after:
        info = details.RetryInfo()
        info.retry_delay.FromNanoseconds(round(error.retry_after * 1e9))
        found.append(info)
    if error.fields:
        found.append(details.BadRequest(field_violations=[
            details.BadRequest.FieldViolation(field=name, description=text(problem))
            for name, problem in sorted(error.fields.items())]))
    if error.log_tail:
        found.append(details.DebugInfo(detail="\n".join(tail(error.log_tail))))
    status = status_pb2.Status(code=error.code.value[0], message=shortened(error.message))
    for detail in found:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return rpc_status.to_status(status)


def shortened(message: str) -> str:
    encoded = text(message).encode()
    if len(encoded) <= MESSAGE_BYTES:
        return encoded.decode()
    return encoded[:MESSAGE_BYTES].decode(errors="ignore") + "…"


def tail(lines: list[str]) -> list[str]:
    """The last lines, at most 20 and 4 KiB. One line that is too long keeps its end."""
    kept: list[str] = []
    room = TAIL_BYTES
    for line in reversed(lines[-TAIL_LINES:]):
        encoded = text(line).encode()
        if len(encoded) + 1 > room:
            if not kept:
                kept.append(encoded[-room:].decode(errors="ignore"))
            break
        kept.append(encoded.decode())
        room -= len(encoded) + 1
    return kept[::-1]


def text(s: str) -> str:
    """Makes a string fit for protobuf, which accepts no broken Unicode."""
    return s.encode(errors="replace").decode()
