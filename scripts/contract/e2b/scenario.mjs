// Drives the simulated E2B with E2B's own SDK for JavaScript. The argument is the package: each is a version of it.
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'

const alias = process.argv[2]
const { version } = JSON.parse(await readFile(new URL(`node_modules/${alias}/package.json`, import.meta.url)))
const { Sandbox, AuthenticationError, NotFoundError, CommandExitError, TimeoutError } = await import(alias)

const opts = {
  apiKey: process.env.E2B_API_KEY,
  apiUrl: process.env.E2B_API_URL,
  sandboxUrl: process.env.E2B_SANDBOX_URL,
  requestTimeoutMs: 30_000,
}
const run = `${alias}-${process.pid}`
const awkward = 'a&b=c 1+1 100%'
const made = new Set()
let passed = 0
let failed = 0

async function scenario(name, test) {
  try {
    await test()
    passed++
    console.log(`ok      e2b ${version}: ${name}`)
  } catch (error) {
    failed++
    console.log(`FAILED  e2b ${version}: ${name}\n${error.stack}`)
  }
}

async function create(more = {}) {
  const sandbox = await Sandbox.create('base', { ...opts, timeoutMs: 120_000, metadata: { run }, ...more })
  made.add(sandbox.sandboxId)
  return sandbox
}

async function all(query, limit) {
  const pages = []
  const paginator = Sandbox.list({ ...opts, query, limit })
  while (paginator.hasNext) pages.push(await paginator.nextItems())
  return pages
}

// ask sends a request to a port of a sandbox, the way a cluster with one address for all is asked.
function ask(sandbox, port, path, token = sandbox.trafficAccessToken) {
  const headers = { 'E2b-Sandbox-Id': sandbox.sandboxId, 'E2b-Sandbox-Port': String(port) }
  if (token) headers['e2b-traffic-access-token'] = token
  return fetch(opts.sandboxUrl + path, { headers })
}

