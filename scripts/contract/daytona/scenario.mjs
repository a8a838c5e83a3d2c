// The simulated Daytona as its JavaScript SDK sees it. Usage: node scenario.mjs PACKAGE, one of those in package.json.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import process from 'node:process'

const name = process.argv[2]
const require = createRequire(join(process.cwd(), 'x.js'))
const { Daytona } = require(name)

function version() {
  for (let dir = dirname(require.resolve(name)); ; dir = dirname(dir)) {
    try {
      const found = JSON.parse(readFileSync(join(dir, 'package.json')))
      if (found.version) return `${found.name} ${found.version}`
    } catch {}
  }
}

const daytona = new Daytona() // reads DAYTONA_API_KEY and DAYTONA_API_URL
const run = `run-${Date.now()}`
const labels = { run }
let passed = 0
let failed = 0

async function scenario(what, body) {
  try {
    await body()
    passed++
    console.log(`  ok      ${what}`)
  } catch (error) {
    failed++
    console.log(`  FAILED  ${what}: ${error?.stack ?? error}`)
  }
}

async function eventually(what, condition) {
  for (let i = 0; i < 200; i++) {
    const value = await condition()
    if (value) return value
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
  throw new Error(`waited in vain until ${what}`)
}

// listing gives all sandboxes of a listing, page by page; older SDKs leave the pages to their users.
async function listing(limit) {
  const first = daytona.list({ labels, limit })
  const found = []
  for await (const sandbox of first) found.push(sandbox)
  return found
}

const fails = (promise, status) =>
  assert.rejects(promise, (error) => {
    assert.equal(error.statusCode, status, `${error}`)
    return true
  })

let sandbox
let url
let token

await scenario('create and wait until it runs', async () => {
  sandbox = await daytona.create({ name: run, labels, envVars: { GREETING: 'hello' }, autoStopInterval: 60 })
  assert.equal(sandbox.state, 'started')
  assert.equal(sandbox.name, run)
  assert.equal(sandbox.autoStopInterval, 60)
})
await scenario('find it again by id and by name', async () => {
  assert.equal((await daytona.get(sandbox.id)).name, run)
  assert.equal((await daytona.get(run)).id, sandbox.id)
})
await scenario('run a process', async () => {
  const result = await sandbox.process.executeCommand('echo $GREETING $WHO; exit 3', undefined, { WHO: 'world' }, 10)
  assert.equal(result.exitCode, 3)
  assert.equal(result.result.trim(), 'hello world')
})
await scenario('run a process in a session', async () => {
  await sandbox.process.createSession('s')
  const command = await sandbox.process.executeSessionCommand('s', { command: '(echo out; echo err >&2; exit 7)', runAsync: true })
  const ended = await eventually('it ended', async () => {
    const now = await sandbox.process.getSessionCommand('s', command.cmdId)
    return now.exitCode === undefined ? null : now
  })
  assert.equal(ended.exitCode, 7)
  const logs = await sandbox.process.getSessionCommandLogs('s', command.cmdId)
  assert.equal(logs.stdout?.trim(), 'out')
  assert.equal(logs.stderr?.trim(), 'err')
  assert.equal((await sandbox.process.getSession('s')).commands.length, 1)
  await sandbox.process.deleteSession('s')
  await fails(sandbox.process.getSession('s'), 404)
})
await scenario('reach a port through its URL', async () => {
  await sandbox.process.createSession('web')
  await sandbox.process.executeSessionCommand('web', { command: '(python3 -m http.server 8000 -d /usr/share)', runAsync: true })
  ;({ url, token } = await sandbox.getPreviewLink(8000))
  assert.ok(token)
  const open = { headers: { 'x-daytona-preview-token': token }, redirect: 'manual' }
  await eventually('it answers', async () => (await fetch(url, open)).status === 200)
  assert.match(await (await fetch(url, open)).text(), /Directory listing/)
  assert.equal((await fetch(url, { redirect: 'manual' })).status, 307)
})
await scenario('reach a port through a signed URL', async () => {
  const signed = await sandbox.getSignedPreviewUrl(8000, 60)
  assert.equal((await fetch(signed.url, { redirect: 'manual' })).status, 200)
})
await scenario('change labels and the automatic stop', async () => {
  await sandbox.setLabels({ ...labels, more: 'yes' })
  await sandbox.setAutostopInterval(30)
  await sandbox.refreshData()
  assert.equal(sandbox.labels.more, 'yes')
  assert.equal(sandbox.autoStopInterval, 30)
})
await scenario('stop', async () => {
  await sandbox.stop()
  assert.equal(sandbox.state, 'stopped')
  assert.equal((await fetch(url, { headers: { 'x-daytona-preview-token': token }, redirect: 'manual' })).status, 400)
})
await scenario('wrong state: stop what is stopped', () => fails(sandbox.stop(), 400))
await scenario('wake, with another token and the files kept', async () => {
  await sandbox.start()
  assert.equal(sandbox.state, 'started')
  await eventually('the token changed', async () => (await sandbox.getPreviewLink(8000)).token !== token)
  const result = await sandbox.process.executeCommand('ls -d .daytona')
  assert.equal(result.exitCode, 0)
})
await scenario('archive and wake', async () => {
  await sandbox.stop()
  await sandbox.archive()
  await sandbox.start()
  assert.equal(sandbox.state, 'started')
})
await scenario('list, page by page', async () => {
  for (let i = 0; i < 4; i++) await daytona.create({ labels })
  const found = await eventually('the listing shows all', async () => {
    const found = await listing(2)
    return found.length === 5 ? found : null
  })
  assert.equal(new Set(found.map((s) => s.id)).size, 5)
})
await scenario('a name that is taken', () => fails(daytona.create({ name: run }), 409))
await scenario('a snapshot that does not exist', () => fails(daytona.create({ snapshot: 'no-such' }), 400))
await scenario('an id that does not exist', () => fails(daytona.get('00000000-0000-4000-8000-000000000000'), 404))
await scenario('a bad key', () => fails(new Daytona({ apiKey: 'wrong', apiUrl: process.env.DAYTONA_API_URL }).get(sandbox.id), 401))
await scenario('build from an image', async () => {
  const built = await daytona.create({ image: 'debian:12', labels, resources: { cpu: 2 } })
  assert.equal(built.state, 'started')
  assert.equal(built.cpu, 2)
})
await scenario('delete', async () => {
  await sandbox.delete()
  await eventually('it is gone', () => daytona.get(sandbox.id).then(() => false, (error) => error.statusCode === 404))
  for (const other of await listing(100)) await other.delete().catch((error) => assert.equal(error.statusCode, 404))
})

console.log(`${version()}: ${passed} scenarios passed, ${failed} failed`)
process.exit(failed ? 1 : 0)
