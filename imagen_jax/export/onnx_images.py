"""Images from an ONNX export, with onnxruntime, numpy and sentencepiece alone: copy it freely.

    python onnx_images.py "red heart, 3d style" "a cat" --seed 0 --out images

It lies beside the export's files and reads export.json, cascade.onnx and the tokenizer. Images are
written as PNG. Noise comes from numpy: they are not the images that the package makes of a seed.
"""

import argparse
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import onnxruntime


def tokens(folder, text, prompts):
    """Token ids and mask of prompts: ended by 1, padded by 0, cut to the encoder's length."""
    if text["caption"] is not None:
        raise SystemExit(
            f"error: prompts have to be prepared as {text['caption']!r} for this model"
        )
    if text["tokenizer"] == "bytes":
        encoded = [[byte + 3 for byte in prompt.encode()] for prompt in prompts]
    else:
        import sentencepiece

        model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
        encoded = [model.encode(prompt) for prompt in prompts]
    ids = np.zeros((len(prompts), text["max_length"]), np.int32)
    mask = np.zeros(ids.shape, bool)
    for row, found in enumerate(encoded):
        kept = [*found[: text["max_length"] - 1], text["end"]]
        ids[row, : len(kept)], mask[row, : len(kept)] = kept, True
    return ids, mask


def inputs(description, folder, prompts, negative, seed, steps, guidance):
    """What cascade.onnx takes: tokens, and of each stage its times, noise and guidance."""
    text, batch = description["text"], len(prompts)
    wanted = [entry["name"] for entry in description["parts"]["cascade"]["inputs"]]
    if negative and "negative_ids" not in wanted:
        raise SystemExit("error: this model has no guidance, so it takes no --negative_prompt")
    first = description["stages"][0]["name"]
    if guidance is not None and f"guidance_{first}" not in wanted:
        raise SystemExit(f"error: {first} has no guidance, so it takes no --guidance")
    draw = np.random.default_rng(seed).standard_normal
    given = {}
    given["ids"], given["mask"] = tokens(folder, text, prompts)
    ids, mask = tokens(folder, text, [negative or ""] * batch)
    # Without a negative prompt: the mask says to take the model's own empty text.
    given["negative_ids"] = ids
    given["negative_mask"] = mask if negative or text["null"] == "empty" else np.zeros_like(mask)
    for number, stage in enumerate(description["stages"]):
        times, name = np.array(stage["times"], np.float32), stage["name"]
        if steps and number == 0:
            if stage["spacing"] != "time":
                raise SystemExit(f"error: the times of other steps are not known for {name}")
            times = np.linspace(1, 0, steps + 1, dtype=np.float32)
        weight = guidance if guidance is not None and number == 0 else stage["guidance"]
        shape = batch, stage["resolution"], stage["resolution"], stage["channels"]
        for kind, array in (
            ("times", times),
            ("guidance", np.array(weight, np.float32)),
            ("noise", draw(shape, np.float32)),
            ("augmentation_noise", draw(shape, np.float32)),
            (
                "step_noise",
                lambda shape=shape, times=times: draw((len(times) - 1, *shape), np.float32),
            ),
        ):
            given[f"{kind}_{name}"] = array
    return {name: given[name]() if callable(given[name]) else given[name] for name in wanted}


def make_images(folder, prompts, negative=None, seed=0, steps=None, guidance=None):
    """Images of prompts, float32 [batch, height, width, channels] in [-1, 1]."""
    folder = Path(folder)
    description = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(folder / description["parts"]["cascade"]["file"])
    given = inputs(description, folder, prompts, negative, seed, steps, guidance)
    return session.run(None, given)[0]


def png(image):
    """An image in [-1, 1] as the bytes of a PNG file."""
    pixels = np.round((np.clip(image, -1, 1) + 1) * 127.5).astype(np.uint8)
    height, width, channels = pixels.shape

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    kind = {1: 0, 3: 2}[channels]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in parts)


def main():
    """The command line of the example."""
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("prompts", nargs="+")
    parse.add_argument("--negative_prompt")
    parse.add_argument("--seed", type=int, default=0)
    parse.add_argument("--steps", type=int, help="of the first stage")
    parse.add_argument("--guidance", type=float, help="of the first stage; 1 is none")
    parse.add_argument("--out", type=Path, default=Path("images"))
    given = parse.parse_args()
    folder = Path(__file__).resolve().parent
    images = make_images(
        folder, given.prompts, given.negative_prompt, given.seed, given.steps, given.guidance
    )
    given.out.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        path = given.out / f"{number:05d}.png"
        path.write_bytes(png(image))
        print(path)


if __name__ == "__main__":
    main()
