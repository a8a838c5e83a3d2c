"""The plugin as a process: what is the same for every provider. Copy it as it is.

It says where it serves in one line on standard output, serves gRPC until the host is done with it, and ends.
docs/plugin-protocol.md has the rules that this file keeps.
"""

import base64
import datetime
import json
import logging
import os
import signal
import sys
import tempfile
import threading
from concurrent import futures

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # gRPC's own chatter is not for the host's log

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import provider

COOKIE, COOKIE_VALUE = "BERTH_PLUGIN", "berth-provider"
CORE_PROTOCOL = 1  # go-plugin's own, of the handshake line
PROTOCOL = 1  # of berth's provider contract
MAX_MESSAGE_BYTES = 16 << 20
CALL_GRACE = 2.0  # seconds that calls under way get to clean up when the plugin ends

log = logging.getLogger(provider.NAME)


def main() -> None:
    debug = sys.argv[1:] == ["--debug"]
    if not debug and os.environ.get(COOKIE) != COOKIE_VALUE:
        explain()
        sys.exit(2)
    announce = reserve_stdout()
    log_to_stderr(as_json=not debug)
    refuse_other_protocols(os.environ.get("PLUGIN_PROTOCOL_VERSIONS", ""), announce)

    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    signal.signal(signal.SIGINT, (lambda *_: ended.set()) if debug else signal.SIG_IGN)  # Ctrl-C is the host's to act on

    calls = provider.Calls()
    server = new_server(calls, ended)
    directory = os.environ.get("PLUGIN_UNIX_SOCKET_DIR") or tempfile.mkdtemp(prefix="berth-")
    socket = os.path.join(directory, f"plugin{os.getpid()}")
    certificate = listen(server, socket, os.environ.get("PLUGIN_CLIENT_CERT", ""))
    server.start()
    if debug:
        print(f"{provider.NAME} serves on {socket} until you interrupt it. In another terminal, connect berth to it with:"
              f"\n\n  export BERTH_REATTACH={provider.NAME}={socket}\n", file=sys.stderr)
    else:
        os.write(announce, f"{CORE_PROTOCOL}|{PROTOCOL}|unix|{socket}|grpc|{certificate}\n".encode())
        threading.Thread(target=watch_stdin, args=(ended,), daemon=True).start()

    ended.wait()
    server.stop(0.1).wait(CALL_GRACE)  # cancels the calls that are still under way after that time
    if not calls.wait_for_end(CALL_GRACE):
        log.warning("exiting with calls under way that did not end when they were cancelled")
    remove(socket, directory)
    os._exit(0)  # and not sys.exit, which would wait for threads


def explain() -> None:
    name = os.path.basename(sys.argv[0])
    print(f"""{name} is the berth plugin for the provider "{provider.NAME}", version {provider.VERSION}.
{provider.SUMMARY}

It is started by the berth host, not by hand. Put it into the host's plugin directory and name it in config.hcl:

  provider "{provider.NAME}" {{}}

  berth plugin describe {provider.NAME}     shows what it can be told
  {name} --debug    serves in the foreground, for a debugger""", file=sys.stderr)


def reserve_stdout() -> int:
    """Keeps standard output for the handshake. Whatever else is printed, also by libraries, goes to standard error."""
    announce = os.dup(1)
    os.dup2(2, 1)
    return announce


class HostLog(logging.Formatter):
    """The JSON lines that the host's logger understands. All values under "@" must be text."""

    def format(self, record: logging.LogRecord) -> str:
        now = datetime.datetime.fromtimestamp(record.created, datetime.timezone.utc)
        entry = {"@level": {"WARNING": "warn", "CRITICAL": "error"}.get(record.levelname, record.levelname.lower()),
                 "@message": record.getMessage(), "@module": record.name,
                 "@timestamp": now.isoformat(timespec="microseconds").replace("+00:00", "Z")}
        return json.dumps(entry | getattr(record, "fields", {}))


def log_to_stderr(as_json: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    if as_json:
        handler.setFormatter(HostLog())
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)  # the host shows what its own level allows


def refuse_other_protocols(offered: str, announce: int) -> None:
    """Ends the process when the host, which says what it offers, does not offer the protocol this plugin speaks. People
    are told in a line on standard error, and the host in a handshake that names the version and no address."""
    if not offered or str(PROTOCOL) in offered.split(","):
        return
    print(f'the plugin "{provider.NAME}" {provider.VERSION} speaks version {PROTOCOL} of the plugin protocol, this host'
          f" speaks version {offered.replace(',', ', ')}: update the older of the two", file=sys.stderr)
    os.write(announce, f"{CORE_PROTOCOL}|{PROTOCOL}|unix||grpc\n".encode())
    sys.exit(1)


def new_server(calls: "provider.Calls", ended: threading.Event) -> grpc.Server:
    # One thread for each call under way, made when it is needed. Pings wait for slow servers, so there may be many.
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=256), options=[
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.max_send_message_length", MAX_MESSAGE_BYTES)])
    provider.register(server, calls)

    # The host's sign of life.
    healthy = health.HealthServicer()
    healthy.set("plugin", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)

    # The host's way to end the plugin. Request and answer are empty messages, so no stub is needed.
    def shutdown(_request: bytes, _context: grpc.ServicerContext) -> bytes:
        ended.set()
        return b""

    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(
        "plugin.GRPCController", {"Shutdown": grpc.unary_unary_rpc_method_handler(shutdown)}),))
    return server


def listen(server: grpc.Server, socket: str, host_certificate: str) -> str:
    """Listens on the socket. With a certificate of the host, both sides prove who they are, and the answer is this
    side's certificate as the handshake line carries it: DER in base64 without padding."""
    os.umask(0o077)
    if not host_certificate:
        server.add_insecure_port(f"unix:{socket}")
        return ""
    key, certificate = new_certificate()
    server.add_secure_port(f"unix:{socket}", grpc.ssl_server_credentials(
        [(key, certificate.public_bytes(serialization.Encoding.PEM))],
        root_certificates=host_certificate.encode(), require_client_auth=True))
    return base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode().rstrip("=")


def new_certificate() -> tuple[bytes, x509.Certificate]:
    """A certificate for this one process: self-signed for "localhost", which is the name the host asks for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1)).not_valid_after(now + datetime.timedelta(days=3650))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256()))
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem, certificate


def watch_stdin(ended: threading.Event) -> None:
    """The host never writes to the plugin's standard input. Its end means that the host is gone, however it ended."""
    while os.read(0, 4096):
        pass
    ended.set()


def remove(socket: str, directory: str) -> None:
    """The directory is the host's to remove, but a host that was killed cannot."""
    try:
        if os.path.exists(socket):
            os.unlink(socket)
        os.rmdir(directory)
    except OSError:
        pass
