"""Asking people which images they prefer (arXiv 2205.11487, sections 3 and 4): the questions, the
trials, their answers, and what follows from them.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

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
    trials = {"kind": study.kind, "trials": [asdict(trial) for trial in study.trials.values()]}
    key = {name: asdict(secret) for name, secret in study.key.items()}
    secret = {"kind": study.kind, "names": study.names, "seed": study.seed, "key": key}
    for name, values in ((TRIALS_FILE, trials), (KEY_FILE, secret)):
        text = json.dumps(values, indent=1, ensure_ascii=False)
        (directory / name).write_text(text + "\n", encoding="utf-8")


def read_study(directory: Path) -> Study:
    """What `write_study` wrote. Raises FileNotFoundError, or ValueError where it is damaged."""
    try:
        trials = json.loads((directory / TRIALS_FILE).read_text(encoding="utf-8"))
        secret = json.loads((directory / KEY_FILE).read_text(encoding="utf-8"))
        found = [Trial(row["id"], row["caption"], tuple(row["sheets"])) for row in trials["trials"]]
        key = {
            name: Secret(row["prompt"], row["category"], tuple(row["models"]), row["control"])
            for name, row in secret["key"].items()
        }
        if trials["kind"] not in STUDIES or {trial.id for trial in found} != set(key):
            raise ValueError("trials and key do not belong together")
        for name in (name for trial in found for name in trial.sheets):
            if not SHEET.fullmatch(name):  # it is served as a file
                raise ValueError(f"{name!r} is no name of a sheet")
        by_id = {trial.id: trial for trial in found}
        return Study(trials["kind"], secret["names"], secret["seed"], by_id, key)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{directory} has no {TRIALS_FILE} and {KEY_FILE}; scripts/human_eval.py sheets makes "
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
    if not isinstance(values, dict) or set(values) != {"rater", "trial", "answers"}:
        raise ValueError("An answer must be an object with rater, trial and answers, no more.")
    rater, trial, answers = values["rater"], values["trial"], values["answers"]
    if not isinstance(rater, str) or not RATER.fullmatch(rater):
        raise ValueError("rater must be 1 to 40 letters, digits, or . @ + - _ and spaces.")
    if not isinstance(trial, str) or trial not in study.trials:
        raise ValueError(f"There is no trial {str(trial)[:40]!r}.")
    questions = STUDIES[study.kind]
    if not isinstance(answers, dict) or set(answers) != set(questions):
        raise ValueError(f"answers must answer {', '.join(questions)}, each once.")
    for name, choice in answers.items():
        if not isinstance(choice, str) or choice not in questions[name].choices:
            known = ", ".join(questions[name].choices)
            raise ValueError(f"{name} is {str(choice)[:40]!r}; it must be one of {known}.")
    if (rater, trial) in before:
        raise DuplicateAnswer(f"{rater} has answered trial {trial} already.")
    return Answer(rater, trial, dict(answers))


def read_answers(path: Path, study: Study) -> list[Answer]:
    """The answers in a JSONL file.

    Raises FileNotFoundError, or ValueError that names the line where one is not valid or comes
    twice.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {path} of answers; scripts/human_eval.py serve makes it."
        )
    answers: list[Answer] = []
    before: set[tuple[str, str]] = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            answers.append(check_answer(study, json.loads(line), before))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        before.add((answers[-1].rater, answers[-1].trial))
    return answers


# ------------------------------------------------------------------------------------- analysis


def analyse(study: Study, answers: Sequence[Answer]) -> dict[str, Any]:
    """Preferences with 95 % intervals, by question and category, and the raters left out.

    Raises ValueError where there are no answers, no controls, or no rater is left.
    """
    if not answers:
        raise ValueError("There are no answers yet; scripts/human_eval.py serve collects them.")
    if all(secret.control is None for secret in study.key.values()):
        raise ValueError("The study has no controls, which tell the raters who read the questions.")
    raters = control_scores(study, answers)
    kept = {r for r, score in raters.items() if score["share"] is not None and score["passed"]}
    rows = [
        answer
        for answer in answers
        if answer.rater in kept and study.key[answer.trial].control is None
    ]
    result: dict[str, Any] = {
        "study": study.kind,
        "names": study.names,
        "answers": len(answers),
        "answers_kept": len(rows),
        "raters": raters,
        "raters_kept": len(kept),
        "pass_mark": PASS_MARK,
        "questions": {},
    }
    if not rows:
        raise ValueError(
            f"No answer is left of {len(answers)}: every rater had less than {PASS_MARK:.0%} of "
            "the control questions right, or answered none."
        )
    for name, question in STUDIES[study.kind].items():
        summarize = caption_scores if name == "caption" else preferences
        groups: dict[str, list[Answer]] = {}
        for answer in rows:
            groups.setdefault(study.key[answer.trial].category, []).append(answer)
        result["questions"][name] = {
            "text": question.text,
            "all": summarize(study, name, rows),
            "categories": {
                group: summarize(study, name, entries) for group, entries in groups.items()
            },
        }
    return result


