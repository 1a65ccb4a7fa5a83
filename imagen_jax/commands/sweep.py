r"""Trains a config with several values of some keys, and says which are best.

    imagen-jax sweep --config folder_32_cpu --workdir runs/sweep --config.data.path=IMAGES \
        --config.optimizer.learning_rate=3e-4,1e-3,3e-3 --config.batch_size=16,32
    imagen-jax sweep --config folder_32_cpu --workdir runs/search --config.data.path=IMAGES \
        --search tpe --trials 20 --config.optimizer.learning_rate=1e-4:1e-2:log \
        --config.stage.network.levels.0.channels=32:96:32

Keys with one value are as for imagen-jax train; those with several are swept: A,B,... are choices,
LOW:HIGH is a range (of whole numbers where both ends are), LOW:HIGH:log one by magnitude,
LOW:HIGH:STEP one in steps. A value that is a list itself stands in brackets, [1,2],[3,4], and text
with a comma or a colon of its own in quotes, "'1:2'".

Each trial is an ordinary workdir, DIR/trial_000 and so on, trained by imagen-jax train in a process
of its own: one that fails does not end the sweep. After each, DIR has sweep.csv, sweep.png and, for
TensorBoard, the trial in the tab HParams. The same command goes on after a kill, with the newest
checkpoint of the trial that was not finished; with a larger --trials it adds trials.
"""

import argparse
import os
import re
import signal
import sys
import threading
from collections import Counter

from imagen_jax.commands import train
from imagen_jax.commands.command_line import (
    CONFIG,
    count,
    make_parser,
    one_line_errors,
    path,
    run_configured,
    source,
)
from imagen_jax.training.config import plain_key

TRIAL = "from imagen_jax.commands.sweep import train_trial; train_trial()"


def parser() -> argparse.ArgumentParser:
    parse = make_parser(__doc__)
    add = parse.add_argument
    add("--config", **CONFIG)
    add("--workdir", type=path, required=True, metavar="DIR", help="folder of all trials")
    add("--search", default="grid", metavar="KIND", help="grid (default), random, or tpe, which "
        "tries more of what was good")  # fmt: skip
    add("--trials", type=count, metavar="N", help="of --search random or tpe")
    add("--seed", type=int, default=0, metavar="N", help="of what they try (default: 0)")
    add("--metric", default="loss", metavar="NAME", help="to compare by: loss, the mean of the "
        "last tenth of the training loss (default), or a score of the config's section evaluate, "
        "such as scores/fid/NETWORK")  # fmt: skip
    add("--prune", default="median", metavar="KIND", help="which trials to stop early: those worse "
        "than the median at the same step (default), by successive halving (halving), or "
        "none")  # fmt: skip
    add("--dry_run", action="store_true", help="check the config of each trial, and stop")
    add("--wandb", metavar="PROJECT", help="log each trial to Weights & Biases, too")
    add("--init_from", type=source, metavar="MODEL", help="short for --config.init_from")
    return parse


def sweep(options: argparse.Namespace, overrides: dict[str, str]) -> None:
    with one_line_errors():
        import jax
        import matplotlib  # noqa: F401 - what lacks is told before anything is trained
        import tensorboardX  # noqa: F401

        from imagen_jax.sweeps import report, space, study, sweep
        from imagen_jax.training import config, workdir

        study.import_optuna()
        jax.config.update("jax_platforms", "cpu")  # an accelerator is for the trials
    with one_line_errors(ValueError):
        if options.init_from:
            if "init_from" in overrides:
                raise ValueError("--init_from and --config.init_from set the same key")
            overrides = {"init_from": repr(options.init_from), **overrides}
        fixed, swept = space.split_space(overrides)
        file = config.config_file(options.config).absolute()
        given = {name: getattr(options, name) for name in ("search", "trials", "seed", "metric")}
        folder = options.workdir.absolute()
        command = (sys.executable, "-c", TRIAL)
        asked = sweep.Sweep(
            file, folder, fixed, swept, command, pruner=options.prune, wandb=options.wandb, **given
        )
        points = sweep.check(asked)
        if options.dry_run:
            total = asked.trials if points is None else len(points)
            print(f"{total} trials; their configs are valid")
            return
        with workdir.held(folder):
            try:
                done = sweep.run(asked, points, lambda line: print(line, flush=True))
            except (SystemExit, KeyboardInterrupt):
                print("stopped; the same command goes on", file=sys.stderr)
                raise
            if not done:
                print("a trial was stopped by a signal; the same command goes on", file=sys.stderr)
                sys.exit(os.EX_TEMPFAIL)
            found = study.Study(folder, swept, asked.maximize)
            print(report.table(found, asked.metric, asked.maximize))
            print(folder / report.TABLE_FILE, folder / report.PLOT_FILE, sep="\n")


def train_trial() -> None:
    """`imagen-jax train`, which ends as by SIGTERM when the sweep that started it does, however
    that comes about: its standard input is closed then.
    """

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    sys.argv = ["imagen-jax train", *sys.argv[1:]]
    train.main(sys.argv[1:])


def check_once(arguments: list[str]) -> None:
    """ValueError where a key is given twice: a fixed value and a list, or two lists."""
    keys = [match[1] for text in arguments if (match := re.match(r"--?config\.([^=]+)", text))]
    plain = Counter(map(plain_key, keys))
    if twice := [key for key, times in plain.items() if times > 1]:
        raise ValueError(f"--config.{twice[0]} is given twice: a key is fixed or swept, once")


def main(arguments: list[str] | None = None) -> None:
    with one_line_errors(ValueError):
        check_once(sys.argv[1:] if arguments is None else arguments)
    run_configured(parser(), sweep, arguments)
