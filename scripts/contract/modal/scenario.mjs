// The simulated Modal as its JavaScript SDK sees it. Usage: node scenario.mjs, with the simulator's environment.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import process from 'node:process'

const require = createRequire(join(process.cwd(), 'x.js'))
const { ModalClient, AlreadyExistsError, NotFoundError, ConflictError } = require('modal')

function version() {
  for (let dir = dirname(require.resolve('modal')); ; dir = dirname(dir)) {
    try {
      const found = JSON.parse(readFileSync(join(dir, 'package.json')))
      if (found.version) return `${found.name} (npm) ${found.version}`
    } catch {}
  }
}

const modal = new ModalClient() // reads MODAL_TOKEN_ID, MODAL_TOKEN_SECRET and MODAL_SERVER_URL
const run = `run-${Date.now()}`
const server = ['python3', '-m', 'http.server', '8000', '-d', '/usr/share']
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

const answers = (url, options) => fetch(url, options).then((response) => response.status, () => 0)

let app
let image
let sandbox
let access

await scenario('an app, which is made if it is missing', async () => {
  await assert.rejects(modal.apps.fromName(run), NotFoundError)
  app = await modal.apps.fromName(run, { createIfMissing: true })
  assert.match(app.appId, /^ap-/)
  assert.equal((await modal.apps.fromName(run)).appId, app.appId)
})
await scenario('an image with commands of its own', async () => {
  image = await modal.images.fromRegistry('debian:12-slim').dockerfileCommands(['RUN true']).build(app)
  assert.match(image.imageId, /^im-/)
})
await scenario('create and wait until it runs', async () => {
  sandbox = await modal.sandboxes.create(app, image, {
    name: run, tags: { run }, command: ['sleep', '1000'], timeoutMs: 600_000, workdir: '/tmp', encryptedPorts: [8000],
    env: { GREETING: 'hello' }, secrets: [await modal.secrets.fromObject({ WHO: 'world' })],
  })
  assert.match(sandbox.sandboxId, /^sb-/)
  assert.equal(await sandbox.poll(), null)
})
await scenario('find it again by name and by id', async () => {
  assert.equal((await modal.sandboxes.fromName(run, run)).sandboxId, sandbox.sandboxId)
  const again = await modal.sandboxes.fromId(sandbox.sandboxId)
  assert.equal(await again.poll(), null)
})
await scenario('run a process, and one that fails', async () => {
  const process = await sandbox.exec(['sh', '-c', 'echo $GREETING $WHO $MORE; pwd; echo oops >&2; exit 4'], { env: { MORE: 'again' } })
  assert.equal(await process.stdout.readText(), 'hello world again\n/tmp\n')
  assert.equal(await process.stderr.readText(), 'oops\n')
  assert.equal(await process.wait(), 4)
})
await scenario('run a process that reads, from another handle', async () => {
  const again = await modal.sandboxes.fromName(run, run)
  const process = await again.exec(['cat'])
  await process.stdin.writeText('some text')
  await process.stdin.close()
  assert.equal(await process.stdout.readText(), 'some text')
  assert.equal(await process.wait(), 0)
})
await scenario('a process that a signal ends', async () => {
  const process = await sandbox.exec(['sh', '-c', 'kill -9 $$'])
  assert.equal(await process.wait(), 128 + 9)
})
await scenario('reach a port with a connect token', async () => {
  await sandbox.exec(server)
  access = await sandbox.createConnectToken({ port: 8000 })
  const open = { headers: { authorization: `Bearer ${access.token}` } }
  await eventually('it answers', async () => (await answers(access.url, open)) === 200)
  assert.match(await (await fetch(access.url, open)).text(), /Directory listing/)
  assert.equal(await answers(`${access.url}?_modal_connect_token=${access.token}`), 200)
  assert.equal(await answers(access.url), 401)
  const other = await sandbox.createConnectToken({ port: 8001 }) // where nothing listens
  assert.equal(await answers(other.url, { headers: { authorization: `Bearer ${other.token}` } }), 502)
})
await scenario('reach a port through a tunnel', async () => {
  const tunnels = await sandbox.tunnels()
  assert.match(tunnels[8000].url, /^https:/)
  assert.equal(await answers(tunnels[8000].url), 200)
  const again = await (await modal.sandboxes.fromId(sandbox.sandboxId)).tunnels()
  assert.equal(again[8000].url, tunnels[8000].url)
})
await scenario('read and replace the tags', async () => {
  assert.deepEqual(await sandbox.getTags(), { run })
  await sandbox.setTags({ run, more: 'yes' })
  assert.deepEqual(await sandbox.getTags(), { run, more: 'yes' })
})
await scenario('list, page by page', async () => {
  for (let i = 0; i < 4; i++) await modal.sandboxes.create(app, image, { tags: { run }, timeoutMs: 600_000 })
  await modal.sandboxes.create(app, image, { tags: { run: 'other' }, timeoutMs: 600_000 })
  const found = new Set()
  for await (const one of modal.sandboxes.list({ appId: app.appId, tags: { run } })) found.add(one.sandboxId)
  assert.equal(found.size, 5)
  assert.ok(found.has(sandbox.sandboxId))
})
await scenario('a name that is taken', () =>
  assert.rejects(modal.sandboxes.create(app, image, { name: run, timeoutMs: 600_000 }), AlreadyExistsError))
await scenario('a name that does not exist', () => assert.rejects(modal.sandboxes.fromName(run, 'no-such'), NotFoundError))
await scenario('an id that does not exist', async () => {
  const unknown = await modal.sandboxes.fromId('sb-01ARZ3NDEKTSV4RRFFQ69G5FAV')
  await assert.rejects(unknown.poll(), /not found/i)
})
await scenario('a bad token', async () => {
  const stranger = new ModalClient({ tokenId: 'ak-wrong', tokenSecret: 'as-wrong' })
  await assert.rejects(stranger.apps.fromName(run), /UNAUTHENTICATED|Token validation/)
  stranger.close()
})
await scenario('a lifetime that ends', async () => {
  const short = await modal.sandboxes.create(app, image, { command: ['sleep', '1000'], timeoutMs: 1000 })
  assert.equal(await eventually('it ended', () => short.poll()), 124)
})
await scenario("a sandbox whose own command ends", async () => {
  const done = await modal.sandboxes.create(app, image, { command: ['sh', '-c', 'echo done; exit 5'], timeoutMs: 600_000 })
  assert.equal(await done.wait(), 5)
})
await scenario('terminate', async () => {
  assert.equal(await sandbox.terminate({ wait: true }), 137)
  assert.equal(await sandbox.poll(), 137)
  await sandbox.terminate()
  await assert.rejects(modal.sandboxes.fromName(run, run), NotFoundError)
  assert.equal(await answers(access.url, { headers: { authorization: `Bearer ${access.token}` } }), 404)
})
await scenario('wrong state: run a process in what has ended', async () => {
  const ended = await modal.sandboxes.fromId(sandbox.sandboxId)
  await assert.rejects(ended.exec(['true']), ConflictError)
})
await scenario('the name is free again', async () => {
  const next = await modal.sandboxes.create(app, image, { name: run, tags: { run }, timeoutMs: 600_000 })
  assert.notEqual(next.sandboxId, sandbox.sandboxId)
  for await (const one of modal.sandboxes.list({ appId: app.appId })) await one.terminate()
  let left = 0
  for await (const _ of modal.sandboxes.list({ appId: app.appId })) left++
  assert.equal(left, 0)
})

modal.close()
console.log(`${version()}: ${passed} scenarios passed, ${failed} failed`)
process.exit(failed ? 1 : 0)
