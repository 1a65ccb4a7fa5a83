"""Asking people which images they prefer (arXiv 2205.11487, sections 3 and 4): the questions, the
trials, their answers, and what follows from them.
"""

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.storage.codec import require
from imagen_jax.storage.json_file import parse, read_object, write_object
from imagen_jax.storage.lines import read_lines

PASS_MARK = 0.8  # raters with fewer of the control questions right are left out, the paper's
Z = 1.959964  # of a 95 % interval
BOOTSTRAPS, BOOTSTRAP_SEED = 10_000, 0
SCORES = {"yes": 100.0, "somewhat": 50.0, "no": 0.0}
RATER = re.compile(r"[\w.@+ -]{1,40}")
SHEET = re.compile(r"[0-9a-f]{12}-[01]\.png")
TRIALS_FILE, KEY_FILE = "trials.json", "key.json"


@dataclass(frozen=True)
class Question:
    """What a rater is asked of a trial, and the answers to choose from."""

    text: str
    choices: dict[str, str]  # name -> what the rater reads


SIDES = {"left": "I prefer set A", "neither": "I am indifferent", "right": "I prefer set B"}
# The questions of each study by name. drawbench: two sets of 8 images. photorealism: an image
# beside the true one. captions: one image, the model's or the true one.
STUDIES: dict[str, dict[str, Question]] = {
    "drawbench": {
        "quality": Question("Which set of images is of higher quality?", SIDES),
        "alignment": Question("Which set of images better represents the text caption?", SIDES),
    },
    "photorealism": {
        "photorealism": Question(
            "Which image is more photorealistic (looks more real)?",
            {"left": "The left image", "right": "The right image"},
        )
    },
    "captions": {
        "caption": Question(
            "Does the caption accurately describe the image above?",
            {"yes": "Yes", "somewhat": "Somewhat", "no": "No"},
        )
    },
}


@dataclass(frozen=True)
class Trial:
    """What a rater sees: nothing here tells the models apart."""

    id: str
    caption: str | None
    sheets: tuple[str, ...]  # file names: left and right, or one


@dataclass(frozen=True)
class Secret:
    """What a rater must not know of a trial.

    models: whose the sheets are, in the order shown. control: the right answers by question where
    the trial is a control, else None.
    """

    prompt: str  # the id of the prompt
    category: str
    models: tuple[str, ...]
    control: dict[str, str] | None = None


@dataclass(frozen=True, eq=False)
class Study:
    """The trials of a study and its key. names: of models "a" and "b"."""

    kind: str
    names: dict[str, str]
    seed: int
    trials: dict[str, Trial]
    key: dict[str, Secret]


@dataclass(frozen=True)
class Answer:
    """One rater's answers to all questions of one trial."""

    rater: str
    trial: str
    answers: dict[str, str]


class DuplicateAnswer(ValueError):
    """The rater has answered this trial before."""


def write_study(study: Study, directory: Path) -> None:
    """trials.json, which raters may see, and key.json, which they may not."""
    trials = [asdict(trial) for trial in study.trials.values()]
    write_object(directory / TRIALS_FILE, {"kind": study.kind, "trials": trials})
    key = {name: asdict(secret) for name, secret in study.key.items()}
    secret = {"kind": study.kind, "names": study.names, "seed": study.seed, "key": key}
    write_object(directory / KEY_FILE, secret)


def read_study(directory: Path) -> Study:
    """What `write_study` wrote. Raises FileNotFoundError, or ValueError where it is damaged."""
    try:
        public = read_object(directory / TRIALS_FILE, "the trials of a study")
        secret = read_object(directory / KEY_FILE, "the key of a study")
        trials = {
            row["id"]: Trial(**row | {"sheets": tuple(row["sheets"])}) for row in public["trials"]
        }
        key = {
            name: Secret(**row | {"models": tuple(row["models"])})
            for name, row in secret["key"].items()
        }
        if public["kind"] not in STUDIES or trials.keys() != key.keys():
            raise ValueError("trials and key do not belong together")
        for name in (name for trial in trials.values() for name in trial.sheets):
            if not SHEET.fullmatch(name):  # it is served as a file
                raise ValueError(f"{name!r} is not the name of a sheet")
        return Study(public["kind"], secret["names"], secret["seed"], trials, key)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{directory} has no {TRIALS_FILE} and {KEY_FILE}; imagen-jax human_eval sheets makes "
            "them."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"The study in {directory} cannot be read: {error!r}.") from None


