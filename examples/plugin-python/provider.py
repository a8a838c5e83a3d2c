"""The calls. Each turns a request into what the back end understands, and its answer or error into the contract's.

For a provider of your own, replace backend.py and what is said to it here.
"""

import contextlib
import functools
import logging
import threading
import traceback
from typing import Iterator

import grpc

from backend import Backend, Foreign, Gone, NotStarted, Sandbox, Suspended
from berth.provider.v1 import provider_pb2 as pb
from berth.provider.v1 import provider_pb2_grpc as services
from config import ATTRIBUTES, decode
from errors import ProviderError, server_exited, tail, to_status
from probe import probe

NAME = "python"
VERSION = "0.1.0"
SUMMARY = "Sandboxes are directories on this machine: an example of a plugin that is not written in Go."
CAPABILITIES = [pb.CAPABILITY_LIST, pb.CAPABILITY_RENEW, pb.CAPABILITY_SUSPEND, pb.CAPABILITY_DESTROY, pb.CAPABILITY_LOGS]
LIST_CHUNK = 500  # sandboxes in a message, which keeps it far below the limit

log = logging.getLogger(NAME)


class Calls:
    """The calls under way, so that the process can wait for them before it ends."""

    def __init__(self):
        self.count, self.changed = 0, threading.Condition()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        with self.changed:
            self.count += 1
        try:
            yield
        finally:
            with self.changed:
                self.count -= 1
                self.changed.notify_all()

    def wait_for_end(self, grace: float) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: self.count == 0, grace)


class CallEnded(Exception):
    """The host cancelled the call or its deadline passed: nobody waits for an answer."""


def check_of(context: grpc.ServicerContext):
    """What long work calls again and again, so that it stops with its call."""
    def check() -> None:
        if not context.is_active():
            raise CallEnded
    return check


def answered(method):
    """Wraps a call: its errors become the contract's, and an exception nobody expected an internal error."""

    @functools.wraps(method)
    def call(self, request, context):
        with self.calls.one():
            try:
                return method(self, request, context)
            except Exception as problem:
                error = self.error_for(problem, request, method.__name__)
        context.abort_with_status(to_status(error))

    return call


