"""Text with images: equal to transformers for every place an image can have in a prompt, a batch and the cache."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from command import Caller
from loader import Loader
from PIL import Image
from reference import TOLERANCE, random_tokens, relative_difference
from transformers import AutoProcessor, Gemma3ForConditionalGeneration

from pipelines import InputError, SamplingParams
from pipelines.text.prompts import EncodedPrompt, ImagePrompt

NAME = "gemma3_multimodal"
BOI = "<start_of_image>"
GREEDY = SamplingParams(max_new_tokens=30, ignore_eos=True)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng([width, height, seed]).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


WIDE, TALL, SMALL = picture(90, 40), picture(31, 200), picture(8, 8)


def words(count: int) -> str:
    return " ".join(f"w{token}" for token in random_tokens(count, 900))


class Reference:
    """The same model and its processor in transformers."""

    def __init__(self, path: Path) -> None:
        self.processor = AutoProcessor.from_pretrained(path)
        self.model = Gemma3ForConditionalGeneration.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    def inputs(self, text: str, images: list[Image.Image]) -> Any:
        return self.processor(text=text, images=images or None, return_tensors="pt")

    @torch.inference_mode()
    def logits(self, text: str, images: list[Image.Image]) -> npt.NDArray[np.float32]:
        return self.model(**self.inputs(text, images)).logits[0].float().numpy()

    @torch.inference_mode()
    def greedy(self, text: str, images: list[Image.Image], num_new: int) -> list[int]:
        inputs = self.inputs(text, images)
        output = self.model.generate(**inputs, max_new_tokens=num_new, min_new_tokens=num_new, do_sample=False)
        return output[0, inputs.input_ids.shape[1] :].tolist()


@pytest.fixture(scope="module")
def reference(checkpoints: Mapping[str, Path]) -> Reference:
    return Reference(checkpoints[NAME])


PROMPTS: dict[str, tuple[str, list[Image.Image]]] = {
    "text alone": (words(300), []),
    "an image first": (f"{BOI} {words(20)}", [WIDE]),
    "an image last": (f"{words(20)} {BOI}", [WIDE]),
    "two of different aspect": (f"{words(9)} {BOI} {words(3)} {BOI} {words(30)}", [WIDE, TALL]),
    "one after the other": (f"{BOI}{BOI}{BOI} {words(4)}", [SMALL, WIDE, SMALL]),
    "across the window": (f"{words(100)} {BOI} {words(20)} {BOI} {words(200)} {BOI} {words(5)}", [TALL, WIDE, SMALL]),
    "across a page": (f"{words(118)} {BOI} {words(118)}", [TALL]),
}


@pytest.mark.parametrize("chunk", [16, 100, 1024])
@pytest.mark.parametrize("name", PROMPTS)
def test_logits_equal_transformers(name: str, chunk: int, load: Loader, reference: Reference) -> None:
    text, images = PROMPTS[name]
    pipe = load(NAME, max_batch_tokens=chunk, max_batch_size=1)
    (ours,) = pipe.logits([ImagePrompt(text, images)])
    assert relative_difference(ours, reference.logits(text, images)) <= TOLERANCE


@pytest.mark.parametrize("chunk", [40, 1024])
def test_a_batch_of_images_and_text_equals_transformers(chunk: int, load: Loader, reference: Reference) -> None:
    pipe = load(NAME, max_batch_tokens=chunk, max_batch_size=len(PROMPTS))
    ours = pipe.logits([ImagePrompt(text, images) for text, images in PROMPTS.values()])
    for name, logits in zip(PROMPTS, ours, strict=True):
        assert relative_difference(logits, reference.logits(*PROMPTS[name])) <= TOLERANCE, name


@pytest.mark.parametrize("settings", [{}, {"max_batch_tokens": 32}, {"kv_cache_memory": 3 * 2**20, "max_length": 640}])
def test_greedy_tokens_equal_transformers(settings: dict[str, int], load: Loader, reference: Reference) -> None:
    pipe = load(NAME, **settings)
    outputs = pipe.generate([ImagePrompt(text, images) for text, images in PROMPTS.values()], GREEDY)
    assert [o.tokens for o in outputs] == [reference.greedy(*prompt, 30) for prompt in PROMPTS.values()]


def test_images_in_several_turns(load: Loader, reference: Reference) -> None:
    pipe = load(NAME, enable_prefix_caching=True)
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": words(130)}]}
    messages: list[dict[str, Any]] = [turn, {"role": "assistant", "content": words(12)}, turn]
    for count, images in ((1, [WIDE]), (3, [WIDE, TALL])):
        encoded = pipe.prompts.encode_chat(messages[:count], images)
        text = reference.processor.apply_chat_template(messages[:count], add_generation_prompt=True, tokenize=False)
        inputs = reference.processor(text=text, images=images, add_special_tokens=False, return_tensors="pt")
        assert encoded.tokens == inputs.input_ids[0].tolist()
        with torch.inference_mode():
            output = reference.model.generate(**inputs, max_new_tokens=20, min_new_tokens=20, do_sample=False)
        (ours,) = pipe.generate([encoded], SamplingParams(max_new_tokens=20, ignore_eos=True))
        assert ours.tokens == output[0, len(encoded.tokens) :].tolist()


def test_pixels_are_freed_once_their_features_are_computed(load: Loader) -> None:
    pipe = load(NAME)
    prompt = pipe.prompts.encode(ImagePrompt(f"{BOI} w5", [WIDE]))
    (context,) = pipe.submit([prompt], GREEDY)
    (image,) = context.images
    assert image.pixel_values is not None
    while image.features is None:
        pipe.engine.step()
    assert image.pixel_values is None and context.finish_reason is None
    pipe.finish(context)
    assert image.features is None, "the features are those of a request that has ended"
    assert prompt.images[0].pixel_values is not None


def num_computed(pipe: Any, prompt: EncodedPrompt) -> int:
    before = pipe.engine.stats.num_prefill_tokens
    pipe.generate([prompt], SamplingParams(max_new_tokens=1))
    return int(pipe.engine.stats.num_prefill_tokens - before)


def test_prefixes_are_reused_for_the_same_image_alone(load: Loader) -> None:
    pipe = load(NAME, enable_prefix_caching=True)
    text = f"{words(50)} {BOI} {words(300)}"
    first, again, other = (pipe.prompts.encode(ImagePrompt(text, [image])) for image in (WIDE, WIDE.copy(), TALL))
    length = len(first.tokens)
    assert first.tokens == other.tokens
    assert num_computed(pipe, first) == length
    assert num_computed(pipe, again) == length - (length - 1) // 128 * 128
    assert num_computed(pipe, other) == length


@pytest.mark.parametrize("seed", range(3))
def test_a_page_that_ends_inside_an_image_is_reused(seed: int, load: Loader, reference: Reference) -> None:
    """The rest of the image sees what the cache has of it."""
    pipe = load(NAME, enable_prefix_caching=True)
    text, image = f"{words(112 + 4 * seed)} {BOI} {words(60)}", picture(40, 40, seed)
    expected = reference.greedy(text, [image], 30)
    for _ in range(2):
        assert pipe.generate([ImagePrompt(text, [image])], GREEDY)[0].tokens == expected


@pytest.mark.parametrize(
    ("text", "num_images", "message"),
    [
        (f"{BOI} w5", 2, "has 1 times <start_of_image>, but 2 images"),
        (f"{BOI} {BOI} w5", 1, "has 2 times <start_of_image>, but 1 images"),
        ("w5", 1, "has 0 times"),
        (f"<image_soft_token> {BOI} w5", 1, "image tokens of its own"),
    ],
)
def test_images_that_do_not_fit_the_prompt(text: str, num_images: int, message: str, load: Loader) -> None:
    with pytest.raises(InputError, match=message):
        load(NAME).generate([ImagePrompt(text, [SMALL] * num_images)])


def test_an_image_that_no_step_has_room_for_is_refused(load: Loader) -> None:
    with pytest.raises(InputError, match="an image has 16 tokens"):
        load(NAME, max_batch_tokens=15, max_batch_size=1).generate([ImagePrompt(BOI, [SMALL])])


def test_a_model_of_text_alone_refuses_images(load: Loader) -> None:
    with pytest.raises(InputError, match="takes text alone"):
        load("demo").generate([ImagePrompt("x", [SMALL])])


def test_the_command_reads_images(
    load: Loader,
    checkpoints: Mapping[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file and a data URI, in front of the text of each prompt, or where the prompt has them."""
    WIDE.save(tmp_path / "wide.png")
    data = base64.b64encode((tmp_path / "wide.png").read_bytes()).decode()
    images = ["--image", str(tmp_path / "wide.png"), "--image", f"data:image/png;base64,{data}"]
    prompts = ["w5 w6", f"w7 {BOI} w8 {BOI}"]
    pipe, options = load(NAME), [part for prompt in prompts for part in ("--prompt", prompt)]
    expected = pipe.generate([pipe.prompts.encode_chat(prompt, [WIDE, WIDE]) for prompt in prompts], GREEDY)
    shared = ["--model", str(checkpoints[NAME]), "--max-new-tokens", "30", "--json"]
    result = Caller(capsys, monkeypatch)("generate", *shared, *images, *options)
    assert result.code == 0
    tokens = [json.loads(line)["tokens"] for line in result.out.splitlines()]
    for ours, output in zip(tokens, expected, strict=True):
        assert ours == output.tokens[: len(ours)]
