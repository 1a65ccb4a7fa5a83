"""A subject of your own from three to five images: DreamBooth (arXiv 2208.12242) on DeepFloyd IF.

    imagen-jax generate "a dog" --model DIRECTORY --size 64 --num_images 200 --no_grid \
        --dtype bfloat16 --out runs/dogs
    imagen-jax train --config dreambooth_if --workdir runs/sks \
        --init_from DIRECTORY --config.data.path=IMAGES \
        --config.data.prompt="a sks dog" --config.data.prior.path=runs/dogs \
        --config.data.prior.prompt="a dog"
    imagen-jax generate "a sks dog on the moon" --model runs/sks --dtype bfloat16

The first command lets the model generate images of the subject's class: the prior, which keeps the
class from turning into the subject. Half of each batch is the subject, half the prior, each with
one prompt for all of its images. DIRECTORY is IF's stage I as diffusers saves it, or any other
trained stage; `sks` is a word that means nothing to the model. As in the paper, every weight is
trained, for a thousand steps at 1e-5 with lambda 1. An adapter instead needs a tenth of the memory
and ten times the rate: --config.lora="{'rank': 8}" --config.optimizer.learning_rate=1e-4.

Hardware: weights, gradient and Adam's moments take 16 bytes a parameter, and T5-XXL 9.5 GB: IF-I-M
(0.4B) fits one GPU of 24 GB, IF-I-XL (4.3B) four of 80 GB (--config.mesh.fsdp=4). Expect the
subject in new places, and other dogs as before. Not run to the end here.
"""

from ml_collections import ConfigDict

from . import lora_if


def get_config() -> ConfigDict:
    config = lora_if.get_config()
    config.lora = None
    config.data = {
        "source": "folder",
        "path": None,
        "split": "all",
        "prompt": "a sks dog",
        "flip": False,
        "prior": {
            "source": "folder",
            "path": None,
            "split": "all",
            "prompt": "a dog",
            "share": 0.5,
            "weight": 1.0,
        },
    }
    config.optimizer = {
        "kind": "adamw",
        "learning_rate": 1e-5,
        "warmup_steps": 0,
        "weight_decay": 0.01,
        "clip_norm": 1.0,
    }
    config.checkpoint = {"every": 500, "keep": 1, "keep_best": 0}
    config.sample = {"every": 250, "prompts": ["a sks dog", "a dog", "a sks dog on the moon"]}
    return config
