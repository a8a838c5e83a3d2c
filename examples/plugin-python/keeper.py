"""The keeper: a process that starts one server, notes how it ends, and ends it when its sandbox's life is over.

A plugin process lives only as long as its host, so it cannot do this. The keeper and the server share a process group,
which is ended as one. The keeper holds a lock that it was given open as long as it lives.
"""

import json
import os
import shutil
import signal
import subprocess
import sys

from backend import Backend, Gone

LIFE_CHECK = 1.0  # seconds between two looks at the end of the sandbox's life
END_GRACE = 2.0  # seconds a server gets to end by itself when its life is over


def main(arguments: list[str]) -> None:
    root, name = arguments
    signal.signal(signal.SIGTERM, lambda *_: None)  # meant for the server; and unlike SIG_IGN not inherited by it
    spec = json.loads(sys.stdin.buffer.read() or "null")
    if spec is None:
        return  # whoever started the keeper died
    server = start(spec, os.path.join(root, name, "server.log"))
    end_life = Backend(root, [], END_GRACE)
    while not (expired(end_life, name) and finish(end_life, name, server)):
        try:
            note_end(os.path.join(root, name), server.wait(timeout=LIFE_CHECK))
            break
        except subprocess.TimeoutExpired:
            pass
    os.killpg(0, signal.SIGKILL)  # the server's children, and the keeper itself: one end for all


def start(spec: dict, log: str) -> subprocess.Popen:
    problem, server = "started", None
    try:
        program = find(spec["command"][0], spec["directory"], spec["path"])
        with open(log, "ab") as output:
            server = subprocess.Popen(spec["command"], executable=program, env=spec["env"], cwd=spec["directory"],
                                      stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    except OSError as e:
        problem = f"{e.strerror}: {e.filename}"
    os.write(1, problem.encode())
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)  # the plugin reads until the end of the output
    if not server:
        sys.exit(0)
    return server


def find(program: str, directory: str, path: list[str]) -> str:
    if "/" in program:
        return os.path.join(directory, program)
    found = shutil.which(program, path=os.pathsep.join(path))
    if not found:
        raise FileNotFoundError(2, "the command was not found in PATH or in the provider's path", program)
    return found


def note_end(directory: str, code: int) -> None:
    temporary = os.path.join(directory, "exit.json.new")
    with open(temporary, "w") as file:
        json.dump({"exit_code": code if code >= 0 else 128 - code}, file)  # a signal as shells count it
    os.replace(temporary, os.path.join(directory, "exit.json"))


def expired(backend: Backend, name: str) -> bool:
    try:
        return backend.load(name).expired
    except Gone:
        return True


def finish(backend: Backend, name: str, server: subprocess.Popen) -> bool:
    """Ends a sandbox whose life is over, and reports whether it did: it may have been renewed in the last moment."""
    with backend.lock(name, lambda: None):
        if not expired(backend, name):
            return False
        os.killpg(0, signal.SIGTERM)
        try:
            server.wait(timeout=END_GRACE)
        except subprocess.TimeoutExpired:
            server.kill()
        backend.erase(name)
        return True
