"""Completes prompts from Python: all at once, one as it is generated, and the logits of a prompt.

python examples/generate.py [MODEL]
"""

from __future__ import annotations

import sys

from pipelines import PipelineConfig, SamplingParams, load_pipeline


def main(model: str | None = None) -> None:
    """Completes prompts with a model."""
    with load_pipeline(PipelineConfig(model=model)) as pipe:
        prompts = ["def read_lines(path):", "class Stack:\n    def push(self, item):"]
        for output in pipe.generate(prompts, SamplingParams(max_new_tokens=40, stop=("\n\n",))):
            print(f"{output.num_prompt_tokens} + {len(output.tokens)} tokens, {output.finish_reason}: {output.text!r}")

        sampled = SamplingParams(max_new_tokens=40, temperature=0.8, top_p=0.9, seed=1)
        for chunk in pipe.stream("import os\n", sampled):
            print(chunk.text, end="", flush=True)
        print()

        (logits,) = pipe.logits(["for i in range("])
        print(f"logits {logits.shape}; after the last token: {pipe.tokenizer.decode([int(logits[-1].argmax())])!r}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
