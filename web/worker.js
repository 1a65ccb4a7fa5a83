// The model, in a thread of its own so that the page never stalls. It gets {prompt, seed} and
// answers with messages of the kinds "loading", "ready", "image" and "error".
import { stageNoise } from "./noise.js";
import { augmented, sample, unsupported } from "./sampler.js";
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
  const names = ["model.json", "spiece.model"].map((name) => `model/${name}`);
  const [settings, pieces, wasm, encoderFile] = await Promise.all([
    ...names.map(download), download(`ort/${binary}.wasm`), download("model/text_encoder.onnx"),
  ]);
  const model = JSON.parse(new TextDecoder().decode(settings));
  const wrong = model.stages.map(unsupported).find(Boolean);
  if (wrong) throw new Error(wrong);
  const files = model.stages.map(({ stage }) => download(`model/${stage.name}_network.onnx`));
  const ort = await import(`./ort/${script}`);
  ort.env.wasm.wasmBinary = wasm;
  ort.env.wasm.wasmPaths = { mjs: new URL(`ort/${binary}.mjs`, import.meta.url).href };
  // Threads need memory that threads share, which browsers give only to pages whose server isolates
  // them (web/README.md).
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(8, navigator.hardwareConcurrency) : 1;
  const options = { executionProviders: [webgpu ? "webgpu" : "wasm"], logSeverityLevel: 3 };
  const open = async (file) => ort.InferenceSession.create(await file, options);
  const encoder = await open(encoderFile), networks = [];
  for (const file of files) networks.push(await open(file));
  return { ...model, ort, encoder, networks, tokenizer: new Tokenizer(pieces) };
}

/** What the networks read of a prompt and of the null text, and how many tokens were left out. */
async function encode({ ort, encoder, tokenizer, text_encoder: sizes }, prompt) {
  const length = sizes.max_length, width = sizes.config.d_model, shape = [1, length];
  const embed = async (words) => {
    const { ids, mask, left } = tokenizer.tokenize(words, length);
    const text_mask = new ort.Tensor("bool", mask, shape);
    const { text } = await encoder.run({ ids: new ort.Tensor("int32", ids, shape), mask: text_mask });
    return [{ text, text_mask }, left];
  };
  const [given, left] = await embed(prompt);
  if (sizes.null === "empty") return [given, (await embed(""))[0], left];
  const zeros = new Float32Array(length * width), first = new Uint8Array(length);
  first[0] = 1;
  const text = new ort.Tensor("float32", zeros, [...shape, width]);
  return [given, { text, text_mask: new ort.Tensor("bool", first, shape) }, left];
}

/** Yields {image, side, position, step, steps, left} after each step of each stage. */
async function* cascade(model, prompt, seed) {
  const { ort, networks, stages } = model, number = (x) => new ort.Tensor("float32", [x], [1]);
  const [given, none, left] = await encode(model, prompt);
  let image = null;
  for (const [position, each] of stages.entries()) {
    const { stage, sampling } = each, side = stage.resolution, steps = sampling.steps;
    const shape = [1, side, side, stage.channels], count = side * side * stage.channels;
    const noise = stageNoise(seed, 0, position);
    const images = (values) => new ort.Tensor("float32", values, shape);
    const fixed = stage.low_resolution && {
      low_res: images(augmented(each, image, noise(AUGMENTATION, count))),
      aug_level: number(sampling.aug_level),
    };
    const predict = async (x, t, s, guided) => {
      const inputs = { x: images(x), t: number(t), ...(guided ? given : none), ...fixed };
      if (stage.network.target_time) inputs.target = number(s);
      return (await networks[position].run(inputs)).prediction.data;
    };
    let step = 0;
    for await (image of sample(each, noise(0, count), steps, predict)) {
      yield { image, side, position, step: ++step, steps, left };
    }
  }
}

/** RGBA bytes of an image in [-1, 1]. */
function pixels(image) {
  const bytes = new Uint8ClampedArray((image.length / 3) * 4).fill(255);
  image.forEach((value, i) => (bytes[i + Math.floor(i / 3)] = 127.5 * (value + 1)));
  return bytes;
}

let newest = 0;
const loaded = load();
loaded.then(() => postMessage({ kind: "ready" }), report);

onmessage = async ({ data: { prompt, seed } }) => {
  const own = ++newest;
  try {
    const model = await loaded, begin = performance.now();
    if (own !== newest) return;
    for await (const { image, ...rest } of cascade(model, prompt, seed)) {
      await new Promise((resolve) => setTimeout(resolve)); // hear of a newer request
      if (own !== newest) return;
      const done = rest.position === model.stages.length - 1 && rest.step === rest.steps;
      const seconds = (performance.now() - begin) / 1000;
      postMessage({ kind: "image", pixels: pixels(image), done, seconds, ...rest });
    }
  } catch (error) {
    report(error);
  }
};

function report(error) {
  const memory = error instanceof RangeError || /memory|bad_alloc/i.test(String(error));
  postMessage({ kind: "error", message: memory ? MEMORY : String(error?.message ?? error) });
}
