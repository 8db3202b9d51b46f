"""lm-evaluation-harness: local-completions on a task of its own, by log likelihoods and by generation."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TASKS = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "doc_to_choice": "{{choices}}",
        "metric_list": [{"metric": "acc"}],
    },
    "writing": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match"}],
    },
}
DOCS = [
    {"question": "def read(path):\n    with open(path) as", "choices": [" file:", " zebra"], "answer": 0},
    {"question": "for i in", "choices": [" range(", " import"], "answer": 0},
    {"question": "import", "choices": [" sys", ")))"], "answer": 0},
    {"question": "return", "choices": [" ]]]", " self"], "answer": 1},
]

with tempfile.TemporaryDirectory() as folder:
    data = Path(folder, "docs.jsonl")
    data.write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    for name, task in TASKS.items():
        source = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}}
        Path(folder, f"{name}.yaml").write_text(json.dumps({**source, "test_split": "test", **task}))
    arguments = {
        "model": os.environ["MODEL"],
        "base_url": os.environ["URL"] + "/v1/completions",
        "tokenizer": os.environ["TOKENIZER"],
        "tokenizer_backend": "huggingface",
        "num_concurrent": "4",
        "max_length": "512",
    }
    command = [sys.executable, "-m", "lm_eval", "--model", "local-completions", "--include_path", folder]
    command += ["--model_args", ",".join(f"{key}={value}" for key, value in arguments.items())]
    command += ["--batch_size", "2", "--tasks", ",".join(TASKS), "--output_path", folder]
    env = {**os.environ, "OPENAI_API_KEY": os.environ["KEY"], "HF_HOME": folder, "HF_DATASETS_OFFLINE": "0"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    (found,) = Path(folder).rglob("results_*.json")
    results = json.loads(found.read_text())["results"]
    accuracy = results["choice"]["acc,none"]
    assert accuracy >= 0.75, results  # the demo knows Python: nonsense is less likely
    print(f"log likelihoods (accuracy {accuracy:g}) and generation")
