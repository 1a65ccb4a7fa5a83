// The model, in a thread of its own so that the page never stalls. It gets {prompt, seed} and
// answers with messages of the kinds "loading", "ready", "image" and "error".
import { stageNoise } from "./noise.js";
import { Tokenizer } from "./tokenizer.js";

const AUGMENTATION = 1025; // the index of the low-resolution input's noise (cascade/sample.py)
const MISSING = "The model is not here. Run `make web`, which puts it into web/model, and reload.";
const MEMORY = "There is not enough memory for the model. Close other tabs and reload.";

const webgpu = new URLSearchParams(location.search).has("webgpu");
const script = webgpu ? "ort.jspi.min.mjs" : "ort.wasm.min.mjs";
const binary = webgpu ? "ort-wasm-simd-threaded.jspi" : "ort-wasm-simd-threaded";
const progress = { loaded: 0, total: 0 };

/** The bytes of a file that is stored with gzip. */
async function download(path) {
  const response = await fetch(new URL(`${path}.gz`, import.meta.url)).catch(() => null);
  if (!response) throw new Error(`The server gave no answer for ${path}. Reload to try again.`);
  if (response.status === 404) throw new Error(MISSING);
  if (!response.ok) throw new Error(`The server answered ${response.status} for ${path}.`);
  progress.total += Number(response.headers.get("content-length"));
  const count = new TransformStream({
    transform(chunk, controller) {
      progress.loaded += chunk.length;
      postMessage({ kind: "loading", ...progress });
      controller.enqueue(chunk);
    },
  });
  let stream = response.body.pipeThrough(count);
  // Where the server says that gzip is how it sends the file, the browser has undone it.
  if (response.headers.get("content-encoding") !== "gzip") {
    stream = stream.pipeThrough(new DecompressionStream("gzip"));
  }
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function load() {
  if (typeof WebAssembly === "undefined") throw new Error("This browser has no WebAssembly.");
  if (webgpu && !(navigator.gpu && WebAssembly.Suspending)) {
    throw new Error("This browser has no WebGPU, or no JSPI: leave ?webgpu out of the address.");
  }
  const first = ["model/export.json", "model/spiece.model", `ort/${binary}.wasm`].map(download);
  const settings = JSON.parse(new TextDecoder().decode(await first[0]));
  if (settings.text?.tokenizer !== "sentencepiece" || settings.text.caption) {
    throw new Error(`The page cannot read words for the model ${settings.name}.`);
  }
  const names = ["text_encoder", ...settings.stages.map(({ name }) => `${name}_steps`)];
  const files = names.map((name) => download(`model/${settings.parts[name].file}`));
  const [, pieces, wasm] = await Promise.all(first);
  const ort = await import(`./ort/${script}`);
  ort.env.wasm.wasmBinary = wasm;
  ort.env.wasm.wasmPaths = { mjs: new URL(`ort/${binary}.mjs`, import.meta.url).href };
  // Threads need memory that they share, which browsers give only to isolated pages (README.md).
  const threads = self.crossOriginIsolated ? navigator.hardwareConcurrency : 1;
  ort.env.wasm.numThreads = Math.min(8, threads);
  const options = { executionProviders: [webgpu ? "webgpu" : "wasm"], logSeverityLevel: 3 };
  const parts = {};
  for (const [i, name] of names.entries()) {
    const session = await ort.InferenceSession.create(await files[i], options);
    parts[name] = { session, ...settings.parts[name] };
  }
  return { ort, parts, settings, tokenizer: new Tokenizer(pieces) };
}

/** What the networks read of a text, and how many of its tokens were left out. */
async function encode({ ort, parts, settings, tokenizer }, text) {
  const { ids, mask, left } = tokenizer.tokenize(text, settings.text.max_length);
  const shape = [1, ids.length], where = new ort.Tensor("bool", mask, shape);
  const inputs = { ids: new ort.Tensor("int32", ids, shape), mask: where };
  return [(await parts.text_encoder.session.run(inputs)).text, where, left];
}

/** The same of what guidance leads away from: the empty prompt, or zeros, one token long. */
async function encodeNull(model, like) {
  if (model.settings.text.null === "empty") return encode(model, "");
  const { Tensor } = model.ort, [, length] = like.dims;
  const zeros = new Tensor("float32", new Float32Array(like.size), like.dims);
  return [zeros, new Tensor("bool", Uint8Array.from({ length }, (_, i) => i === 0), [1, length])];
}

/** What the steps of a stage read, by name, before the first one. */
function inputsOf({ ort }, stage, state, noise, texts, lowRes) {
  const side = stage.resolution, shape = [1, side, side, stage.channels];
  const count = side * side * stage.channels;
  const floats = (values, sizes = shape) => new ort.Tensor("float32", values, sizes);
  const given = { ...texts };
  given.times = floats(stage.times, [stage.times.length]);
  given.guidance = floats([stage.guidance], []);
  if (stage.low_resolution) {
    given.low_res = lowRes;
    given.augmentation_noise = floats(noise(AUGMENTATION, count));
  }
  for (const name of state) {
    const isLevel = name.startsWith("logsnr");
    given[name] = isLevel ? floats([Infinity], []) : floats(new Float32Array(count));
  }
  given.x = floats(noise(0, count).map((value) => stage.noise_scale * value));
  return given;
}

/** Yields {image, side, position, step, steps, left} after each step of each stage: the estimate of
 * the image, and after the last step the image itself. */
async function* cascade(model, prompt, seed) {
  const { ort: { Tensor }, parts, settings } = model;
  const [text, text_mask, left] = await encode(model, prompt);
  const [nothing, null_mask] = await encodeNull(model, text);
  const texts = { text, text_mask, null: nothing, null_mask };
  const whole = (value) => new Tensor("int32", [value], []);
  let image = null; // of the stage before
  for (const [position, stage] of settings.stages.entries()) {
    const { session, inputs, outputs } = parts[`${stage.name}_steps`];
    const noise = stageNoise(seed, 0, position), steps = stage.times.length - 1;
    // What goes from step to step: the image, and for some samplers earlier estimates.
    const state = outputs.map(({ name }) => name.split("next_")[1]).filter(Boolean);
    const given = inputsOf(model, stage, state, noise, texts, image);
    for (let step = 0; step < steps; step++) {
      Object.assign(given, { start: whole(step), stop: whole(step + 1) });
      if (stage.adds_noise) {
        const { dims, size } = given.x;
        given.step_noise = new Tensor("float32", noise(step + 1, size), [1, ...dims]);
      }
      const read = Object.fromEntries(inputs.map(({ name }) => [name, given[name]]));
      const made = await session.run(read);
      for (const name of state) given[name] = made[`next_${name}`];
      const shown = step === steps - 1 ? given.x : made.x0 ?? made.next_x0;
      const clipped = shown.data.map((value) => Math.min(1, Math.max(-1, value)));
      image = new Tensor("float32", clipped, shown.dims);
      yield { image: clipped, side: stage.resolution, position, step: step + 1, steps, left };
    }
  }
}

/** RGBA bytes of an image in [-1, 1]. */
function pixels(image) {
  const bytes = new Uint8ClampedArray((image.length / 3) * 4).fill(255);
  image.forEach((value, i) => (bytes[i + Math.floor(i / 3)] = 127.5 * (value + 1)));
  return bytes;
}

let newest = 0, turn = Promise.resolve(); // one request at a time; a newer one ends those before it
const loaded = load();
loaded.then(() => postMessage({ kind: "ready" }), report);

onmessage = ({ data }) => {
  const own = ++newest;
  turn = turn.then(() => make(data, own)).catch(report);
};

async function make({ prompt, seed }, own) {
  const model = await loaded, begin = performance.now();
  if (own !== newest) return;
  for await (const { image, ...rest } of cascade(model, prompt, seed)) {
    await new Promise((resolve) => setTimeout(resolve)); // hear of a newer request
    if (own !== newest) return;
    const done = rest.position === model.settings.stages.length - 1 && rest.step === rest.steps;
    const seconds = (performance.now() - begin) / 1000;
    postMessage({ kind: "image", prompt, seed, pixels: pixels(image), done, seconds, ...rest });
  }
}

function report(error) {
  const memory = error instanceof RangeError || /memory|bad_alloc/i.test(String(error));
  postMessage({ kind: "error", message: memory ? MEMORY : String(error?.message ?? error) });
}
