"""Fine-tuning a model needs no copy of its config: what a config leaves out is the model's own."""

from collections.abc import Callable, Mapping
from typing import Any

from imagen_jax.cascade.cascade import Cascade, stage_index
from imagen_jax.cascade.stage import KINDS
from imagen_jax.storage.codec import Section, to_dict
from imagen_jax.text import encoder as text
from imagen_jax.text.tokenizers import SentencePieceTokenizer


def is_open(config: Section) -> bool:
    """Whether the config leaves the network to the model of `init_from`: it names neither its
    kind nor levels.
    """
    stage = to_dict(config).get("stage")
    network = (stage or {}).get("network") or {}
    return not (network.get("kind") or network.get("levels"))


def completed(config: Section, cascade_of: Callable[[str], Cascade]) -> Section:
    """The config with what it leaves to its teacher and to the model that it starts from.

    Raises:
        ValueError: it leaves out its network, and names no model.
    """
    if config.get("distill") is not None:
        config = with_teacher(config, cascade_of(config["distill"]["teacher"]))
    if not is_open(config):
        return config
    if config.get("init_from") is None:
        raise ValueError("the config leaves the network to its model: give --init_from")
    return filled(config, cascade_of(config["init_from"]))


def filled(config: Section, cascade: Cascade) -> dict[str, Any]:
    """The config with the stage, the text encoder and the sampler's settings of a model.

    Keys that the config has are kept: `stage.loss.vlb_weight`, `stage.network.dtype` and so on.
    `stage.name` says which of several stages.

    Raises:
        ValueError: the model has several stages and `stage.name` is none of them.
    """
    values = to_dict(config)
    given = values.get("stage") or {}
    index = stage_index(cascade, given.get("name"))
    stage = to_dict(cascade.stages[index], KINDS)
    given = given | {"name": given.get("name") or stage["name"]}
    values["stage"] = _over(stage, given)
    values["sample"] = to_dict(cascade.sampling[index]) | (values.get("sample") or {})
    if cascade.encoder is not None and stage["conditioning"] == "text":
        section = {**_text_section(cascade.encoder), "init_from": values.get("init_from")}
        given = {k: v for k, v in (values.get("text") or {}).items() if v is not None}
        values["text"] = _over(section, given)
    return values


def with_teacher(config: Section, cascade: Cascade) -> dict[str, Any]:
    """The config of a distillation with the teacher's stage and how it is sampled; a student that
    leaves out its own network gets the teacher's, and its weights to start from.

    The stage is the teacher's first where `stage.name` is None.

    Raises:
        ValueError: `stage.name` is no stage of the teacher.
    """
    values = to_dict(config)
    section, given = values["distill"], values.get("stage") or {}
    given = given | {"name": given.get("name") or cascade.stages[0].name}
    values["stage"], index = given, stage_index(cascade, given["name"])
    sampling = to_dict(cascade.sampling[index])
    if section.get("guidance") is not None:
        sampling["guidance"] = section["guidance"]
    taught_by, network = to_dict(cascade.stages[index], KINDS), given.get("network") or {}
    taught_by["network"]["dtype"] = network.get("dtype") or taught_by["network"]["dtype"]
    values["distill"] = section | {"stage": taught_by, "sampling": sampling}
    student = sampling | {"guidance": 1.0}
    if steps := section.get("steps"):  # which are even in time
        student |= {"sampler": "ddim", "steps": max(steps), "eta": 0.0, "spacing": "time"}
        student |= {"steps_offset": 0, "lambda_min": None}
    values["sample"] = student | (values.get("sample") or {})
    if section.get("kind", "flow_map") == "flow_map":
        values["stage"] = given | {"network": {"target_time": True, **network}}
    if is_open(values) and values.get("init_from") is None:
        values["init_from"] = section["teacher"]
    return values


def _over(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with those of `given` put over them, section by section."""
    result = dict(values)
    for name, value in given.items():
        below = result.get(name)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        result[name] = _over(below, value) if both else value
    return result


def _text_section(encoder: text.TextEncoder) -> dict[str, Any]:
    values = text.to_dict(encoder)
    if isinstance(encoder.tokenizer, SentencePieceTokenizer):
        values["tokenizer"] = encoder.tokenizer.path
    return {"encoder": values.pop("config"), **values}
