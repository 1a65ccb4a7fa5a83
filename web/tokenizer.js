// T5's tokenizer: text to the ids that Python's sentencepiece gives, from its file spiece.model.
// Of the kind "unigram" (arXiv 1804.10959, 1808.06226), with or without a fallback to bytes.

const NORMAL = 1, UNKNOWN = 2, USER_DEFINED = 4, BYTE = 6; // types of pieces
const UNIGRAM = 1; // a type of models
const UNKNOWN_PENALTY = 10; // what an unknown character scores below the worst piece
const PAD = 0, EOS = 1;
const SPACE = "\u2581";
const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

/** A protobuf message as {number of field: [values]}: integers, floats, or bytes. */
function fieldsOf(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length), fields = {};
  let at = 0;
  const integer = () => {
    let value = 0, factor = 1, byte;
    do {
      if (at >= bytes.length) throw new Error("spiece.model is damaged.");
      byte = bytes[at++];
      value += (byte & 127) * factor;
      factor *= 128;
    } while (byte > 127);
    return value;
  };
  const readers = {
    0: integer,
    1: () => view.getFloat64((at += 8) - 8, true),
    2: () => {
      const length = integer();
      return bytes.subarray(at, (at += length));
    },
    5: () => view.getFloat32((at += 4) - 4, true),
  };
  while (at < bytes.length) {
    const tag = integer(), read = readers[tag % 8];
    if (!read) throw new Error("spiece.model is damaged.");
    (fields[Math.floor(tag / 8)] ??= []).push(read());
  }
  return fields;
}

/** What of a text's start the rules replace: (bytes, at) -> [number of bytes, replacement], null
 * where there is no rule. A double array of Darts, then the replacements, each ended by 0. */
function replacements(charsmap) {
  if (charsmap.length < 4) return () => null;
  const view = new DataView(charsmap.buffer, charsmap.byteOffset, charsmap.length);
  const texts = charsmap.subarray(4 + view.getUint32(0, true));
  const unit = (node) => view.getUint32(4 + 4 * node, true);
  const offset = (value) => (value >>> 10) << ((value & 512) >>> 6);
  return (bytes, at) => {
    let node = offset(unit(0)), found = null;
    for (let i = at; i < bytes.length; i++) {
      node ^= bytes[i];
      const value = unit(node);
      if ((value & 0x800000ff) >>> 0 !== bytes[i]) break;
      node ^= offset(value);
      if ((value >>> 8) & 1) found = [i + 1 - at, unit(node) & 0x7fffffff];
    }
    if (!found) return null;
    const [length, start] = found;
    return [length, decoder.decode(texts.subarray(start, texts.indexOf(0, start)))];
  };
}

const lengthOfCharacter = (byte) => (byte < 0xc0 ? 1 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4);

export class Tokenizer {
  /** @param {Uint8Array} file the content of a spiece.model */
  constructor(file) {
    const model = fieldsOf(file), trainer = fieldsOf(model[2][0]), rules = fieldsOf(model[3][0]);
    const flag = (field, preset) => Boolean(field ? field.at(-1) : preset);
    if ((trainer[3]?.at(-1) ?? UNIGRAM) !== UNIGRAM) throw new Error("spiece.model is no unigram.");
    this.replaced = replacements(rules[2]?.at(-1) ?? new Uint8Array());
    this.dummyPrefix = flag(rules[3], true);
    this.removeExtra = flag(rules[4], true);
    this.space = flag(rules[5], true) ? SPACE : " ";
    this.spaceLast = flag(trainer[24], false);
    this.byteFallback = flag(trainer[35], false);
    this.pieces = new Map(); // text -> [id, score]
    this.longest = this.unknown = this.firstByte = 0;
    let worst = Infinity;
    (model[1] ?? []).forEach((bytes, id) => {
      const fields = fieldsOf(bytes), type = fields[3]?.at(-1) ?? NORMAL;
      if (type === USER_DEFINED) throw new Error("spiece.model has user-defined pieces.");
      if (type === UNKNOWN) this.unknown = id;
      if (type === BYTE) this.firstByte ||= id; // they follow each other
      if (type !== NORMAL) return;
      const piece = decoder.decode(fields[1][0]);
      const score = fields[2]?.at(-1) ?? 0;
      this.pieces.set(piece, [id, score]);
      this.longest = Math.max(this.longest, [...piece].length);
      worst = Math.min(worst, score);
    });
    this.unknownScore = Math.fround(worst - UNKNOWN_PENALTY);
  }

