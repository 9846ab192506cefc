// Inboxes that verify with libraries of others, on one TLS port of loopback. Which of them it is says the first
// label of the host name.
//
// Reads one line of JSON on stdin: {certificate: PEM file, actor: {...}}; tells {port, versions} in one line on
// stdout; ends when stdin does. The actor's document answers for all its keys; nothing else can be fetched.
// Taken is 202; refused is 401, and the body says why.

import { createHash, createPublicKey } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer } from "node:https";
import { createInterface } from "node:readline";

import { DataIntegrityProof } from "@digitalbazaar/data-integrity";
import { createVerifyCryptosuite } from "@digitalbazaar/eddsa-jcs-2022-cryptosuite";
import { createFederation, MemoryKvStore } from "@fedify/fedify";
import { Activity } from "@fedify/vocab";
import { preloadedContexts } from "@fedify/vocab-runtime";
import { parseRequestSignature, verifyDigestHeader, verifyDraftSignature } from "@misskey-dev/node-http-message-signatures";
import peertube from "@peertube/http-signature";
import { cavage, createVerifier, httpbis } from "http-message-signatures";
import jsonldSignatures from "jsonld-signatures";

const LIBRARIES = [
  "@digitalbazaar/eddsa-jcs-2022-cryptosuite",
  "@fedify/fedify",
  "@misskey-dev/node-http-message-signatures",
  "@peertube/http-signature",
  "http-message-signatures",
];

class Refusal extends Error {}

function refuseUnless(holds, why) {
  if (!holds) throw new Refusal(why);
}

const sha256 = (body) => createHash("sha256").update(body).digest("base64");

const input = createInterface({ input: process.stdin });
input.on("close", () => process.exit(0));
const { certificate, actor } = JSON.parse(await new Promise((told) => input.once("line", told)));
const pems = new Map(actor.publicKey.map((key) => [key.id, key.publicKeyPem]));

function pemOf(id) {
  refuseUnless(pems.has(id), `unknown key ${id}`);
  return pems.get(id);
}

// A verifier takes {request: node's, body, url} and throws, or returns a response of its own.

function ofFedify(inboxChallengePolicy) {
  const load = async (url) => {
    const [documentUrl] = url.split("#");
    if (url in preloadedContexts) return { contextUrl: null, documentUrl: url, document: preloadedContexts[url] };
    if (documentUrl !== actor.id) throw new Error(`there is no ${url} here`);
    return { contextUrl: null, documentUrl, document: actor };
  };
  const federation = createFederation({
    kv: new MemoryKvStore(),
    documentLoaderFactory: () => load,
    authenticatedDocumentLoaderFactory: () => load,
    contextLoaderFactory: () => load,
    inboxChallengePolicy,
  });
  federation.setActorDispatcher("/u/{identifier}", () => null);
  federation.setInboxListeners("/u/{identifier}/inbox", "/inbox").on(Activity, () => {});
  return async ({ request, body, url }) => {
    const headers = new Headers();
    for (let i = 0; i < request.rawHeaders.length; i += 2) {
      headers.append(request.rawHeaders[i], request.rawHeaders[i + 1]);
    }
    return await federation.fetch(new Request(url, { method: request.method, headers, body }), { contextData: null });
  };
}

async function byMisskey({ request, body }) {
  refuseUnless((await verifyDigestHeader(request, body)) === true, "Digest");
  const { value, version } = parseRequestSignature(request);
  refuseUnless(version === "draft", "not the draft");
  const reasons = [];
  const verified = await verifyDraftSignature(value, pemOf(value.keyId), (why) => reasons.push(String(why)));
  refuseUnless(verified, reasons.join("; "));
}

function byPeertube({ request, body }) {
  const parsed = peertube.parseRequest(request, { headers: ["(request-target)", "host", "date", "digest"] });
  refuseUnless(request.headers.digest === `SHA-256=${sha256(body)}`, "Digest");
  refuseUnless(peertube.verifySignature(parsed, pemOf(parsed.keyId)), "signature");
}

async function byHttpMessageSignatures({ request, body, url }) {
  const message = { method: request.method, url, headers: request.headers };
  const keyLookup = ({ keyid }) => {
    const key = createPublicKey(pemOf(keyid));
    return createVerifier(key, key.asymmetricKeyType === "rsa" ? "rsa-v1_5-sha256" : "ed25519");
  };
  if ("signature-input" in request.headers) {
    refuseUnless(request.headers["content-digest"] === `sha-256=:${sha256(body)}:`, "Content-Digest");
    const verified = await httpbis.verifyMessage(
      {
        keyLookup: async (told) => ({ verify: keyLookup(told) }),
        requiredParams: ["created", "keyid"],
        requiredFields: ["@method", "@target-uri", "content-digest"],
        maxAge: 300,
        tolerance: 10,
      },
      message,
    );
    refuseUnless(verified === true, "signature");
  } else {
    refuseUnless(request.headers.digest === `SHA-256=${sha256(body)}`, "Digest");
    const verified = await cavage.verifyMessage({ keyLookup: async (told) => ({ verify: keyLookup(told) }) }, message);
    refuseUnless(verified === true, "signature");
  }
}

// Proofs alone, as of Verifiable Credentials: the actor is what they call a controller.
const W3C = { did: "https://www.w3.org/ns/did/v1", multikey: "https://w3id.org/security/multikey/v1" };

async function byDigitalBazaar({ body }) {
  const documentLoader = async (url) => {
    const method = actor.assertionMethod.find(({ id }) => id === url);
    refuseUnless(method !== undefined || url === actor.id, `there is no ${url} here`);
    const document = method ? { "@context": W3C.multikey, ...method } : { ...actor, "@context": W3C.did };
    return { contextUrl: null, documentUrl: url, document };
  };
  const { verified, error } = await jsonldSignatures.verify(JSON.parse(body), {
    suite: new DataIntegrityProof({ cryptosuite: createVerifyCryptosuite() }),
    purpose: new jsonldSignatures.purposes.AssertionProofPurpose(),
    documentLoader,
  });
  refuseUnless(verified === true, (error?.errors ?? [error]).map(String).join("; "));
}

const verifiers = {
  "digital-bazaar": byDigitalBazaar,
  fedify: ofFedify(),
  "fedify-asks": ofFedify({ enabled: true, requestNonce: true }),
  misskey: byMisskey,
  peertube: byPeertube,
  "http-message-signatures": byHttpMessageSignatures,
};

async function answerTo(request, body) {
  const url = new URL(`https://${request.headers.host}${request.url}`);
  const verify = verifiers[url.hostname.split(".")[0]];
  if (verify === undefined) return new Response("no such verifier", { status: 421 });
  try {
    return (await verify({ request, body, url: url.href })) ?? new Response(null, { status: 202 });
  } catch (error) {
    return new Response(String(error), { status: 401 });
  }
}

const pem = readFileSync(certificate);
const server = createServer({ key: pem, cert: pem }, async (request, response) => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const answer = await answerTo(request, Buffer.concat(chunks));
  const text = await answer.text();
  response.writeHead(answer.status, Object.fromEntries(answer.headers));
  response.end(text);
});

server.listen(0, "127.0.0.1", () => {
  const versions = Object.fromEntries(
    LIBRARIES.map((name) => [name, JSON.parse(readFileSync(`node_modules/${name}/package.json`)).version]),
  );
  process.stdout.write(`${JSON.stringify({ port: server.address().port, versions })}\n`);
});
