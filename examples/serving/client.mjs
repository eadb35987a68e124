// A client of vla-agents' protocol in JavaScript: shows that docs/serving.md is enough to write one.
//
//     npm install ws @msgpack/msgpack
//     vla-agents serve runs/demo/train &
//     node examples/serving/client.mjs ws://127.0.0.1:8000 [TOKEN]
//
// It asks for one chunk, for black pictures and a state of zeros.
import { decode, encode } from "@msgpack/msgpack";
import WebSocket from "ws";

const [url = "ws://127.0.0.1:8000", token] = process.argv.slice(2);
const TYPES = { "|u1": Uint8Array, "<f4": Float32Array, "<f8": Float64Array, "<i8": BigInt64Array };
const text = (value) => (typeof value === "string" ? value : new TextDecoder().decode(value));

/** The server writes the keys of an array as bin, which JavaScript can only have as text. */
const options = { mapKeyConverter: (key) => text(key) };

function array(dtype, shape) {
  const size = shape.reduce((a, b) => a * b, 1);
  const data = new Uint8Array(new TYPES[dtype](size).buffer);
  return { __ndarray__: true, data, dtype, shape };
}

function numbers({ data, dtype }) {
  return new TYPES[text(dtype)](Uint8Array.from(data).buffer); // a copy, so that it is aligned
}

const headers = token ? { Authorization: `Bearer ${token}` } : {};
const socket = new WebSocket(url, "vla-agents.v1", { headers, perMessageDeflate: false });
const waiting = [];
const arrived = [];
socket.on("message", (data) => {
  const message = decode(data, options);
  waiting.length ? waiting.shift()(message) : arrived.push(message);
});
socket.on("error", (error) => { console.error(error.message); process.exit(1); });
const hear = () => (arrived.length ? Promise.resolve(arrived.shift()) : new Promise((resolve) => waiting.push(resolve)));

async function ask(message) {
  socket.send(encode(message));
  const answer = await hear();
  if (answer.type === "error") throw new Error(`${answer.code}: ${answer.message} ${answer.remedy}`);
  return answer;
}

const hello = await hear();
const { embodiment, horizon } = hello;
console.log(`${hello.server} serves ${embodiment.name}: ${horizon} actions per chunk`);
await ask({ type: "hello", protocol: 1, client: "client.mjs" });

const images = Object.fromEntries(embodiment.cameras.map((c) => [c.name, array("|u1", [c.height, c.width, 3])]));
const observation = { images, instruction: "pick up the red block" };
const stateSize = embodiment.state.reduce((sum, part) => sum + part.size, 0);
if (stateSize) observation.state = array("<f4", [stateSize]);
await ask({ type: "reset" });
const answer = await ask({ type: "plan", id: "first", observations: [observation], seeds: [1] });
const actions = numbers(answer.chunks);
console.log(`chunks ${answer.chunks.shape.join(" x ")}, in ${answer.timing.infer_ms.toFixed(1)} ms; the first action:`);
let at = 0;
for (const part of embodiment.action) {
  console.log(`  ${part.name} (${part.kind}): ${Array.from(actions.slice(at, at + part.size), (x) => x.toFixed(3)).join(" ")}`);
  at += part.size;
}
socket.close();
