"""Drives a PipelineModel by hand: its inputs, one prefill step, then one token at a time.

python examples/drive_model.py [MODEL]
"""

from __future__ import annotations

import sys

from pipelines import PipelineConfig, load_pipeline
from pipelines.context import TextContext

NUM_NEW = 20


def main(model: str | None = None) -> None:
    """Completes a prompt with a model, without engine and sampler."""
    with load_pipeline(PipelineConfig(model=model)) as pipe:
        context = TextContext("by hand", pipe.tokenizer.encode("def read_lines(path):"))
        context.num_scheduled_tokens = len(context.tokens)

        # Pages for the prompt and all that follows, so that the tables stay as they are.
        context.pages = pipe.cache.open()
        assert pipe.cache.allocate(context.pages, len(context.tokens) + NUM_NEW)
        pages = pipe.cache.runtime_inputs([context.pages], [context.num_scheduled_tokens])

        inputs = pipe.model.prepare_initial_token_inputs([[context]], pages)
        outputs = pipe.model.execute(inputs)
        tokens = [int(outputs.greedy_tokens.to_numpy()[0])]
        for _ in range(NUM_NEW - 1):
            inputs = pipe.model.prepare_next_token_inputs(outputs.greedy_tokens, inputs)
            outputs = pipe.model.execute(inputs)
            tokens.append(int(outputs.greedy_tokens.to_numpy()[0]))

        pipe.cache.release(context.pages)
        print(pipe.tokenizer.decode(context.tokens + tokens))


if __name__ == "__main__":
    main(*sys.argv[1:2])
