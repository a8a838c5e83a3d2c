"""The "cloud": sandboxes are directories of this machine, and a server is a process group. This is the part that a
plugin for a real cloud replaces with calls to its API.

    ROOT/NAME/sandbox.json   what the sandbox is. It exists as long as this file does
    ROOT/NAME/home/          where its server runs
    ROOT/NAME/server.log     what its servers wrote
    ROOT/NAME/exit.json      how the last server ended; not there while one runs
    ROOT/NAME/keeper.lock    locked by the keeper (keeper.py), which lives exactly as long as the server
    ROOT/locks/              what changes a sandbox happens under a lock of its session, across all processes

NAME is derived from owner and session, so there is never a second sandbox for a session. All state is on disk: any
process with the same root finds the same sandboxes.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import Callable, Iterator

CANCEL_TIME = 0.03  # seconds after which a cancelled call is known to be one
KILL_TIME = 5.0  # seconds the kernel may take to end what was killed
MAX_LIFETIME = 10 * 365 * 86400.0
PORTS = range(20000, 32000)  # below those that the kernel gives to outgoing connections
LOG_END = 64 << 10  # bytes of the log that are ever read
PROGRAM = os.path.abspath(sys.argv[0])  # of this process, which can also be a keeper
PASSED_ON = ("PATH", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")

# Called again and again by whatever waits. It raises when nobody waits for the result any more.
Check = Callable[[], None]


class Gone(Exception):
    """There is no such sandbox."""


class Foreign(Exception):
    """The sandbox belongs to somebody else."""


class Suspended(Exception):
    """The sandbox does not run."""


class NotStarted(Exception):
    """The server could not be started. The text is the reason."""


@dataclass
class Sandbox:
    id: str
    session: str
    owner: str
    attempt: str
    labels: dict[str, str]
    created_at: float  # seconds since 1970
    expires_at: float  # 0 for never
    suspended: bool = False
    port: int = 0  # of its server; kept for the next one
    extra_ports: dict[str, int] = field(default_factory=dict)
    group: int = 0  # process group of the last server and its keeper

    @property
    def name(self) -> str:
        return name_of(self.id)

    @property
    def expired(self) -> bool:
        return 0 < self.expires_at <= time.time()


def sandbox_name(owner: str, session: str) -> str:
    """The same for every process, different for every owner, safe everywhere, and readable."""
    readable = re.sub(r"[^a-z0-9]", "-", session.lower())[:36].strip("-")
    digest = hashlib.sha256(owner.encode() + b"\0" + session.encode()).hexdigest()
    return f"berth-{readable}-{digest[:16]}"


def name_of(id: str) -> str:
    """Also keeps ids that nobody was given from being taken for paths."""
    match = re.fullmatch(r"(berth-[a-z0-9-]*[0-9a-f]{16})-[0-9a-f]{8}", id)
    if not match:
        raise Gone
    return match[1]


def end_of(lifetime: float) -> float:
    return time.time() + min(lifetime, MAX_LIFETIME) if lifetime > 0 else 0


class Backend:
    def __init__(self, root: str, path: list[str], stop_grace: float):
        self.root, self.path, self.stop_grace = root, path, stop_grace

    # --- sandboxes ---

    def create(self, owner: str, session: str, attempt: str, labels: dict[str, str], lifetime: float,
               check: Check) -> tuple[Sandbox, str]:
        """Makes the session's sandbox or adopts the one that is there, and returns it with "created" or as attach."""
        name = sandbox_name(owner, session)
        with self.lock(name, check):
            try:
                found = self._find(name)
            except Gone:
                pass
            else:
                return self._wake(found, owner, session, lifetime)
            os.makedirs(self._at(name, "home"), mode=0o700, exist_ok=True)
            made = Sandbox(
                id=f"{name}-{secrets.token_hex(4)}", session=session, owner=owner, attempt=attempt, labels=labels,
                created_at=time.time(), expires_at=end_of(lifetime))
            self._save(made)
            try:
                time.sleep(CANCEL_TIME)
                check()  # nobody would know of a sandbox that was made for a call that had been given up
            except Exception:
                self._remove(made)
                raise
            return made, "created"

    def attach(self, owner: str, session: str, lifetime: float, check: Check) -> tuple[Sandbox, str]:
        """Finds the session's sandbox and wakes it, and returns it with "attached" or "woken"."""
        name = sandbox_name(owner, session)
        if not os.path.exists(self._at(name, "sandbox.json")):
            raise Gone  # without a lock: most sessions that are asked for have no sandbox yet
        with self.lock(name, check):
            return self._wake(self._find(name), owner, session, lifetime)

    def find_all(self, owner: str, session: str, all_owners: bool, check: Check) -> list[Sandbox]:
        found = []
        for name in sorted(os.listdir(self.root)) if os.path.isdir(self.root) else []:
            check()
            try:
                sandbox = self.load(name)
                if sandbox.expired:
                    with self.lock(name, check):
                        sandbox = self._find(name)
            except Gone:
                continue
            if (all_owners or sandbox.owner == owner) and session in ("", sandbox.session):
                found.append(sandbox)
        return found

    def get(self, owner: str, id: str, session: str = "") -> Sandbox:
        """The sandbox, if it is the owner's and, in a call that names one, the session's."""
        sandbox = self.load(name_of(id))
        if sandbox.id != id or sandbox.expired:
            raise Gone
        if sandbox.owner != owner or session not in ("", sandbox.session):
            raise Foreign
        return sandbox

    def renew(self, owner: str, id: str, lifetime: float, check: Check) -> Sandbox:
        with self._hold(owner, id, check) as sandbox:
            sandbox.expires_at = end_of(lifetime)
            self._save(sandbox)
            return sandbox

    def suspend(self, owner: str, id: str, check: Check) -> None:
        with self._hold(owner, id, check) as sandbox:
            sandbox.suspended = True
            self._save(sandbox)
            self._stop_server(sandbox)
            self._forget_server(sandbox)

    def destroy(self, owner: str, id: str, check: Check) -> None:
        with self._hold(owner, id, check) as sandbox:
            self._remove(sandbox)

    # --- servers ---

    def start_server(self, owner: str, session: str, id: str, command: list[str], env: dict[str, str], workdir: str,
                     extra_ports: list[str], check: Check) -> Sandbox:
        """Starts the server unless one runs, and returns without waiting for it. A running server stays, even if its
        command differs from the one requested."""
        self.get(owner, id, session)
        with self._hold(owner, id, check) as sandbox:
            if sandbox.suspended:
                raise Suspended
            if self.server_up(sandbox):
                return sandbox
            self._choose_ports(sandbox, extra_ports, check)
            self._launch(sandbox, command, env, workdir)
            return sandbox

    def server_up(self, sandbox: Sandbox) -> bool:
        return self._keeper_lives(sandbox) and not os.path.exists(self._at(sandbox.name, "exit.json"))

    def server_end(self, sandbox: Sandbox) -> tuple[int | None, list[str]] | None:
        """How the server ended, exit code and log, or None when it did not: it runs, or there never was one."""
        kept = self._keeper_lives(sandbox)
        try:
            with open(self._at(sandbox.name, "exit.json")) as file:
                return json.load(file)["exit_code"], self.log(sandbox, 20)
        except FileNotFoundError:
            if kept or not sandbox.group:
                return None
            return None, self.log(sandbox, 20)  # somebody killed the keeper too

    def log(self, sandbox: Sandbox, lines: int) -> list[str]:
        try:
            with open(self._at(sandbox.name, "server.log"), "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_END))
                written = file.read().decode(errors="replace").splitlines()
        except FileNotFoundError:
            written = []
        return written[max(0, len(written) - lines):] if lines > 0 else []

    # --- what they are made of ---

    def lock(self, name: str, check: Check) -> contextlib.AbstractContextManager[None]:
        """Keeps all others, in this process and elsewhere, from changing the sandbox of this name. Some names share a
        lock, so that there is a limit to how many files remain: nobody may take two of them at a time."""
        return self._locking(hashlib.sha256(name.encode()).hexdigest()[:2], check)

    @contextlib.contextmanager
    def _locking(self, file: str, check: Check) -> Iterator[None]:
        os.makedirs(os.path.join(self.root, "locks"), mode=0o700, exist_ok=True)
        descriptor = os.open(os.path.join(self.root, "locks", file), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            while not _try_lock(descriptor, fcntl.LOCK_EX):
                check()
                time.sleep(0.005)
            yield
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _hold(self, owner: str, id: str, check: Check) -> Iterator[Sandbox]:
        self.get(owner, id)
        with self.lock(name_of(id), check):
            yield self.get(owner, id)

    def _at(self, name: str, *parts: str) -> str:
        return os.path.join(self.root, name, *parts)

    def load(self, name: str) -> Sandbox:
        try:
            with open(self._at(name, "sandbox.json")) as file:
                return Sandbox(**json.load(file))
        except (FileNotFoundError, NotADirectoryError):
            raise Gone from None

    def _save(self, sandbox: Sandbox) -> None:
        temporary = self._at(sandbox.name, "sandbox.json.new")
        with open(temporary, "w") as file:
            json.dump(asdict(sandbox), file)
        os.replace(temporary, self._at(sandbox.name, "sandbox.json"))

    def _find(self, name: str) -> Sandbox:
        """Loads a sandbox, and removes it instead if its life is over. The caller has the lock."""
        sandbox = self.load(name)
        if sandbox.expired:
            self._remove(sandbox)
            raise Gone
        return sandbox

    def _wake(self, sandbox: Sandbox, owner: str, session: str, lifetime: float) -> tuple[Sandbox, str]:
        """Makes the sandbox run. Its end moves to now plus the lifetime, but never closer. The caller has the lock."""
        if (sandbox.owner, sandbox.session) != (owner, session):
            raise Foreign
        woken, sandbox.suspended = sandbox.suspended, False
        if sandbox.expires_at:
            sandbox.expires_at = max(sandbox.expires_at, end_of(lifetime))
        self._save(sandbox)
        return sandbox, "woken" if woken else "attached"

    def _remove(self, sandbox: Sandbox) -> None:
        """The caller has the lock. The server ends first: as long as anything is left, the sandbox can be found."""
        self._stop_server(sandbox)
        self.erase(sandbox.name)

    def erase(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._at(name, "sandbox.json"))
        shutil.rmtree(self._at(name), ignore_errors=True)

    def _choose_ports(self, sandbox: Sandbox, extra: list[str], check: Check) -> None:
        """Gives the server its ports: those its sandbox had before where they are free, else others."""
        with self._locking("ports", check):
            taken = set()
            for name in os.listdir(self.root):
                with contextlib.suppress(Gone):
                    other = self.load(name)
                    if other.id != sandbox.id:
                        taken |= {other.port, *other.extra_ports.values()}

            def choose(before: int) -> int:
                for port in [before, *random.sample(PORTS, 1000)]:
                    if port and port not in taken and _free(port):
                        taken.add(port)
                        return port
                raise NotStarted("no free port was found")

            sandbox.port = choose(sandbox.port)
            sandbox.extra_ports = {name: choose(sandbox.extra_ports.get(name, 0)) for name in extra}
            self._save(sandbox)

    def _keeper_lives(self, sandbox: Sandbox) -> bool:
        return _locked(self._at(sandbox.name, "keeper.lock"))

    def _launch(self, sandbox: Sandbox, command: list[str], env: dict[str, str], workdir: str) -> None:
        fill = _placeholders(sandbox)
        env = {key: os.environ[key] for key in PASSED_ON if key in os.environ} | {
            "HOME": self._at(sandbox.name, "home"), "HOST": "127.0.0.1", "PORT": str(sandbox.port),
        } | {key: fill(value) for key, value in env.items()}
        directory = os.path.join(self._at(sandbox.name, "home"), workdir)  # an absolute workdir stands for itself
        if not os.path.isabs(workdir):
            os.makedirs(directory, exist_ok=True)
        spec = {"command": [fill(word) for word in command], "env": env, "directory": directory,
                "path": [*self.path, *env.get("PATH", os.defpath).split(os.pathsep)]}

        lock = os.open(self._at(sandbox.name, "keeper.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            while not _try_lock(lock, fcntl.LOCK_EX):  # the last keeper is just ending, or somebody asks for one
                time.sleep(0.001)
            self._forget_server(sandbox)
            keeper = subprocess.Popen(
                [sys.executable, "-I", PROGRAM, "keep", self.root, sandbox.name], cwd="/", pass_fds=[lock],
                start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        finally:
            os.close(lock)  # the keeper's copy keeps the lock
        sandbox.group = keeper.pid
        self._save(sandbox)  # before the server starts: it can be ended whatever happens to this process
        with contextlib.suppress(BrokenPipeError):  # a keeper that died writes nothing, see below
            keeper.stdin.write(json.dumps(spec).encode())
            keeper.stdin.close()
        problem = keeper.stdout.read().decode(errors="replace")
        keeper.stdout.close()
        if problem != "started":
            keeper.wait()
            self._forget_server(sandbox)
            raise NotStarted(problem or "its keeper died")
        threading.Thread(target=keeper.wait, daemon=True).start()  # leaves no zombie

    def _forget_server(self, sandbox: Sandbox) -> None:
        """Forgets how the last server ended. None runs."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._at(sandbox.name, "exit.json"))
        sandbox.group = 0
        self._save(sandbox)

    def _stop_server(self, sandbox: Sandbox) -> None:
        """Asks the server and everything in its process group to end, and kills them after the grace. The caller has
        the lock, so nobody starts another one."""
        for number, patience in ((signal.SIGTERM, self.stop_grace), (signal.SIGKILL, KILL_TIME)):
            if not self._keeper_lives(sandbox):
                return
            with contextlib.suppress(ProcessLookupError):
                os.killpg(sandbox.group, number)  # the keeper has its lock, so the number is still its own
            end = time.monotonic() + patience
            while time.monotonic() < end and self._keeper_lives(sandbox):
                time.sleep(0.005)
        if self._keeper_lives(sandbox):
            raise RuntimeError("the server's processes do not end, although they were killed")


def _placeholders(sandbox: Sandbox) -> Callable[[str], str]:
    """"{port}" stands for the server's port and "{port.NAME}" for an extra one."""
    ports = {"{port}": sandbox.port} | {f"{{port.{name}}}": port for name, port in sandbox.extra_ports.items()}

    def fill(text: str) -> str:
        return re.sub(r"\{port(?:\.[^{}]*)?\}", lambda found: str(ports.get(found[0], found[0])), text)

    return fill


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def _locked(file: str) -> bool:
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _try_lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            return True
        except OSError:
            return False
