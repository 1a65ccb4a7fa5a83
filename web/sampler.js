// One stage of the cascade (arXiv 2205.11487) sampled in the browser, as imagen_jax/diffusion does:
// images in [-1, 1] as flat arrays [height, width, channels], times in [0, 1], log-SNR lambda.

/** t -> log(alpha^2 / sigma^2) of the cosine schedule (arXiv 2102.09672, 2202.00512, 2301.11093). */
function cosine({ logsnr_min, logsnr_max, shift }) {
  const above = Math.atan(Math.exp(-0.5 * logsnr_max)), below = Math.atan(Math.exp(0.5 * logsnr_min));
  const span = Math.PI / 2 - above - below;
  // cos(angle) as the sine of its complement keeps its digits near t = 1.
  return (t) =>
    2 * Math.log(Math.sin(below + span * (1 - t)) / Math.sin(above + span * t)) + shift;
}

/** [alpha, sigma] of a log-SNR, with alpha^2 + sigma^2 = 1. */
const alphaSigma = (logsnr) => [(1 + Math.exp(-logsnr)) ** -0.5, (1 + Math.exp(logsnr)) ** -0.5];

const combine = (a, x, b, y) => x.map((value, i) => a * value + b * y[i]);
const clip = (x) => x.map((value) => Math.min(1, Math.max(-1, value)));

/** The clean image that a network's output at x_t means. */
const PREDICTIONS = {
  v: (output, x, [alpha, sigma]) => combine(alpha, x, -sigma, output),
  eps: (output, x, [alpha, sigma]) => combine(1 / alpha, x, -sigma / alpha, output),
  x0: (output) => output,
};
const THRESHOLDS = { none: (x0) => x0, static: clip };

/** Weight of a line through this and the last estimate, by sampler: DPM-Solver++(2M) has one (arXiv
 * 2211.01095, algorithm 2), DDIM with eta 0 none (arXiv 2010.02502, eq. 12). */
const SECOND_ORDER = { ddim: 0, dpmpp_2m: 0.5 };

/** Why this page cannot sample such a stage; "" where it can. */
export function unsupported({ stage, sampling }) {
  const { sampler, eta, spacing, guidance_kind, guidance_rescale, threshold } = sampling;
  const [from, to] = sampling.guidance_interval;
  const wrong = [
    [stage.schedule.kind === "cosine", `schedule ${stage.schedule.kind}`],
    [stage.aug_schedule.kind === "cosine", `aug_schedule ${stage.aug_schedule.kind}`],
    [stage.prediction in PREDICTIONS, `prediction ${stage.prediction}`],
    [stage.upsampling === "bilinear", `upsampling ${stage.upsampling}`],
    [stage.conditioning === "text", `conditioning ${stage.conditioning}`],
    [stage.min_scale === 0, `min_scale ${stage.min_scale}`],
    [sampler in SECOND_ORDER, `sampler ${sampler}`],
    [eta === 0, `eta ${eta}`],
    [spacing === "time", `spacing ${spacing}`],
    [guidance_kind === "cfg", `guidance_kind ${guidance_kind}`],
    [from === 0 && to === 1, "a guidance_interval"],
    [guidance_rescale === 0, `guidance_rescale ${guidance_rescale}`],
    [threshold in THRESHOLDS, `threshold ${threshold}`],
  ].find(([fits]) => !fits);
  return wrong ? `The page has no ${wrong[1]}, which stage ${stage.name} is sampled with.` : "";
}

/** `lowRes` [side, side, 3] bilinearly at the stage's resolution, with the noise of its level. */
export function augmented({ stage, sampling }, lowRes, eps) {
  const side = stage.low_resolution, large = stage.resolution, channels = stage.channels;
  const places = Array.from({ length: large }, (_, i) => {
    const at = Math.min(side - 1, Math.max(0, ((i + 0.5) * side) / large - 0.5));
    const before = Math.min(side - 2, Math.floor(at));
    return [before, at - before];
  });
  const upsampled = new Float32Array(large * large * channels);
  places.forEach(([row, down], y) => places.forEach(([column, right], x) => {
    for (let c = 0; c < channels; c++) {
      const at = (r, k) => lowRes[((row + r) * side + column + k) * channels + c];
      const upper = at(0, 0) * (1 - right) + at(0, 1) * right;
      const lower = at(1, 0) * (1 - right) + at(1, 1) * right;
      upsampled[(y * large + x) * channels + c] = upper * (1 - down) + lower * down;
    }
  }));
  const [alpha, sigma] = alphaSigma(cosine(stage.aug_schedule)(sampling.aug_level));
  return combine(alpha, upsampled, sigma, eps);
}

/** The steps of a stage from noise: yields the estimate of the clean image after each, the image
 * itself after the last.
 * @param predict (x_t, t, s, guided) -> the network's output on the way from time t to s, with the
 *     prompt, or where `guided` is false with the null text */
export async function* sample({ stage, sampling }, x, steps, predict) {
  const logsnr = cosine(stage.schedule), weight = sampling.guidance;
  let last = null; // [x0, logsnr] of the step before
  for (let i = 0; i < steps; i++) {
    const t = Math.fround(1 - i / steps), s = Math.fround(1 - (i + 1) / steps);
    const [now, then] = [logsnr(t), logsnr(s)], levels = alphaSigma(now);
    let output = await predict(x, t, s, true);
    // Classifier-free guidance, eq. 2.
    if (weight !== 1) output = combine(weight, output, 1 - weight, await predict(x, t, s, false));
    const x0 = THRESHOLDS[sampling.threshold](PREDICTIONS[stage.prediction](output, x, levels));
    const [alpha, sigma] = alphaSigma(then), h = 0.5 * (then - now), whole = -Math.expm1(-h);
    let mean = x0; // of the estimates between t and s
    if (last && i < steps - 1) {
      const slope = (SECOND_ORDER[sampling.sampler] * (then - now)) / (now - last[1]);
      mean = combine(1 + slope, x0, -slope, last[0]);
    }
    x = combine(sigma / levels[1], x, alpha * whole, mean);
    last = [x0, now];
    yield i < steps - 1 ? x0 : clip(x);
  }
}
