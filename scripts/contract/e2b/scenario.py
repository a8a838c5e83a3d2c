"""Drives the simulated E2B with E2B's own SDK for Python."""

import os
import sys
import time
import traceback
import urllib.error
import urllib.request
from importlib.metadata import version

from e2b import (
    AuthenticationException,
    CommandExitException,
    NotFoundException,
    Sandbox,
    SandboxQuery,
    SandboxState,
    TimeoutException,
)

VERSION = version("e2b")
URL = os.environ["E2B_SANDBOX_URL"]
OPTS = dict(api_key=os.environ["E2B_API_KEY"], api_url=os.environ["E2B_API_URL"], sandbox_url=URL, request_timeout=30)
RUN = f"python-{os.getpid()}"
AWKWARD = "a&b=c 1+1 100%"
made = set()
results = []


def scenario(name):
    def decorate(test):
        try:
            test()
            results.append(True)
            print(f"ok      e2b {VERSION}: {name}", flush=True)
        except Exception:  # whatever goes wrong is the result
            results.append(False)
            print(f"FAILED  e2b {VERSION}: {name}\n{traceback.format_exc()}", flush=True)
        return test

    return decorate


def create(**more):
    sandbox = Sandbox.create("base", **{"timeout": 120, "metadata": {"run": RUN}, **OPTS, **more})
    made.add(sandbox.sandbox_id)
    return sandbox


def pages(query, limit=None):
    found = []
    paginator = Sandbox.list(query=query, limit=limit, **OPTS)
    while paginator.has_next:
        found.append(paginator.next_items())
    return found


def ids(query):
    return [one.sandbox_id for page in pages(query) for one in page]


def ask(sandbox, port, path, token=None):
    """Sends a request to a port of a sandbox, the way a cluster with one address for all is asked."""
    request = urllib.request.Request(URL + path)
    request.add_header("E2b-Sandbox-Id", sandbox.sandbox_id)
    request.add_header("E2b-Sandbox-Port", str(port))
    request.add_header("e2b-traffic-access-token", sandbox.traffic_access_token if token is None else token)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def eventually(what, condition):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(f"waited in vain: {what}")


def rejects(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind}")


state = {}


@scenario("create, and it runs")
def _():
    sandbox = state["sandbox"] = create(
        metadata={"run": RUN, "odd key": AWKWARD}, envs={"GREETING": "hello"}, network={"allow_public_traffic": False}
    )
    assert sandbox.traffic_access_token and sandbox.is_running()
    info = sandbox.get_info()
    assert info.state == SandboxState.RUNNING and info.metadata["odd key"] == AWKWARD, info


@scenario("find it again by its metadata")
def _():
    sandbox = state["sandbox"]
    assert ids(SandboxQuery(metadata={"run": RUN, "odd key": AWKWARD})) == [sandbox.sandbox_id]
    assert ids(SandboxQuery(metadata={"run": RUN, "odd key": "another"})) == []
    assert Sandbox.connect(sandbox.sandbox_id, **OPTS).traffic_access_token == sandbox.traffic_access_token


@scenario("run a process: output, environment, directory, exit code")
def _():
    commands = state["sandbox"].commands
    done = commands.run('echo "$GREETING $MORE"; pwd; echo oops >&2', cwd="/tmp", envs={"MORE": "again"})
    assert (done.stdout, done.stderr, done.exit_code) == ("hello again\n/tmp\n", "oops\n", 0), done
    assert rejects(CommandExitException, lambda: commands.run("exit 7")).exit_code == 7
    rejects(Exception, lambda: commands.run("true", cwd="/nowhere"))


@scenario("a process with a timeout is killed")
def _():
    commands = state["sandbox"].commands
    rejects(TimeoutException, lambda: commands.run("sleep 100", timeout=0.5))
    eventually("it is gone", lambda: not any("sleep 100" in " ".join(p.args) for p in commands.list()))


@scenario("a server outlives its stream and answers through its port")
def _():
    sandbox = state["sandbox"]
    server = sandbox.commands.run("berth-action-server --port 8000", background=True, timeout=0)
    server.disconnect()
    eventually("the server answers", lambda: ask(sandbox, 8000, "/alive") == 200)
    assert any(p.pid == server.pid for p in sandbox.commands.list())
    assert ask(sandbox, 8000, "/alive", "wrong") == 403
    assert ask(sandbox, 8123, "/") == 502


@scenario("pause and wake, memory and all")
def _():
    sandbox = state["sandbox"]
    sandbox.pause()
    sandbox.pause()
    assert not sandbox.is_running()
    assert ids(SandboxQuery(metadata={"run": RUN}, state=[SandboxState.PAUSED])) == [sandbox.sandbox_id]
    assert ids(SandboxQuery(metadata={"run": RUN}, state=[SandboxState.RUNNING])) == []
    rejects(NotFoundException, lambda: sandbox.set_timeout(60))  # the wrong state
    assert ask(sandbox, 8000, "/alive") == 502
    sandbox = state["sandbox"] = Sandbox.connect(sandbox.sandbox_id, timeout=120, **OPTS)
    assert sandbox.get_info().state == SandboxState.RUNNING and ask(sandbox, 8000, "/alive") == 200


@scenario("move the end of its life")
def _():
    sandbox = state["sandbox"]
    sandbox.set_timeout(600)
    left = sandbox.get_info().end_at.timestamp() - time.time()
    assert 550 < left < 610, left


@scenario("a create with an idempotency key is made once")
def _():
    metadata = {"run": RUN + "-once"}
    twice = [create(metadata=metadata, idempotency_key=RUN).sandbox_id for _ in range(2)]
    assert twice[0] == twice[1] and ids(SandboxQuery(metadata=metadata)) == twice[:1], twice


@scenario("list with pages")
def _():
    metadata = {"run": RUN + "-pages"}
    five = {create(metadata=metadata).sandbox_id for _ in range(5)}
    found = pages(SandboxQuery(metadata=metadata), limit=2)
    assert [len(page) for page in found] == [2, 2, 1]
    assert {one.sandbox_id for page in found for one in page} == five


@scenario("a wrong key")
def _():
    wrong = {**OPTS, "api_key": "e2b_" + "0" * 40}
    rejects(AuthenticationException, lambda: Sandbox.create("base", **wrong))


@scenario("an unknown id and an unknown template")
def _():
    unknown = "i" + "0" * 20
    rejects(NotFoundException, lambda: Sandbox.connect(unknown, **OPTS))
    assert Sandbox.kill(unknown, **OPTS) is False
    rejects(Exception, lambda: Sandbox.create("missing-template", **OPTS))


@scenario("delete")
def _():
    sandbox = state["sandbox"]
    assert sandbox.kill() is True and sandbox.kill() is False
    rejects(NotFoundException, lambda: Sandbox.connect(sandbox.sandbox_id, **OPTS))


for one in made:
    Sandbox.kill(one, **OPTS)
print(f"e2b {VERSION} (PyPI): {results.count(True)} scenarios passed, {results.count(False)} failed")
sys.exit(0 if all(results) else 1)
