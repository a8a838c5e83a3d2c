// Drives the simulated Runloop with Runloop's own JavaScript client. It speaks HTTP/2 without TLS, as that client does by
// default.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import Runloop, { RunloopSDK } from "@runloop/api-client";

const manifest = new URL("./node_modules/@runloop/api-client/package.json", import.meta.url);
const { version } = JSON.parse(await readFile(manifest, "utf8"));
const baseURL = process.env.RUNLOOP_BASE_URL;
const tunnels = new URL(process.env.RUNLOOP_TUNNEL_URL.replace(/\{.*/, ""));
const client = new Runloop();
const sdk = new RunloopSDK();

let passed = 0;
let failed = 0;
async function scenario(name, run) {
  try {
    await run();
    passed++;
    console.log(`ok      ${name}`);
  } catch (error) {
    failed++;
    console.log(`FAILED  ${name}: ${error?.stack ?? error}`);
  }
}

async function until(what, condition) {
  for (const end = Date.now() + 30_000; Date.now() < end; ) {
    if (await condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(`waited in vain until ${what}`);
}

// The client makes a tunnel's URL from the API's host, for which there is no DNS here. The header names that host.
async function throughTunnel(url, path, headers = {}) {
  const host = url.replace("https://", ""); // new URL refuses a name that ends in numbers
  const response = await fetch(new URL(path, tunnels), { headers: { ...headers, "X-Runloop-Host": host } });
  return { status: response.status, body: await response.text() };
}

async function refused(call, status, text) {
  await assert.rejects(call, (error) => error.status === status && (!text || error.message.includes(text)));
}

const metadata = { session: "s1", made_by: "the contract check" };
let box;
await scenario("create and wait until it runs", async () => {
  const created = await client.devboxes.create({
    name: "contract",
    metadata,
    environment_variables: { COLOUR: "blue" },
    launch_parameters: { keep_alive_time_seconds: 600, launch_commands: ["echo launched >>launched"] },
    tunnel: { auth_mode: "authenticated", http_keep_alive: true, wake_on_http: false },
  });
  assert.match(created.id, /^dbx_/);
  const running = await client.devboxes.awaitRunning(created.id);
  assert.equal(running.status, "running");
  box = sdk.devbox.fromId(created.id);
});

await scenario("create with the call that waits", async () => {
  const other = await sdk.devbox.create();
  assert.equal((await other.getInfo()).status, "running");
  const end = await other.shutdown();
  assert.equal(end.status, "shutdown");
  assert.equal(end.shutdown_reason, "api_shutdown");
});

await scenario("find it again", async () => {
  const info = await client.devboxes.retrieve(box.id);
  assert.equal(info.name, "contract");
  assert.deepEqual(info.metadata, metadata);
  const found = [];
  for await (const each of client.devboxes.list({ status: "running" })) found.push(each.id);
  assert.ok(found.includes(box.id));
  const renamed = await client.devboxes.update(box.id, { name: "again", metadata: { ...metadata, more: "1" } });
  assert.equal(renamed.name, "again");
  assert.equal(renamed.metadata.more, "1");
});

await scenario("run processes", async () => {
  const result = await box.cmd.exec('echo "$COLOUR"; cat launched; echo trouble >&2; exit 3');
  assert.equal(result.exitCode, 3);
  assert.equal(await result.stdout(), "blue\nlaunched\n");
  assert.equal(await result.stderr(), "trouble\n");
  const lines = [];
  await box.cmd.exec("echo one; sleep 0.2; echo two", { stdout: (line) => lines.push(line) });
  assert.deepEqual(lines.join("").replaceAll("\n", ""), "onetwo");
  const endless = await box.cmd.execAsync("sleep 1000");
  await endless.kill();
  assert.equal((await endless.getState()).status, "completed");
  const shell = box.shell("one");
  const both = await Promise.all([shell.exec("sleep 0.3; echo a >>order"), shell.exec("echo b >>order")]);
  assert.deepEqual(both.map((r) => r.exitCode), [0, 0]);
  assert.equal((await box.file.read({ file_path: "order" })).split("\n").filter(Boolean).length, 2);
});

await scenario("write and read files", async () => {
  await box.file.write({ file_path: "notes/a.txt", contents: "héllo\n" });
  assert.equal(await box.file.read({ file_path: "/home/user/notes/a.txt" }), "héllo\n");
  await box.file.upload({ path: "b.bin", file: new File([new Uint8Array([1, 2, 3])], "b.bin") });
  const download = await box.file.download({ path: "b.bin" });
  assert.equal((await download.arrayBuffer()).byteLength, 3);
});

let address;
await scenario("a port's URL answers", async () => {
  await client.devboxes.executeAsync(box.id, { command: "exec berth-action-server --host 0.0.0.0 --port 8000" });
  address = await box.getTunnelUrl(8000);
  const { auth_token } = await box.getTunnel();
  const open = { "X-Runloop-Tunnel-Authorization": `Bearer ${auth_token}` };
  await until("the server answers", async () => (await throughTunnel(address, "/alive", open)).status === 200);
  assert.equal(JSON.parse((await throughTunnel(address, "/alive", open)).body).status, "ok");
  assert.equal((await throughTunnel(address, "/alive")).status, 401);
  assert.equal((await throughTunnel(await box.getTunnelUrl(8001), "/alive", open)).status, 502);
});

await scenario("a second tunnel is refused, a removed one is gone", async () => {
  await refused(() => box.net.enableTunnel({ auth_mode: "open" }), 400, "already exists");
  const other = await sdk.devbox.create();
  const tunnel = await other.net.enableTunnel();
  assert.equal(tunnel.auth_mode, "open");
  assert.equal(tunnel.http_keep_alive, true);
  await other.net.removeTunnel();
  assert.equal((await other.getInfo()).tunnel, null);
  await assert.rejects(() => other.getTunnelUrl(8000));
  await other.shutdown();
});

await scenario("suspend and wake", async () => {
  await box.keepAlive();
  await box.suspend();
  assert.equal((await box.awaitSuspended()).status, "suspended");
  await refused(() => box.cmd.exec("true"), 400, "not running");
  await refused(() => box.suspend(), 400, "not running");
  assert.equal((await box.resume()).status, "running");
  await refused(() => box.resumeAsync(), 400, "not suspended");
  assert.equal(await box.file.read({ file_path: "launched" }), "launched\nlaunched\n");
  assert.equal(await box.getTunnelUrl(8000), address);
  const { auth_token } = await box.getTunnel();
  const gone = await throughTunnel(address, "/alive", { "X-Runloop-Tunnel-Authorization": `Bearer ${auth_token}` });
  assert.equal(gone.status, 502);
});

await scenario("list page by page", async () => {
  const made = [];
  for (let i = 0; i < 5; i++) made.push((await client.devboxes.create({ metadata: { page: String(i) } })).id);
  const found = [];
  for await (const each of client.devboxes.list({ limit: 2 })) found.push(each.id);
  assert.equal(new Set(found).size, found.length);
  assert.ok(made.every((id) => found.includes(id)));
  const page = await client.devboxes.list({ limit: 2, include_total_count: false });
  assert.equal(page.devboxes.length, 2);
  assert.equal(page.has_more, true);
  await Promise.all(made.map((id) => client.devboxes.shutdown(id)));
});

await scenario("a failed start ends the wait", async () => {
  const broken = await client.devboxes.create({ launch_parameters: { launch_commands: ["exit 1"] } });
  await assert.rejects(() => client.devboxes.awaitRunning(broken.id));
  assert.equal((await client.devboxes.retrieve(broken.id)).failure_reason, "execution_failed");
});

await scenario("delete", async () => {
  assert.equal((await client.devboxes.shutdown(box.id, { force: "true" })).status, "shutdown");
  assert.equal((await client.devboxes.shutdown(box.id)).status, "shutdown");
  await assert.rejects(() => client.devboxes.awaitRunning(box.id));
});

await scenario("a bad key is refused", async () => {
  const stranger = new Runloop({ bearerToken: "ak_wrong", baseURL });
  await refused(() => stranger.devboxes.list(), 401, "Invalid API key");
});

await scenario("an unknown id is not found", async () => {
  await refused(() => client.devboxes.retrieve("dbx_unknown"), 404, "Devbox not found");
  await refused(() => client.devboxes.shutdown("dbx_unknown"), 404, "Devbox not found");
});

await scenario("what the API has removed is refused", async () => {
  await refused(() => client.devboxes.create({ prebuilt: "openhands" }), 400);
});

console.log(`npm @runloop/api-client ${version}: ${passed} scenarios passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
