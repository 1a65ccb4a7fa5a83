"""The page's modules in Node, without a browser."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

WEB = Path(__file__).resolve().parents[2] / "web"
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="there is no node")


def run_node(module: str, names: str, given: Any, result: str) -> Any:
    """The value of an expression, or statements that end in one after "return", in which `given`
    is what was given and `names` are imported from a module of the page.
    """
    script = f"""
    import {{ {names} }} from {json.dumps((WEB / module).as_uri())};
    import {{ readFileSync }} from "node:fs";
    const given = JSON.parse(readFileSync(0, "utf8"));
    const result = await (async () => {{ {result} }})();
    process.stdout.write(JSON.stringify(result));
    """
    command = ["node", "--input-type=module", "-e", script]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