  /** Text as the pieces have it: replaced by the rules, spaces joined and marked. */
  normalize(text) {
    // A lone surrogate has no UTF-8 form; Python's side makes it a question mark.
    const bytes = encoder.encode(text.replace(/\p{Surrogate}/gu, "?"));
    let result = "", at = 0, afterSpace = this.removeExtra, started = false;
    while (at < bytes.length) {
      let [length, part] = this.replaced(bytes, at) ?? [lengthOfCharacter(bytes[at]), null];
      part ??= decoder.decode(bytes.subarray(at, at + length));
      at += length;
      if (!started && this.removeExtra && part === " ") continue;
      started = true;
      if (afterSpace) part = part.replace(/^ +/, "");
      if (part) afterSpace = this.removeExtra && part.endsWith(" ");
      result += part.replaceAll(" ", this.space);
    }
    if (!started) return "";
    if (this.dummyPrefix && !this.spaceLast) result = this.space + result;
    while (this.removeExtra && result.endsWith(this.space)) {
      result = result.slice(0, -this.space.length);
    }
    return this.dummyPrefix && this.spaceLast ? result + this.space : result;
  }

  /** The ids of a text, of any length, without the end mark: the most likely cut into pieces. */
  encode(text) {
    const letters = [...this.normalize(text)], count = letters.length;
    const best = Array.from({ length: count + 1 }, () => null); // [score, start, id] by end
    best[0] = [0, 0, -1];
    for (let start = 0; start < count; start++) {
      const before = best[start][0];
      const offer = (end, id, score) => {
        const total = Math.fround(score + before); // ties are decided in float32, as there
        if (!best[end] || total > best[end][0]) best[end] = [total, start, id];
      };
      let piece = "", single = false;
      for (let end = start + 1; end <= Math.min(count, start + this.longest); end++) {
        piece += letters[end - 1];
        const known = this.pieces.get(piece);
        if (!known) continue;
        offer(end, ...known);
        single ||= end === start + 1;
      }
      if (!single) offer(start + 1, this.unknown, this.unknownScore);
    }
    const cut = [];
    for (let end = count; end > 0; end = best[end][1]) {
      cut.push([best[end][2], best[end][1], end]);
    }
    cut.reverse();
    return this.#withBytes(cut, letters);
  }

  /** Unknown pieces as their bytes; without a fallback to them, neighbours are one. */
  #withBytes(cut, letters) {
    const ids = [];
    for (const [id, start, end] of cut) {
      if (id !== this.unknown) ids.push(id);
      else if (this.byteFallback) {
        const bytes = encoder.encode(letters.slice(start, end).join(""));
        ids.push(...Array.from(bytes, (byte) => this.firstByte + byte));
      } else if (cut[0][1] === start || ids.at(-1) !== this.unknown) ids.push(id);
    }
    return ids;
  }

  /** Ids and mask of `maxLength` places: cut, ended by the end mark, padded; and how many of the
   * text's ids were left out. */
  tokenize(text, maxLength) {
    const tokens = this.encode(text), kept = [...tokens.slice(0, maxLength - 1), EOS];
    const ids = new Int32Array(maxLength).fill(PAD), mask = new Uint8Array(maxLength);
    ids.set(kept);
    mask.fill(1, 0, kept.length);
    return { ids, mask, left: tokens.length + 1 - kept.length };
  }
}
