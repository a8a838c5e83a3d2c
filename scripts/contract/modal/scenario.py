"""The simulated Modal as its Python SDK sees it."""

import os
import ssl
import time
import traceback
import urllib.error
import urllib.request
from importlib.metadata import version

import modal

run = f"py-{time.time_ns()}"
passed = failed = 0
state = {}


def scenario(what, body):
    global passed, failed
    try:
        body()
        passed += 1
        print(f"  ok      {what}", flush=True)
    except Exception:
        failed += 1
        print(f"  FAILED  {what}: {traceback.format_exc()}", flush=True)


def eventually(what, condition):
    for _ in range(200):
        if (value := condition()) not in (None, False):
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited in vain until {what}")


def fails(kind, call):
    try:
        call()
    except kind:
        return
    raise AssertionError("it did not fail")


trust = ssl.create_default_context(cafile=os.environ["MODAL_SIM_CERTIFICATE"])


def get(url, token=None):
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=10, context=trust if url.startswith("https") else None) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""
    except OSError:
        return 0, ""


def make(*command, **options):
    return modal.Sandbox.create(*command, app=state["app"], image=state["image"], timeout=options.pop("timeout", 600), **options)


def app():
    fails(modal.exception.NotFoundError, lambda: modal.App.lookup(run))
    state["app"] = modal.App.lookup(run, create_if_missing=True)
    state["image"] = modal.Image.from_registry("python:3.13-slim")


def create():
    env = modal.Secret.from_dict({"GREETING": "hello"})
    sandbox = state["sandbox"] = make("sleep", "1000", name=run, tags={"run": run}, secrets=[env], encrypted_ports=[8000], workdir="/tmp")
    assert sandbox.object_id.startswith("sb-") and sandbox.poll() is None


def find():
    assert modal.Sandbox.from_name(run, run).object_id == state["sandbox"].object_id
    assert modal.Sandbox.from_id(state["sandbox"].object_id).poll() is None


def process():
    process = state["sandbox"].exec("sh", "-c", "echo $GREETING $MORE; echo oops >&2; exit 4", env={"MORE": "again"})
    assert process.stdout.read() == "hello again\n"
    assert process.stderr.read() == "oops\n"
    assert process.wait() == 4


def process_reads():
    process = modal.Sandbox.from_name(run, run).exec("cat")
    process.stdin.write("some text")
    process.stdin.write_eof()
    process.stdin.drain()
    assert process.stdout.read() == "some text" and process.wait() == 0


def port():
    sandbox = state["sandbox"]
    sandbox.exec("python3", "-m", "http.server", "8000", "-d", "/usr/share")
    access = state["access"] = sandbox.create_connect_token(port=8000)
    eventually("it answers", lambda: get(access.url, access.token)[0] == 200)
    assert "Directory listing" in get(access.url, access.token)[1]
    assert get(access.url)[0] == 401


def tunnel():
    assert get(state["sandbox"].tunnels()[8000].url)[0] == 200


def tags():
    sandbox = state["sandbox"]
    sandbox.set_tags({"run": run, "more": "yes"})
    assert sandbox.get_tags() == {"run": run, "more": "yes"}


def pages():
    for _ in range(4):
        make(tags={"run": run})
    ids = {sandbox.object_id for sandbox in modal.Sandbox.list(app_id=state["app"].app_id, tags={"run": run})}
    assert len(ids) == 5 and state["sandbox"].object_id in ids, ids


def bad_token():
    client = modal.Client.from_credentials("ak-wrong", "as-wrong")
    fails(modal.exception.AuthError, lambda: modal.App.lookup(run, client=client))


def own_command():
    done = make("sh", "-c", "exit 5")
    done.wait(raise_on_termination=False)
    assert done.returncode == 5, done.returncode


def terminate():
    sandbox = state["sandbox"]
    sandbox.terminate(wait=True)
    assert sandbox.poll() == 137, sandbox.poll()
    fails(modal.exception.NotFoundError, lambda: modal.Sandbox.from_name(run, run))
    assert get(state["access"].url, state["access"].token)[0] == 404


def clean():
    for sandbox in modal.Sandbox.list(app_id=state["app"].app_id):
        sandbox.terminate()
    assert not list(modal.Sandbox.list(app_id=state["app"].app_id))


scenario("an app, which is made if it is missing", app)
scenario("create and wait until it runs", create)
scenario("find it again by name and by id", find)
scenario("run a process", process)
scenario("run a process that reads, from another handle", process_reads)
scenario("reach a port with a connect token", port)
scenario("reach a port through a tunnel", tunnel)
scenario("read and replace the tags", tags)
scenario("list, page by page", pages)
scenario("a name that is taken", lambda: fails(modal.exception.AlreadyExistsError, lambda: make(name=run)))
scenario("a name that does not exist", lambda: fails(modal.exception.NotFoundError, lambda: modal.Sandbox.from_name(run, "no-such")))
scenario("an id that does not exist", lambda: fails(modal.exception.NotFoundError, lambda: modal.Sandbox.from_id("sb-01ARZ3NDEKTSV4RRFFQ69G5FAV").poll()))
scenario("a bad token", bad_token)
scenario("a sandbox whose own command ends", own_command)
scenario("terminate", terminate)
scenario("wrong state: run a process in what has ended", lambda: fails(modal.exception.Error, lambda: state["sandbox"].exec("true")))
scenario("end all", clean)

print(f"modal (PyPI) {version('modal')}: {passed} scenarios passed, {failed} failed", flush=True)
raise SystemExit(1 if failed else 0)
