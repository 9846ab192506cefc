// Fedify's queue on Redis at the same work as the others: `node queue.mjs enqueue|work`, told by the environment
// where everything is. Tasks sign with node:crypto, in its threads, and POST with undici over kept-alive connections,
// the quickest that Node.js has.
import { createHash, createPrivateKey, randomUUID, sign } from "node:crypto";
import { readFileSync } from "node:fs";
import { promisify } from "node:util";
import { ParallelMessageQueue } from "@fedify/fedify";
import { RedisMessageQueue } from "@fedify/redis";
import { Redis } from "ioredis";
import { Agent, request } from "undici";

const { BENCH_REDIS_URL, BENCH_DELIVERIES, BENCH_KEY, BENCH_BODY, BENCH_URLS, BENCH_CONCURRENCY, BENCH_KEY_ID } =
  process.env;
const queue = new ParallelMessageQueue(
  new RedisMessageQueue(() => new Redis(BENCH_REDIS_URL), { workerId: randomUUID(), pollInterval: { seconds: 1 } }),
  Number(BENCH_CONCURRENCY),
);

async function enqueue() {
  const body = readFileSync(BENCH_BODY, "utf8");
  const urls = JSON.parse(BENCH_URLS);
  const messages = Array.from({ length: Number(BENCH_DELIVERIES) }, (_, n) => ({ url: urls[n % urls.length], body }));
  await queue.enqueueMany(messages);
  process.exit(0);
}

async function work() {
  const key = createPrivateKey(readFileSync(BENCH_KEY));
  const dispatcher = new Agent({ keepAliveTimeout: 30_000, pipelining: 1 });
  const signed = promisify(sign);
  await queue.listen(async ({ url, body }) => {
    const { host, pathname } = new URL(url);
    const date = new Date().toUTCString();
    const digest = `SHA-256=${createHash("sha256").update(body).digest("base64")}`;
    const base = `(request-target): post ${pathname}\nhost: ${host}\ndate: ${date}\ndigest: ${digest}`;
    const signature = (await signed("sha256", Buffer.from(base), key)).toString("base64");
    const answer = await request(url, {
      method: "POST",
      dispatcher,
      body,
      headers: {
        date,
        digest,
        "user-agent": "fedsvc-bench",
        accept: "*/*",
        "accept-encoding": "identity",
        "content-type": "application/activity+json",
        signature: `keyId="${BENCH_KEY_ID}",algorithm="rsa-sha256",headers="(request-target) host date digest",` +
          `signature="${signature}"`,
      },
    });
    await answer.body.dump();
    if (answer.statusCode !== 202) throw new Error(`${url} answered ${answer.statusCode}`);
  });
}

await (process.argv[2] === "enqueue" ? enqueue() : work());