async function eventually(what, condition) {
  for (const deadline = Date.now() + 20_000; Date.now() < deadline; ) {
    if (await condition()) return
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
  throw new Error(`waited in vain: ${what}`)
}

let sandbox
await scenario('create, and it runs', async () => {
  sandbox = await create({
    metadata: { run, 'odd key': awkward }, envs: { GREETING: 'hello' }, network: { allowPublicTraffic: false },
  })
  assert.match(sandbox.sandboxId, /^[a-z0-9]+$/)
  assert.ok(sandbox.trafficAccessToken)
  assert.equal(await sandbox.isRunning(), true)
  const info = await sandbox.getInfo()
  assert.equal(info.state, 'running')
  assert.equal(info.metadata['odd key'], awkward)
  assert.ok(info.endAt - Date.now() > 100_000)
})

await scenario('find it again by its metadata', async () => {
  const found = (await all({ metadata: { run, 'odd key': awkward } })).flat()
  assert.deepEqual(found.map((s) => s.sandboxId), [sandbox.sandboxId])
  assert.equal((await all({ metadata: { run, 'odd key': 'another' } })).flat().length, 0)
  const again = await Sandbox.connect(sandbox.sandboxId, opts)
  assert.equal(again.trafficAccessToken, sandbox.trafficAccessToken)
})

await scenario('run a process: output, environment, directory, exit code', async () => {
  const done = await sandbox.commands.run('echo "$GREETING $MORE"; pwd; echo oops >&2', { cwd: '/tmp', envs: { MORE: 'again' } })
  assert.deepEqual([done.stdout, done.stderr, done.exitCode], ['hello again\n/tmp\n', 'oops\n', 0])
  await assert.rejects(sandbox.commands.run('exit 7'), (e) => e instanceof CommandExitError && e.exitCode === 7)
  await assert.rejects(sandbox.commands.run('true', { cwd: '/nowhere' }), /does not exist/)
})

await scenario('a process with a timeout is killed', async () => {
  await assert.rejects(sandbox.commands.run('sleep 100', { timeoutMs: 500 }), TimeoutError)
  await eventually('it is gone', async () => !(await sandbox.commands.list()).some((p) => p.args?.join(' ').includes('sleep 100')))
})

await scenario('a server outlives its stream and answers through its port', async () => {
  const server = await sandbox.commands.run('berth-action-server --port 8000', { background: true, timeoutMs: 0 })
  await server.disconnect()
  await eventually('the server answers', async () => (await ask(sandbox, 8000, '/alive')).status === 200)
  assert.ok((await sandbox.commands.list()).some((p) => p.pid === server.pid))
  assert.equal((await ask(sandbox, 8000, '/alive', '')).status, 403)
  assert.equal((await ask(sandbox, 8000, '/alive', 'wrong')).status, 403)
  assert.ok(sandbox.getHost(8000).startsWith(`8000-${sandbox.sandboxId}.`))
})

await scenario('a port on which nothing listens', async () => {
  const answer = await ask(sandbox, 8123, '/')
  const body = await answer.json()
  assert.deepEqual([answer.status, body.sandboxId, body.port], [502, sandbox.sandboxId, 8123])
})

await scenario('pause and wake, memory and all', async () => {
  assert.notEqual(await sandbox.pause(), false)
  assert.equal(await sandbox.pause(), false)
  assert.equal(await sandbox.isRunning(), false)
  const paused = (await all({ metadata: { run }, state: ['paused'] })).flat()
  assert.deepEqual(paused.map((s) => s.state), ['paused'])
  assert.equal((await all({ metadata: { run }, state: ['running'] })).flat().length, 0)
  await assert.rejects(sandbox.setTimeout(60_000), NotFoundError) // the wrong state
  assert.equal((await ask(sandbox, 8000, '/alive')).status, 502)
  sandbox = await Sandbox.connect(sandbox.sandboxId, { ...opts, timeoutMs: 120_000 })
  assert.equal((await sandbox.getInfo()).state, 'running')
  assert.equal((await ask(sandbox, 8000, '/alive')).status, 200)
})

await scenario('end a process', async () => {
  const server = (await sandbox.commands.list()).find((p) => p.args?.join(' ').includes('berth-action-server'))
  assert.equal(await sandbox.commands.kill(server.pid), true)
  assert.equal(await sandbox.commands.kill(4_000_000), false)
})

await scenario('move the end of its life', async () => {
  await sandbox.setTimeout(600_000)
  const left = (await sandbox.getInfo()).endAt - Date.now()
  assert.ok(left > 550_000 && left < 610_000, String(left))
})

await scenario('a lifetime that ends pauses or kills', async () => {
  const [ends, pauses] = await Promise.all([
    create({ timeoutMs: 1000 }), create({ timeoutMs: 1000, lifecycle: { onTimeout: 'pause' } }),
  ])
  await eventually('one is gone and the other paused', async () => {
    const gone = await Sandbox.getInfo(ends.sandboxId, opts).then(() => false, (e) => e instanceof NotFoundError)
    return gone && (await Sandbox.getInfo(pauses.sandboxId, opts)).state === 'paused'
  })
})

await scenario('list with pages', async () => {
  const metadata = { run: `${run}-pages` }
  const five = await Promise.all([1, 2, 3, 4, 5].map(() => create({ metadata })))
  const pages = await all({ metadata }, 2)
  assert.deepEqual(pages.map((page) => page.length), [2, 2, 1])
  assert.deepEqual(pages.flat().map((s) => s.sandboxId).sort(), five.map((s) => s.sandboxId).sort())
})

await scenario('a wrong key', async () => {
  const wrong = { ...opts, apiKey: 'e2b_' + '0'.repeat(40) }
  await assert.rejects(Sandbox.create('base', wrong), AuthenticationError)
  await assert.rejects(Sandbox.getInfo(sandbox.sandboxId, wrong), AuthenticationError)
})

await scenario('an unknown id and an unknown template', async () => {
  await assert.rejects(Sandbox.connect('i00000000000000000000', opts), NotFoundError)
  await assert.rejects(Sandbox.getInfo('i00000000000000000000', opts), NotFoundError)
  assert.equal(await Sandbox.kill('i00000000000000000000', opts), false)
  await assert.rejects(create({}).then(() => Sandbox.create('missing-template', opts)), /not found/)
})

await scenario('delete', async () => {
  assert.equal(await sandbox.kill(), true)
  assert.equal(await sandbox.kill(), false)
  assert.equal(await sandbox.isRunning(), false)
  await assert.rejects(Sandbox.connect(sandbox.sandboxId, opts), NotFoundError)
})

await Promise.all([...made].map((id) => Sandbox.kill(id, opts)))
console.log(`e2b ${version} (npm): ${passed} scenarios passed, ${failed} failed`)
process.exit(failed ? 1 : 0)
