// The random numbers of jax.random: Threefry-2x32 (Salmon et al., SC 2011) with partitionable bits.
// A seed gives in the browser the noise that it gives in Python.

const ROTATIONS = [[13, 15, 26, 6], [17, 29, 16, 24]];

/** Twenty rounds of Threefry on one pair of counters; a key is [high, low] of 32 bits each. */
export function threefry([key0, key1], first, second) {
  const keys = [key0, key1, (key0 ^ key1 ^ 0x1bd11bda) >>> 0];
  let x = (first + key0) >>> 0, y = (second + key1) >>> 0;
  for (let group = 0; group < 5; group++) {
    for (const turn of ROTATIONS[group % 2]) {
      x = (x + y) >>> 0;
      y = (((y << turn) | (y >>> (32 - turn))) ^ x) >>> 0;
    }
    x = (x + keys[(group + 1) % 3]) >>> 0;
    y = (y + keys[(group + 2) % 3] + group + 1) >>> 0;
  }
  return [x, y];
}

/** jax.random.key(seed): seeds are whole numbers of 32 bits. */
export const key = (seed) => [0, seed >>> 0];

/** jax.random.fold_in(key, data). */
export const foldIn = (from, data) => threefry(from, 0, data >>> 0);

/** jax.random.normal(key, [count]), to float32's rounding: sqrt(2) erfinv of uniform numbers. */
export function normal(from, count) {
  const values = new Float32Array(count), word = new Uint32Array(1);
  const number = new Float32Array(word.buffer), least = -1 + 2 ** -24;
  for (let i = 0; i < count; i++) {
    const [x, y] = threefry(from, 0, i);
    word[0] = ((x ^ y) >>> 9) | 0x3f800000; // a float in [1, 2)
    values[i] = Math.SQRT2 * erfInv(Math.max(least, Math.fround((number[0] - 1) * 2 + least)));
  }
  return values;
}

// M. Giles, Approximating the erfinv function (GPU Computing Gems 2, 2012): what XLA has.
const CENTRAL = [
  2.81022636e-8, 3.43273939e-7, -3.5233877e-6, -4.39150654e-6, 0.00021858087, -0.00125372503,
  -0.00417768164, 0.246640727, 1.50140941,
];
const TAIL = [
  -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613,
  0.00943887047, 1.00167406, 2.83297682,
];

function erfInv(x) {
  const w = -Math.log1p(-Math.fround(x * x)), central = w < 5;
  const at = central ? w - 2.5 : Math.sqrt(w) - 3;
  return x * (central ? CENTRAL : TAIL).reduce((sum, factor) => sum * at + factor, 0);
}

/** The noise of one stage of a cascade for image `index` of a seed: index of noise and count ->
 * values. Noise 0 is the initial one (`cascade.sample`). */
export function stageNoise(seed, index, stage) {
  const own = foldIn(foldIn(key(seed), index), stage);
  return (which, count) => normal(foldIn(own, which), count);
}
