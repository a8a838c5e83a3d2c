"""Drives the simulated Runloop with Runloop's own Python client."""

import os
import sys
import time
import traceback
import urllib.error
import urllib.request
from importlib.metadata import version
from urllib.parse import urlsplit

from runloop_api_client import (
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    NotFoundError,
    Runloop,
    RunloopSDK,
)

client = Runloop()
sdk = RunloopSDK()
tunnels = os.environ["RUNLOOP_TUNNEL_URL"].split("{")[0]
passed = failed = 0


def scenario(name):
    def run(check):
        global passed, failed
        try:
            check()
        except Exception:
            failed += 1
            print(f"FAILED  {name}: {traceback.format_exc()}")
        else:
            passed += 1
            print(f"ok      {name}")

    return run


def refused(kind, text, call):
    try:
        call()
    except kind as error:
        assert text in str(error), error
    else:
        raise AssertionError("it was not refused")


def until(what, condition):
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(f"waited in vain until {what}")


def through_tunnel(url, path, **headers):
    """Asks the tunnel that the client's URL names, for which there is no DNS here."""
    headers["X-Runloop-Host"] = urlsplit(url).hostname
    request = urllib.request.Request(tunnels.rstrip("/") + path, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


metadata = {"session": "s1"}
box = None


@scenario("create and wait until it runs")
def _():
    global box
    created = client.devboxes.create(
        name="contract",
        metadata=metadata,
        environment_variables={"COLOUR": "blue"},
        launch_parameters={"keep_alive_time_seconds": 600, "launch_commands": ["echo launched >>launched"]},
        tunnel={"auth_mode": "authenticated"},
    )
    assert client.devboxes.await_running(created.id).status == "running"
    box = sdk.devbox.from_id(created.id)


@scenario("create with the call that waits")
def _():
    other = client.devboxes.create_and_await_running()
    assert other.status == "running", other
    assert client.devboxes.shutdown(other.id).shutdown_reason == "api_shutdown"


@scenario("find it again")
def _():
    info = client.devboxes.retrieve(box.id)
    assert info.name == "contract" and info.metadata == metadata, info
    assert box.id in [each.id for each in client.devboxes.list(status="running")]
    assert client.devboxes.update(box.id, metadata={**metadata, "more": "1"}).metadata["more"] == "1"


@scenario("run processes")
def _():
    result = box.cmd.exec('echo "$COLOUR"; cat launched; echo trouble >&2; exit 3')
    assert result.exit_code == 3 and result.stdout() == "blue\nlaunched\n" and result.stderr() == "trouble\n"
    lines = []
    box.cmd.exec("echo one; sleep 0.2; echo two", stdout=lines.append)
    assert "".join(lines).replace("\n", "") == "onetwo", lines
    endless = box.cmd.exec_async("sleep 1000")
    endless.kill()
    assert endless.get_state().status == "completed"


@scenario("write and read files")
def _():
    box.file.write(file_path="notes/a.txt", contents="héllo\n")
    assert box.file.read(file_path="/home/user/notes/a.txt") == "héllo\n"


address = None


@scenario("a port's URL answers")
def _():
    global address
    client.devboxes.execute_async(box.id, command="exec berth-action-server --host 0.0.0.0 --port 8000")
    address = box.get_tunnel_url(8000)
    token = {"X-Runloop-Tunnel-Authorization": f"Bearer {box.get_tunnel().auth_token}"}
    until("the server answers", lambda: through_tunnel(address, "/alive", **token)[0] == 200)
    assert '"ok"' in through_tunnel(address, "/alive", **token)[1]
    assert through_tunnel(address, "/alive")[0] == 401
    assert through_tunnel(box.get_tunnel_url(8001), "/alive", **token)[0] == 502


@scenario("suspend and wake")
def _():
    box.keep_alive()
    box.suspend()
    assert box.await_suspended().status == "suspended"
    refused(BadRequestError, "not running", lambda: box.cmd.exec("true"))
    box.resume()
    assert box.await_running().status == "running"
    refused(BadRequestError, "not suspended", lambda: box.resume_async())
    assert box.file.read(file_path="launched") == "launched\nlaunched\n"
    assert box.get_tunnel_url(8000) == address


@scenario("list page by page")
def _():
    made = [client.devboxes.create(metadata={"page": str(i)}).id for i in range(5)]
    found = [each.id for each in client.devboxes.list(limit=2)]
    assert len(set(found)) == len(found) and set(made) <= set(found)
    for each in made:
        client.devboxes.shutdown(each)


@scenario("a failed start ends the wait")
def _():
    broken = client.devboxes.create(launch_parameters={"launch_commands": ["exit 1"]})
    try:
        client.devboxes.await_running(broken.id)
    except Exception as error:
        assert "failure" in str(error), error
    else:
        raise AssertionError("it runs")


@scenario("delete")
def _():
    assert client.devboxes.shutdown(box.id, force="true").status == "shutdown"
    assert client.devboxes.shutdown(box.id).status == "shutdown"


@scenario("a bad key is refused")
def _():
    refused(AuthenticationError, "Invalid API key", lambda: Runloop(bearer_token="ak_wrong").devboxes.list())


@scenario("an unknown id is not found")
def _():
    refused(NotFoundError, "Devbox not found", lambda: client.devboxes.retrieve("dbx_unknown"))


@scenario("what the API has removed is refused")
def _():
    refused(APIStatusError, "", lambda: client.devboxes.create(extra_body={"prebuilt": "openhands"}))


print(f"PyPI runloop-api-client {version('runloop-api-client')}: {passed} scenarios passed, {failed} failed")
sys.exit(1 if failed else 0)
