// The form, the canvas, and what is said about them. The model works in worker.js.

import { marked } from "./mark.js";

const at = (id) => document.getElementById(id);
const [form, words, style, seed, canvas] = ["form", "words", "style", "seed", "canvas"].map(at);
const context = canvas.getContext("2d");
const HAN = /\p{Script=Han}/u;
const LARGEST_SEED = 2 ** 32 - 1;
let ready = false, asked = false, saved = null;

function say(text, error = false) {
  at("status").textContent = text;
  at("status").classList.toggle("error", error);
}

/** Shows a bar where `value` is between 0 and 1. */
function bar(value) {
  at("progress").hidden = value === null;
  if (value !== null) at("progress").value = value;
}

/** The words as captions of training images are: "red heart, 3d style", 红心，立体风格. */
function prompt() {
  const text = words.value.trim(), { value, dataset } = style.selectedOptions[0];
  return HAN.test(text) ? `${text}，${dataset.zh}` : `${text}, ${value}`;
}

function make() {
  if (!form.reportValidity()) return;
  asked = true;
  worker.postMessage({ prompt: prompt(), seed: Number(seed.value) });
  say(ready ? "Making the image." : "Loading the model first.");
}

function show({ pixels, side, position, step, steps, done, ...rest }) {
  if (canvas.width !== side) canvas.width = canvas.height = side;
  context.putImageData(new ImageData(pixels, side), 0, 0);
  bar(done ? null : step / steps);
  if (!done) return say(position ? "Adding the details." : "Making the shapes.");
  at("caption").textContent = `${rest.prompt} (seed ${rest.seed})`;
  canvas.setAttribute("aria-label", `Image made from: ${rest.prompt}`);
  const cut = rest.left ? ` The last ${rest.left} tokens were too many.` : "";
  say(`Done in ${rest.seconds.toFixed(1)} seconds.${cut}`);
  canvas.toBlob(async (blob) => {
    const png = marked(new Uint8Array(await blob.arrayBuffer()));
    if (saved) URL.revokeObjectURL(saved);
    at("save").href = saved = URL.createObjectURL(new Blob([png], { type: "image/png" }));
    at("save").hidden = false;
  });
}

const megabytes = (bytes) => (bytes / 1e6).toFixed(0);
const answers = {
  loading({ loaded, total }) {
    bar(loaded / Math.max(loaded, total));
    at("amount").textContent = `${megabytes(loaded)} of ${megabytes(total)} MB`;
  },
  ready() {
    ready = true;
    bar(null);
    at("amount").textContent = "";
    say(asked ? "Making the image." : "Ready.");
  },
  image: show,
  error({ message }) {
    bar(null);
    say(message, true);
  },
};

say("Loading the model.");
const worker = new Worker(`worker.js${location.search}`, { type: "module" });
worker.onmessage = ({ data: { kind, ...rest } }) => answers[kind](rest);
worker.onerror = () => say("The page needs a browser of 2023 or newer.", true);

form.addEventListener("submit", (event) => {
  event.preventDefault();
  make();
});
at("another").addEventListener("click", () => {
  seed.value = Number(seed.value) >= LARGEST_SEED ? 0 : Number(seed.value) + 1;
  make();
});
at("examples").addEventListener("click", ({ target }) => {
  if (!target.dataset.style) return;
  words.value = target.textContent;
  style.value = target.dataset.style;
  make();
});