def control_scores(study: Study, answers: Sequence[Answer]) -> dict[str, dict[str, Any]]:
    """Of each rater: control questions answered, the share that was right, and whether it passes.

    share is None, and the rater does not pass, where none was answered.
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
    outcomes = ("a", "neither", "b")
    prompts = sorted({study.key[answer.trial].prompt for answer in answers})
    counts = np.zeros((len(prompts), len(outcomes)))
    for answer in answers:
        secret, choice = study.key[answer.trial], answer.answers[question]
        sides = dict(zip(("left", "right"), secret.models, strict=True))
        outcome = sides.get(choice, "neither")
        counts[prompts.index(secret.prompt), outcomes.index(outcome)] += 1
    total = counts.sum()
    low, high = bootstrap_shares(counts)
    return {
        "answers": int(total),
        "prompts": len(prompts),
        **{
            outcome: {
                "share": float(counts[:, column].sum() / total),
                "wilson": wilson(counts[:, column].sum(), total),
                "bootstrap": (float(low[column]), float(high[column])),
            }
            for column, outcome in enumerate(outcomes)
        },
    }


def caption_scores(study: Study, question: str, answers: Sequence[Answer]) -> dict[str, Any]:
    """The mean score (yes 100, somewhat 50, no 0) of each model's images, and its interval."""
    scores: dict[str, dict[str, list[float]]] = {}
    for answer in answers:
        secret = study.key[answer.trial]
        by_prompt = scores.setdefault(secret.models[0], {})
        by_prompt.setdefault(secret.prompt, []).append(SCORES[answer.answers[question]])
    result: dict[str, Any] = {"answers": len(answers)}
    for model, by_prompt in sorted(scores.items()):
        totals = np.asarray([[sum(values), len(values)] for values in by_prompt.values()])
        draws = resampled(totals)
        low, high = np.percentile(draws[:, 0] / draws[:, 1], (2.5, 97.5))
        result[model] = {
            "score": float(totals[:, 0].sum() / totals[:, 1].sum()),
            "answers": int(totals[:, 1].sum()),
            "prompts": len(totals),
            "bootstrap": (float(low), float(high)),
        }
    return result


def wilson(successes: float | int, total: float | int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, JASA 22, 1927): inside [0, 1] for any counts."""
    share = successes / total
    centre = share + Z**2 / (2 * total)
    spread = Z * math.sqrt(share * (1 - share) / total + Z**2 / (4 * total**2))
    scale = 1 + Z**2 / total
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def resampled(counts: np.ndarray) -> np.ndarray:
    """[BOOTSTRAPS, columns]: sums of counts [prompts, columns] over prompts drawn anew."""
    prompts = len(counts)
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    times = generator.multinomial(prompts, np.full(prompts, 1 / prompts), size=BOOTSTRAPS)
    return times @ counts


def bootstrap_shares(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """2.5 and 97.5 % of each column's share when prompts are drawn anew."""
    draws = resampled(counts)
    low, high = np.percentile(draws / draws.sum(axis=1, keepdims=True), (2.5, 97.5), axis=0)
    return low, high


def text_table(result: Mapping[str, Any]) -> str:
    """The analysis in lines for a terminal."""
    names, lines = result["names"], []
    dropped = [rater for rater, score in result["raters"].items() if not score["passed"]]
    lines.append(
        f"{result['raters_kept']} raters, {result['answers_kept']} answers; left out: "
        f"{', '.join(dropped) or 'none'}"
    )
    for question, groups in result["questions"].items():
        lines.append(f"{question}: {groups['text']}")
        for group, found in [("all", groups["all"]), *groups["categories"].items()]:
            cells = []
            for outcome in ("a", "neither", "b"):
                if outcome not in found:
                    continue
                entry = found[outcome]
                value = entry["score"] if "score" in entry else 100 * entry["share"]
                scale = 1 if "score" in entry else 100
                low, high = (scale * end for end in entry["bootstrap"])
                cells.append(f"{names.get(outcome, outcome)} {value:.1f} ({low:.1f} to {high:.1f})")
            lines.append(f"  {group}: {'; '.join(cells)}; {found['answers']} answers")
    return "\n".join(lines)
