"""The README's examples do what it says: each marked block is run as it is printed, against a running server.

A block is marked by `<!-- test: NAME -->` on the line above it. The address of the quick start in it stands for the
server's.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.proxy import Proxy
from harness.standin import Standin

README = Path(__file__).parents[2] / "README.md"
MARKED = re.compile(r"<!-- test: (?P<name>[\w-]+) -->\n+```(?P<language>\w+)\n(?P<code>.*?)^```", re.M | re.S)
ADDRESS = re.compile(r"http://(?:127\.0\.0\.1|localhost):3000")
LIMIT = 60


def examples() -> dict[str, tuple[str, str]]:
    """Language and code of every marked block, by name."""
    text = README.read_text() if README.exists() else ""
    return {found["name"]: (found["language"], found["code"]) for found in MARKED.finditer(text)}


def test_there_are_examples_in_both_languages() -> None:
    assert README.exists(), "there is no README"
    languages = {language for language, _ in examples().values()}
    assert {"python"} <= languages and languages & {"sh", "bash", "shell", "console"}
    assert len(examples()) == README.read_text().count("<!-- test:"), "every marker has a block below it"


@pytest.mark.parametrize("name", sorted(examples()) or ["none at all"])
def test_an_example_works(name: str, proxy: Proxy, standin: Standin, tmp_path: Path) -> None:
    assert name in examples()
    language, code = examples()[name]
    code, replaced = ADDRESS.subn(proxy.url, code)
    assert replaced, "an example that goes elsewhere proves nothing"
    if language == "python":
        file = tmp_path / "example.py"
        file.write_text(code)
        command = [sys.executable, str(file)]
    else:
        command = ["bash", "-euo", "pipefail", "-c", code]
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LANG": "C.UTF-8"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=LIMIT)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert '"error"' not in done.stdout
    assert standin.requests(), "it asked somebody else, or nobody"