# ------------------------------------------------------------------------------------- answers


def check_answer(study: Study, values: Any, before: set[tuple[str, str]]) -> Answer:
    """An Answer out of JSON from outside, each part of it checked.

    Args:
        before: (rater, trial) of the answers that there are.

    Raises:
        DuplicateAnswer: the rater has answered the trial.
        ValueError: anything else is wrong; the message names it.
    """
    whole = isinstance(values, dict) and set(values) == {"rater", "trial", "answers"}
    require((whole, "An answer must be an object with rater, trial and answers, no more."))
    rater, trial, answers = values["rater"], values["trial"], values["answers"]
    questions = STUDIES[study.kind]
    require(
        (
            isinstance(rater, str) and RATER.fullmatch(rater),
            "rater must be 1 to 40 letters, digits, or . @ + - _ and spaces.",
        ),
        (
            isinstance(trial, str) and trial in study.trials,
            f"There is no trial {str(trial)[:40]!r}.",
        ),
        (
            isinstance(answers, dict) and set(answers) == set(questions),
            f"answers must answer {', '.join(questions)}, each once.",
        ),
    )
    for name, choice in answers.items():
        known = questions[name].choices
        right = isinstance(choice, str) and choice in known
        require((right, f"{name} is {str(choice)[:40]!r}; it must be one of {', '.join(known)}."))
    if (rater, trial) in before:
        raise DuplicateAnswer(f"{rater} has answered trial {trial} already.")
    return Answer(rater, trial, dict(answers))


def read_answers(path: Path, study: Study) -> list[Answer]:
    """The answers in a JSONL file; half a line at its end, which nobody was told was saved, is left
    out.

    Raises FileNotFoundError, or ValueError that names the line where one is not valid or comes
    twice.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {path} of answers; imagen-jax human_eval serve makes it."
        )
    if (content := path.read_bytes()) and not content.endswith(b"\n"):
        warnings.warn(f"{path} ends in half a line, which is left out", stacklevel=2)
    answers: list[Answer] = []
    before: set[tuple[str, str]] = set()
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            answers.append(check_answer(study, parse(line), before))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        before.add((answers[-1].rater, answers[-1].trial))
    return answers


# ------------------------------------------------------------------------------------- analysis


def analyse(study: Study, answers: Sequence[Answer]) -> dict[str, Any]:
    """Preferences with 95 % intervals, by question and category, and the raters left out.

    Raises ValueError where there are no answers, no controls, or no rater is left.
    """
    require(
        (answers, "There are no answers yet; imagen-jax human_eval serve collects them."),
        (
            any(secret.control for secret in study.key.values()),
            "The study has no controls, which tell the raters who read the questions.",
        ),
    )
    raters = control_scores(study, answers)
    kept = {rater for rater, score in raters.items() if score["passed"]}
    categories: dict[str, list[Answer]] = {}
    for answer in answers:
        secret = study.key[answer.trial]
        if answer.rater in kept and secret.control is None:
            categories.setdefault(secret.category, []).append(answer)
    rows = [answer for group in categories.values() for answer in group]
    if not rows:
        raise ValueError(
            f"No answer is left of {len(answers)}: every rater had less than {PASS_MARK:.0%} of "
            "the control questions right, or answered none."
        )
    summarize = caption_scores if study.kind == "captions" else preferences
    questions = {
        name: {
            "text": question.text,
            "all": summarize(study, name, rows),
            "categories": {
                category: summarize(study, name, group) for category, group in categories.items()
            },
        }
        for name, question in STUDIES[study.kind].items()
    }
    return {
        "study": study.kind,
        "names": study.names,
        "answers": len(answers),
        "answers_kept": len(rows),
        "raters": raters,
        "raters_kept": len(kept),
        "pass_mark": PASS_MARK,
        "questions": questions,
    }


def control_scores(study: Study, answers: Sequence[Answer]) -> dict[str, dict[str, Any]]:
    """By rater: control questions answered, the share that was right, and whether the rater passes.

    A rater who answered none has the share None, and does not pass.
    """
    right: dict[str, list[bool]] = {answer.rater: [] for answer in answers}
    for answer in answers:
        for name, choice in (study.key[answer.trial].control or {}).items():
            right[answer.rater].append(answer.answers[name] == choice)
    scores = {}
    for rater, marks in sorted(right.items()):
        share = sum(marks) / len(marks) if marks else None
        passed = share is not None and share >= PASS_MARK
        scores[rater] = {"controls": len(marks), "share": share, "passed": passed}
    return scores


def preferences(study: Study, question: str, answers: Sequence[Answer]) -> dict[str, Any]:
    """Shares of the answers that prefer a, neither or b, each with two intervals.

    wilson: as if all answers were independent. bootstrap: over prompts, whose answers are not.
    """
    preferred, prompts = [], []
    for answer in answers:
        secret = study.key[answer.trial]
        sides = dict(zip(("left", "right"), secret.models, strict=True))
        preferred.append(sides.get(answer.answers[question], "neither"))
        prompts.append(secret.prompt)
    result: dict[str, Any] = {"answers": len(answers), "prompts": len(set(prompts))}
    for outcome in ("a", "neither", "b"):
        chosen = np.asarray(preferred) == outcome
        result[outcome] = {
            "share": float(chosen.mean()),
            "wilson": wilson(int(chosen.sum()), len(chosen)),
            "bootstrap": bootstrap(prompts, chosen),
        }
    return result


def caption_scores(study: Study, question: str, answers: Sequence[Answer]) -> dict[str, Any]:
    """The mean score (yes 100, somewhat 50, no 0) of each model's images, and its interval."""
    rows = [(study.key[a.trial], SCORES[a.answers[question]]) for a in answers]
    result: dict[str, Any] = {"answers": len(answers)}
    for model in sorted({secret.models[0] for secret, _ in rows}):
        prompts = [secret.prompt for secret, _ in rows if secret.models[0] == model]
        scores = [score for secret, score in rows if secret.models[0] == model]
        result[model] = {
            "score": float(np.mean(scores)),
            "answers": len(scores),
            "prompts": len(set(prompts)),
            "bootstrap": bootstrap(prompts, scores),
        }
    return result


