"""In place of imagen-jax train: a run whose loss is a function of its values, a step a moment."""

import ast
import json
import os
import signal
import sys
import time
from pathlib import Path

# What was asked, and when to misbehave: at rate 0.5 it fails at step 6, at 0.75 before the first,
# at 0.25 it is out of memory.
given = dict(argument.lstrip("-").split("=", 1) for argument in sys.argv[1:])
workdir, steps = Path(given["workdir"]), int(given["config.num_steps"])
rate = float(given["config.optimizer.learning_rate"])
width = ast.literal_eval(given.get("config.stage.network.num_heads", "2"))
signals = []
signal.signal(signal.SIGTERM, lambda *_: signals.append(1))
path = workdir / "metrics.jsonl"
done = sum(1 for _ in path.open()) if path.exists() else 0
if rate == 0.25:
    os.kill(os.getpid(), signal.SIGKILL)
if rate == 0.75:
    sys.exit("error: there is no folder\nGive one.")
with path.open("a") as file:
    for step in range(done + 1, steps + 1):
        loss = abs(rate - 0.01) * 10 + width / 10 + 1 / step
        broken = rate == 0.5 and step == 6
        file.write(json.dumps({"step": step, "loss": float("nan") if broken else loss}) + "\n")
        file.flush()
        if broken:
            sys.exit("error: the loss is nan at step 6\nChange something first.")
        print(f"step {step}/{steps}", flush=True)
        time.sleep(float(os.environ.get("STEP_SECONDS", "0")))
        if signals:
            sys.exit(os.EX_TEMPFAIL)
