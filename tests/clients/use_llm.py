"""llm (the command): prompts streamed and whole, a schema, a conversation, a tool."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

LLM = str(Path(sys.executable).with_name("llm"))

with tempfile.TemporaryDirectory() as folder:
    Path(folder, "extra-openai-models.yaml").write_text(
        json.dumps(  # JSON is YAML
            [
                {
                    "model_id": "served",
                    "model_name": os.environ["MODEL"],
                    "api_base": os.environ["URL"] + "/v1",
                    "api_key_name": "served",
                    "supports_schema": True,
                    "supports_tools": True,
                }
            ]
        )
    )
    Path(folder, "keys.json").write_text(json.dumps({"served": os.environ["KEY"]}))
    env = {**os.environ, "LLM_USER_PATH": folder}

    def run(*arguments: str) -> str:
        done = subprocess.run([LLM, *arguments], env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    options = ("-m", "served", "-o", "max_tokens", "48", "-o", "temperature", "0")
    streamed = run("def read(path):", *options)
    assert streamed.strip() and streamed == run("def read(path):", "--no-stream", *options)
    print("streamed and whole")
    assert run("return", "-c", *options).strip()
    print("conversation")
    assert set(json.loads(run("A dog:", "--schema", "name, age int", *options))) == {"name", "age"}
    print("schema")
    usage = run("def", "--usage", *options)
    print("usage")
    code = "def add(first: int, second: int) -> int:\n    'Adds two numbers.'\n    return first + second\n"
    run("def read(path):", "--functions", code, *options)
    print("a tool is offered")
