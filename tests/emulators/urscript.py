"""Enough of URScript to run a control script: it is turned into Python line by line and executed.

Blocks end with `end`, thread and function bodies are indented anew; what is not understood is a syntax error, as it
would be in the controller.
"""

from __future__ import annotations

import re

_BLOCK = re.compile(r"^(def|while|if|elif|else)\b.*:$")


def translate(script: str) -> tuple[str, str]:
    """`(Python source, name of the function to call)`."""
    lines, depth, name = [], 0, ""
    for number, raw in enumerate(script.splitlines(), 1):
        text = raw.split("#", 1)[0].strip()
        if not text:
            continue
        text = re.sub(r"^(local|global)\s+", "", text)
        if text == "end":
            depth -= 1
            if depth < 0:
                raise SyntaxError(f"line {number}: end of nothing")
            continue
        word = re.match(r"\w+", text)
        if word and word.group() in ("elif", "else"):
            lines.append("    " * (depth - 1) + text)
            continue
        lines.append("    " * depth + text)
        if _BLOCK.match(text):
            depth += 1
            if not name and text.startswith("def "):
                name = re.match(r"def (\w+)\(\):", text).group(1)
        elif text.endswith(":"):
            raise SyntaxError(f"line {number}: {text}")
    if depth or not name:
        raise SyntaxError("a block is not ended")
    return "\n".join(lines), name


def run(script: str, functions: dict) -> None:
    """Execute a script with the controller's functions."""
    source, name = translate(script)
    namespace = {"__builtins__": {}, "True": True, "False": False, **functions}
    exec(compile(source, "<urscript>", "exec"), namespace)
    namespace[name]()