class Plugin(services.SetupServicer, services.ProviderServicer, services.HousekeepingServicer):
    """All three services. There is no back end until the plugin is configured."""

    def __init__(self, calls: Calls):
        self.calls = calls
        self.configuring = threading.Lock()
        self.configured: Backend | None = None

    @property
    def backend(self) -> Backend:
        if not self.configured:
            raise ProviderError(grpc.StatusCode.FAILED_PRECONDITION,
                                "the plugin has not been configured: call Configure first")
        return self.configured

    # --- Setup ---

    @answered
    def Describe(self, request, context):
        return pb.DescribeResponse(name=NAME, version=VERSION, summary=SUMMARY, capabilities=CAPABILITIES,
                                   attributes=ATTRIBUTES)

    @answered
    def Configure(self, request, context):
        with self.configuring:
            if self.configured:
                raise ProviderError(grpc.StatusCode.FAILED_PRECONDITION, "the plugin is configured already: start another"
                                    " process for another configuration")
            config = decode(request.config_json)
            self.configured = Backend(config.root, config.path, config.stop_grace)
        log.info("configured", extra={"fields": {"root": config.root}})
        return pb.ConfigureResponse()

    # --- Provider ---

    @answered
    def Create(self, request, context):
        require(owner=request.owner, session=request.session)
        labels = dict(request.labels) | {
            "berth-session": request.session, "berth-owner": request.owner, "berth-attempt": request.attempt}
        made, how = self.backend.create(request.owner, request.session, request.attempt, labels,
                                        seconds(request.lifetime), check_of(context))
        return pb.CreateResponse(sandbox=self.sandbox(made, how))

    @answered
    def Attach(self, request, context):
        require(owner=request.owner, session=request.session)
        try:
            found, how = self.backend.attach(request.owner, request.session, seconds(request.lifetime), check_of(context))
        except Gone:
            if request.sandbox_id:
                raise
            raise ProviderError(grpc.StatusCode.NOT_FOUND, f'session "{request.session}" has no sandbox here') from None
        return pb.AttachResponse(sandbox=self.sandbox(found, how))

    @answered
    def StartServer(self, request, context):
        server = request.server
        if not server.command or not server.command[0]:
            raise ProviderError(grpc.StatusCode.INVALID_ARGUMENT, "the server has no command")
        sandbox = self.backend.start_server(request.owner, request.session, request.sandbox_id, list(server.command),
                                            dict(server.env), server.workdir, list(server.extra_ports), check_of(context))
        return pb.StartServerResponse(endpoints=endpoints_of(sandbox))

    @answered
    def Ping(self, request, context):
        backend = self.backend
        result = probe(request.endpoint, request.health, context.add_callback)
        if result.status != pb.PING_STATUS_NOT_YET:
            return result  # the usual case asks nobody but the server
        try:
            sandbox = backend.get(request.owner, request.sandbox_id, request.session)
        except Gone:
            return pb.PingResponse(status=pb.PING_STATUS_GONE,
                                   reason=f"the sandbox {request.sandbox_id} does not exist any more")
        if sandbox.suspended:
            return pb.PingResponse(status=pb.PING_STATUS_STOPPED, reason="the sandbox is suspended")
        ended = backend.server_end(sandbox)
        if ended:
            exited = server_exited(*ended, sandbox_id=sandbox.id)
            return pb.PingResponse(status=pb.PING_STATUS_EXITED, reason=exited.message, exit_code=exited.exit_code,
                                   log_tail=tail(exited.log_tail))
        if not sandbox.group:
            result.reason += " (no server was started)"
        return result

    # --- Housekeeping ---

    def List(self, request, context):
        found = self.find_all(request, context)
        for start in range(0, len(found), LIST_CHUNK):
            yield pb.ListResponse(sandboxes=[self.sandbox(s) for s in found[start:start + LIST_CHUNK]])

    @answered
    def find_all(self, request, context):
        return self.backend.find_all(request.owner, request.session, request.all_owners, check_of(context))

    @answered
    def Renew(self, request, context):
        sandbox = self.backend.renew(request.owner, request.sandbox_id, seconds(request.lifetime), check_of(context))
        return pb.RenewResponse(expires_at=self.sandbox(sandbox).expires_at if sandbox.expires_at else None)

    @answered
    def Suspend(self, request, context):
        self.backend.suspend(request.owner, request.sandbox_id, check_of(context))
        return pb.SuspendResponse()

    @answered
    def Destroy(self, request, context):
        with contextlib.suppress(Gone):  # already gone is success
            self.backend.destroy(request.owner, request.sandbox_id, check_of(context))
        return pb.DestroyResponse()

    @answered
    def Logs(self, request, context):
        sandbox = self.backend.get(request.owner, request.sandbox_id)
        return pb.LogsResponse(lines=self.backend.log(sandbox, request.lines))

    # --- the back end's words in the contract's ---

    def sandbox(self, s: Sandbox, how: str = "") -> pb.Sandbox:
        w = pb.Sandbox(
            id=s.id, session=s.session, owner=s.owner, attempt=s.attempt, labels=s.labels,
            state=pb.SANDBOX_STATE_SUSPENDED if s.suspended else pb.SANDBOX_STATE_RUNNING,
            origin={"created": pb.ORIGIN_CREATED, "attached": pb.ORIGIN_ATTACHED, "woken": pb.ORIGIN_WOKEN}.get(how))
        w.created_at.FromNanoseconds(round(s.created_at * 1e9))
        if s.expires_at:
            w.expires_at.FromNanoseconds(round(s.expires_at * 1e9))
        if how == "attached" and self.backend.server_up(s):
            w.endpoints.CopyFrom(endpoints_of(s))
        return w

    def error_for(self, problem: Exception, request, method: str) -> ProviderError:
        id = getattr(request, "sandbox_id", "")
        code = grpc.StatusCode
        match problem:
            case ProviderError():
                return problem
            case CallEnded():
                return ProviderError(code.CANCELLED, "the call ended before its work did")
            case Gone():
                return ProviderError(code.NOT_FOUND, f"the sandbox {id} does not exist any more", reason="GONE",
                                     sandbox_id=id)
            case Foreign():
                return ProviderError(code.ALREADY_EXISTS, f"the sandbox {id} belongs to another owner or session", sandbox_id=id)
            case Suspended():
                return ProviderError(code.FAILED_PRECONDITION, sandbox_id=id,
                                     message=f"the sandbox {id} is suspended: attach to it first, which wakes it")
            case NotStarted():
                return ProviderError(code.UNKNOWN, f"the server did not start: {problem}", sandbox_id=id)
            case OSError():
                return ProviderError(code.UNKNOWN, f"{method}: {problem.strerror}: {problem.filename}", sandbox_id=id)
        # The text of such an exception may quote anything, also a secret: what the log gets is where it was raised.
        log.error("an exception nobody expected", extra={"fields": {
            "method": method, "type": type(problem).__name__,
            "stack": "".join(traceback.format_tb(problem.__traceback__))}})
        return ProviderError(code.INTERNAL, f"the plugin panicked in {method} ({type(problem).__name__})", reason="PANIC")


def register(server: grpc.Server, calls: Calls) -> None:
    plugin = Plugin(calls)
    services.add_SetupServicer_to_server(plugin, server)
    services.add_ProviderServicer_to_server(plugin, server)
    services.add_HousekeepingServicer_to_server(plugin, server)


def require(**fields: str) -> None:
    for name, value in fields.items():
        if not value:
            raise ProviderError(grpc.StatusCode.INVALID_ARGUMENT, f"the request names no {name}")


def seconds(duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def endpoints_of(s: Sandbox) -> pb.Endpoints:
    def endpoint(port: int) -> pb.Endpoint:
        return pb.Endpoint(url=f"http://127.0.0.1:{port}")

    return pb.Endpoints(server=endpoint(s.port), extra={name: endpoint(port) for name, port in s.extra_ports.items()})
