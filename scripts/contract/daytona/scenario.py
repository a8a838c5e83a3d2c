"""The simulated Daytona as its Python SDK sees it."""

import time
import traceback
import urllib.error
import urllib.request
from importlib.metadata import version

from daytona import (
    CreateSandboxFromSnapshotParams,
    Daytona,
    DaytonaConfig,
    DaytonaError,
    ListSandboxesQuery,
    SessionExecuteRequest,
)

daytona = Daytona()  # reads DAYTONA_API_KEY and DAYTONA_API_URL
run = f"py-{time.time_ns()}"
labels = {"run": run}
passed = failed = 0


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
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited in vain until {what}")


def fails(status, call):
    try:
        call()
    except DaytonaError as error:
        assert error.status_code == status, f"{error.status_code}: {error}"
        return
    raise AssertionError("it did not fail")


class NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


opener = urllib.request.build_opener(NoRedirects)


def get(url, token=None):
    request = urllib.request.Request(url, headers={"x-daytona-preview-token": token} if token else {})
    try:
        with opener.open(request, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""


state = {}


def create():
    params = CreateSandboxFromSnapshotParams(name=run, labels=labels, env_vars={"GREETING": "hello"}, auto_stop_interval=60)
    sandbox = state["sandbox"] = daytona.create(params)
    assert sandbox.state == "started" and sandbox.name == run


def find():
    assert daytona.get(state["sandbox"].id).name == run
    assert daytona.get(run).id == state["sandbox"].id


def run_process():
    result = state["sandbox"].process.exec("echo $GREETING $WHO; exit 3", env={"WHO": "world"}, timeout=10)
    assert result.exit_code == 3 and result.result.strip() == "hello world", result


def run_in_session():
    process = state["sandbox"].process
    process.create_session("s")
    command = process.execute_session_command("s", SessionExecuteRequest(command="(echo out; echo err >&2; exit 7)", run_async=True))
    eventually("it ended", lambda: process.get_session_command("s", command.cmd_id).exit_code == 7)
    logs = process.get_session_command_logs("s", command.cmd_id)
    assert logs.stdout.strip() == "out" and logs.stderr.strip() == "err", logs
    process.delete_session("s")
    fails(404, lambda: process.get_session("s"))


def reach_port():
    process = state["sandbox"].process
    process.create_session("web")
    process.execute_session_command("web", SessionExecuteRequest(command="(python3 -m http.server 8000 -d /usr/share)", run_async=True))
    link = state["link"] = state["sandbox"].get_preview_link(8000)
    eventually("it answers", lambda: get(link.url, link.token)[0] == 200)
    assert "Directory listing" in get(link.url, link.token)[1]
    assert get(link.url)[0] == 307
    signed = state["sandbox"].create_signed_preview_url(8000, 60)
    assert get(signed.url)[0] == 200


def stop():
    state["sandbox"].stop()
    assert state["sandbox"].state == "stopped"
    assert get(state["link"].url, state["link"].token)[0] == 400


def wake():
    sandbox = state["sandbox"]
    sandbox.start()
    assert sandbox.state == "started"
    eventually("the token changed", lambda: sandbox.get_preview_link(8000).token != state["link"].token)
    assert sandbox.process.exec("ls -d .daytona").exit_code == 0


def pages():
    for _ in range(4):
        daytona.create(CreateSandboxFromSnapshotParams(labels=labels))
    query = ListSandboxesQuery(labels=labels, limit=2)
    ids = eventually("the listing shows all", lambda: (ids := {s.id for s in daytona.list(query)}) and len(ids) == 5 and ids)
    assert state["sandbox"].id in ids


def delete():
    state["sandbox"].delete()
    eventually("it is gone", lambda: gone(state["sandbox"].id))
    for other in daytona.list(ListSandboxesQuery(labels=labels)):
        try:
            other.delete()
        except DaytonaError as error:
            assert error.status_code == 404, error


def gone(sandbox_id):
    try:
        daytona.get(sandbox_id)
    except DaytonaError as error:
        return error.status_code == 404
    return False


scenario("create and wait until it runs", create)
scenario("find it again by id and by name", find)
scenario("run a process", run_process)
scenario("run a process in a session", run_in_session)
scenario("reach a port through its URLs", reach_port)
scenario("stop", stop)
scenario("wrong state: stop what is stopped", lambda: fails(400, lambda: state["sandbox"].stop()))
scenario("wake, with another token and the files kept", wake)
scenario("list, page by page", pages)
scenario("a name that is taken", lambda: fails(409, lambda: daytona.create(CreateSandboxFromSnapshotParams(name=run))))
scenario("a snapshot that does not exist", lambda: fails(400, lambda: daytona.create(CreateSandboxFromSnapshotParams(snapshot="no-such"))))
scenario("an id that does not exist", lambda: fails(404, lambda: daytona.get("00000000-0000-4000-8000-000000000000")))
scenario("a bad key", lambda: fails(401, lambda: Daytona(DaytonaConfig(api_key="wrong")).get(state["sandbox"].id)))
scenario("delete", delete)

print(f"daytona {version('daytona')}: {passed} scenarios passed, {failed} failed", flush=True)
raise SystemExit(1 if failed else 0)
