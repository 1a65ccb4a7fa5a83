"""What the arrays of an export are, by their names."""

MEANINGS = {
    "ids": "tokens, 1 after the last, 0 from there on",
    "mask": "true at tokens and at the 1 after them",
    "negative_ids": "as ids, of the negative prompt",
    "negative_mask": "as mask; false throughout: the text of guidance without a negative prompt",
    "text": "embeddings of the text encoder",
    "text_mask": "the encoder's mask",
    "null": "embeddings of what guidance leads away from: of the negative prompt, or zeros",
    "null_mask": "its mask; of zeros: true at the first token alone",
    "label": "numbers of classes",
    "x": "images at time t: alpha * image + sigma * noise",
    "t": "times, 0 clean to 1 noise",
    "s": "times that the step leads to",
    "low_res": "low-resolution images in [-1, 1]",
    "aug_level": "noise in low_res, 0 to 1",
    "guidance": "its weight, 1 is none",
    "times": "falling from 1 to 0, one more than steps",
    "start": "first step to run",
    "stop": "step to stop before",
    "noise": "standard normal, to begin with",
    "step_noise": "standard normal, for each step that is run",
    "augmentation_noise": "standard normal, for low_res",
    "x0": "the last estimate of the images; zeros to begin with",
    "logsnr": "log-SNR of that estimate; infinity to begin with",
    "average": "of guidance so far; zeros to begin with",
    "prediction": "what the network predicts",
    "images": "in [-1, 1]",
}


def meaning(name: str) -> str:
    """What an array of this name is; "noise_base64" is the "noise" of the stage base64."""
    bare = name.removeprefix("next_")
    found = max((key for key in MEANINGS if f"{bare}_".startswith(f"{key}_")), key=len)
    return MEANINGS[found] + (", after the steps" if bare != name else "")