def wilson(successes: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, JASA 22, 1927): inside [0, 1] for any counts."""
    share = successes / total
    centre = share + Z**2 / (2 * total)
    spread = Z * math.sqrt(share * (1 - share) / total + Z**2 / (4 * total**2))
    scale = 1 + Z**2 / total
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def bootstrap(prompts: Sequence[str], values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean of values [answers] when prompts are resampled."""
    names, row = np.unique(prompts, return_inverse=True)
    sums, counts = np.bincount(row, values), np.bincount(row)
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    prompts_share = np.full(len(names), 1 / len(names))
    times = generator.multinomial(len(names), prompts_share, size=BOOTSTRAPS)
    low, high = np.percentile((times @ sums) / (times @ counts), (2.5, 97.5))
    return float(low), float(high)


def text_table(result: Mapping[str, Any]) -> str:
    """The analysis in lines for a terminal."""
    dropped = [rater for rater, score in result["raters"].items() if not score["passed"]]
    lines = [
        f"{result['raters_kept']} raters, {result['answers_kept']} answers; left out: "
        f"{', '.join(dropped) or 'none'}"
    ]
    for question, groups in result["questions"].items():
        lines.append(f"{question}: {groups['text']}")
        for group, found in [("all", groups["all"]), *groups["categories"].items()]:
            cells = []
            for outcome in [name for name in ("a", "neither", "b") if name in found]:
                entry, scale = found[outcome], 1 if "score" in found[outcome] else 100
                value = scale * entry.get("score", entry.get("share"))
                low, high = (scale * end for end in entry["bootstrap"])
                name = result["names"].get(outcome, outcome)
                cells.append(f"{name} {value:.1f} ({low:.1f} to {high:.1f})")
            lines.append(f"  {group}: {'; '.join(cells)}; {found['answers']} answers")
    return "\n".join(lines)
