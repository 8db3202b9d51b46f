"""Commands import transformers without torch, unless somebody else's code may need it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.loading.checkpoint import DEMO_FOLDER

SCRIPT = """
import sys
from pipelines import PipelineConfig
from pipelines.without_torch import import_transformers_without_torch
{before}
import_transformers_without_torch(PipelineConfig({settings}))
from transformers import AutoConfig, AutoTokenizer
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
config = AutoConfig.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
print(config.model_type, len(tokenizer) == config.vocab_size, "torch" in sys.modules)
import torch
print(torch.ones(2).sum().item())
"""


def run(model: Path, settings: str = "", before: str = "") -> str:
    code = SCRIPT.format(settings=settings, before=before)
    environment = dict(os.environ)  # MAX changes it behind Python's back
    done = subprocess.run(
        [sys.executable, "-c", code, model], capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_configuration_tokenizer_and_images_need_no_torch_and_torch_stays_importable() -> None:
    assert run(DEMO_FOLDER) == "gemma3_text True False\n2.0\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "before"),
    [("trust_remote_code=True", ""), ("custom_architectures=('json',)", ""), ("", "import torch")],
)
def test_code_of_others_finds_transformers_with_torch(settings: str, before: str) -> None:
    assert run(DEMO_FOLDER, settings, before) == "gemma3_text True True\n2.0\n"
