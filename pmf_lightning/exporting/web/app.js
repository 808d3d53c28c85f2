// Draws the image of the noise under the pointer. Everything is read from this folder; nothing is sent anywhere.
import * as ort from "./ort/ort.wasm.min.mjs";

const at = (id) => document.getElementById(id);
const state = { x: 0.5, y: 0.5, label: 0, omega: 1, busy: false, stale: true, wander: false, times: [] };
let about, session, corners;

ort.env.wasm.wasmPaths = new URL("ort/", import.meta.url).href;
ort.env.wasm.numThreads = 1; // more need headers that a plain host does not send

async function bytes(name) {
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`${name}: ${answer.status}`);
  return answer.arrayBuffer();
}

// Unit normal numbers from a seed (mulberry32 and Box-Muller).
function normal(count, seed) {
  let a = seed >>> 0;
  const uniform = () => {
    a = (a + 0x6d2b79f5) >>> 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  const values = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    values[i] = Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  }
  return values;
}

// The noise at a point of the unit square: weights whose squares sum to 1 keep its deviation at 1.
function mixed(x, y) {
  const weights = [(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y];
  const length = Math.hypot(...weights);
  const noise = new Float32Array(corners[0].length);
  corners.forEach((corner, k) => {
    const weight = weights[k] / length;
    for (let i = 0; i < noise.length; i++) noise[i] += weight * corner[i];
  });
  return noise;
}

function tensor(name, noise, label, omega) {
  const given = { noise, label: [label], omega: [omega] }[name] ?? about.inputs[name].default;
  if (name === "noise") return new ort.Tensor("float32", noise, [1, about.channels, about.resolution, about.resolution]);
  if (name === "label") return new ort.Tensor("int64", BigInt64Array.from([BigInt(label)]), [1]);
  if (Array.isArray(given) && name !== "omega") {
    return new ort.Tensor("int64", BigInt64Array.from(given.map(BigInt)), [1, given.length]);
  }
  return new ort.Tensor("float32", Float32Array.from([given].flat()), [1]);
}

// One image [channels, height, width] in about [-1, 1].
async function draw(noise, label, omega) {
  const feeds = Object.fromEntries(Object.keys(about.inputs).map((name) => [name, tensor(name, noise, label, omega)]));
  const { images } = await session.run(feeds);
  return images.data;
}

function show(image) {
  const side = about.resolution, plane = side * side;
  const context = at("picture").getContext("2d");
  const pixels = context.createImageData(side, side);
  for (let i = 0; i < plane; i++) {
    for (let c = 0; c < 3; c++) {
      pixels.data[4 * i + c] = Math.round((image[(about.channels < 3 ? 0 : c) * plane + i] + 1) * 127.5);
    }
    pixels.data[4 * i + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
}

function measured(milliseconds) {
  state.times.push(milliseconds);
  if (state.times.length > 30) state.times.shift();
  const mean = state.times.reduce((sum, one) => sum + one, 0) / state.times.length;
  at("time").textContent = `${mean.toFixed(1)} ms`;
  at("rate").textContent = (1000 / mean).toFixed(0);
}

async function refresh() {
  state.stale = true;
  if (state.busy) return;
  state.busy = true;
  while (state.stale) {
    state.stale = false;
    const started = performance.now();
    show(await draw(mixed(state.x, state.y), state.label, state.omega));
    measured(performance.now() - started);
    at("point").style.left = `${100 * state.x}%`;
    at("point").style.top = `${100 * state.y}%`;
    await new Promise(requestAnimationFrame);
  }
  state.busy = false;
}

function move(x, y) {
  state.x = Math.min(1, Math.max(0, x));
  state.y = Math.min(1, Math.max(0, y));
  refresh();
}

function wander(now) {
  if (!state.wander) return;
  move(0.5 + 0.45 * Math.sin(now / 1900), 0.5 + 0.45 * Math.cos(now / 1300));
  requestAnimationFrame(wander);
}

function setWander(on) {
  state.wander = on;
  at("wander").setAttribute("aria-pressed", String(on));
  if (on) requestAnimationFrame(wander);
}

function listen() {
  const picture = at("picture");
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    setWander(false);
    move((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  });
  picture.addEventListener("keydown", (event) => {
    const step = event.shiftKey ? 0.1 : 0.02;
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!way) return;
    event.preventDefault();
    setWander(false);
    move(state.x + step * way[0], state.y + step * way[1]);
  });
  at("omega").addEventListener("input", () => {
    state.omega = Number(at("omega").value);
    at("omega-value").textContent = state.omega.toFixed(1);
    refresh();
  });
  at("noises").addEventListener("click", () => {
    const seed = Math.floor(Math.random() * 2 ** 31);
    corners = corners.map((corner, k) => normal(corner.length, seed + 7919 * k));
    refresh();
  });
  at("wander").addEventListener("click", () => setWander(!state.wander));
}

function build() {
  const names = about.class_names ?? Array.from({ length: about.classes }, (_, i) => String(i));
  names.forEach((name, i) => {
    const label = document.createElement("label"), input = document.createElement("input");
    const text = document.createElement("span");
    Object.assign(input, { type: "radio", name: "class", value: i, checked: i === 0 });
    input.addEventListener("change", () => {
      state.label = i;
      refresh();
    });
    text.textContent = name;
    label.append(input, text);
    at("classes").append(label);
  });
  at("classes").hidden = names.length < 2;
  const omega = about.inputs.omega;
  at("guidance").hidden = !omega;
  if (omega) {
    state.omega = omega.default;
    Object.assign(at("omega"), { min: omega.range[0], max: Math.max(omega.range[1], omega.default), value: omega.default });
    at("omega-value").textContent = omega.default.toFixed(1);
  }
  at("title").textContent = document.title = `${about.model}: one step from noise to an image`;
  at("picture").width = at("picture").height = about.resolution;
  at("picture").setAttribute("aria-label", "Image of the chosen class, drawn from the noise at the point");
}

async function start() {
  about = JSON.parse(new TextDecoder().decode(await bytes("model.json")));
  const [model, noises] = await Promise.all([bytes("model.onnx"), bytes("corners.bin")]);
  const count = about.channels * about.resolution ** 2;
  corners = [0, 1, 2, 3].map((k) => new Float32Array(noises, 4 * k * count, count));
  session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  at("size").textContent = `${(model.byteLength / 1e6).toFixed(1)} MB`;
  build();
  listen();
  await draw(corners[0], 0, state.omega); // the first evaluation also prepares the session
  await refresh();
  at("status").textContent = "Runs in this page alone: nothing is sent.";
  window.page = { draw, corners, state };
}

start().catch((error) => {
  at("status").textContent = `The model cannot be loaded: ${error.message}`;
  throw error;
});
