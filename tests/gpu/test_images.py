"""Text with images equals transformers on the same device, across the window, in batches, and from the cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gpu_models import WINDOW
from gpu_runs import Run, token_errors
from PIL import Image
from reference import random_tokens
from transformers import AutoProcessor

from pipelines import ImagePrompt, SamplingParams

RUN = Run("gemma3_multimodal", "bfloat16")
BOI = "<start_of_image>"
NUM_LAYERS = 4 + 3  # of the decoder and of the tower, whose roundings reach the tokens of an image


def picture(width: int, height: int) -> Image.Image:
    values = np.random.default_rng([width, height]).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def words(count: int) -> str:
    return " ".join(f"w{token}" for token in random_tokens(count, 900))


WIDE, TALL = picture(90, 40), picture(31, 200)
PROMPTS: dict[str, tuple[str, list[Image.Image]]] = {
    "text alone": (words(WINDOW + 44), []),
    "an image first": (f"{BOI} {words(20)}", [WIDE]),
    "two of different aspect": (f"{words(9)} {BOI} {words(3)} {BOI} {words(30)}", [WIDE, TALL]),
    "across the window": (f"{words(200)} {BOI} {words(60)} {BOI} {words(WINDOW)} {BOI} {words(5)}", [TALL, WIDE, TALL]),
}


@pytest.fixture(scope="module")
def exact(folders: Callable[[str], Path], reference: Any) -> Callable[[str], Any]:
    """Name of a prompt -> its logits in transformers, float64."""
    processor = AutoProcessor.from_pretrained(folders(RUN.name))
    model = reference(RUN.name, torch.float64).model

    @torch.inference_mode()
    def logits(name: str) -> Any:
        text, images = PROMPTS[name]
        inputs = processor(text=text, images=images or None, return_tensors="pt").to(model.device)
        if images:
            inputs["pixel_values"] = inputs["pixel_values"].to(torch.float64)
        return model(**inputs).logits[0].double().cpu().numpy()

    return logits


def assert_near(ours: Any, exact: Any, name: str) -> None:
    errors, bound = token_errors(ours, exact), RUN.bound(NUM_LAYERS)
    assert errors.max() <= bound, f"{name}: {errors.max():.2e} at token {errors.argmax()}, bound {bound:.2e}"


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("chunk", [16, 1024])
def test_logits_equal_transformers(name: str, chunk: int, load_run: Any, exact: Any) -> None:
    (ours,) = load_run(RUN, max_batch_tokens=chunk, max_batch_size=1).logits([ImagePrompt(*PROMPTS[name])])
    assert_near(ours, exact(name), name)


def test_a_batch_of_images_and_text(load_run: Any, exact: Any) -> None:
    pipe = load_run(RUN, max_batch_tokens=40, max_batch_size=len(PROMPTS))
    ours = pipe.logits([ImagePrompt(*prompt) for prompt in PROMPTS.values()])
    for name, logits in zip(PROMPTS, ours, strict=True):
        assert_near(logits, exact(name), name)


def test_images_from_the_cache_continue_alike(load_run: Any) -> None:
    """The second time pages and features are there; the steps are cut differently, so near ties may differ."""
    pipe = load_run(RUN, enable_prefix_caching=True, max_batch_size=2)
    params = SamplingParams(max_new_tokens=8, ignore_eos=True, logprobs=0)
    prompt = ImagePrompt(*PROMPTS["across the window"])
    first, again = (pipe.generate([prompt], params)[0] for _ in range(2))
    assert first.logprobs is not None and again.logprobs is not None
    likelihoods = [output.logprobs[0].logprob for output in (first, again)]
    assert likelihoods[0] == pytest.approx(likelihoods[1], abs=12 * RUN.bound(NUM_LAYERS))
    assert pipe.engine.scheduler.num_prefix_hit_tokens > 0


def test_two_graphs_share_one_copy_of_the_weights(load_run: Any) -> None:
    """Of the decoder's two graphs, that for images has no weight of its own."""
    pipe = load_run(RUN, max_batch_size=1)
    pipe.warm_up()
    model = pipe.model
    traced = model.trace(pipe.config, model.huggingface_config, model.state_dict)
    graphs = {name: {spec.name for spec in graph.weights} for name, graph in traced.items()}
    assert graphs["decoder_for_images"] <= graphs["decoder"]
    assert pipe.model.weights.keys() == set().union(*graphs.values())
