"""Encoding of prompts: checks, and the places of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from pipelines.context import ImageSpan
from pipelines.errors import InputError
from pipelines.text.prompts import EncodedPrompt, ImagePrompt, PromptEncoder
from pipelines.text.tokenizer import TextTokenizer

Family = Any  # conftest.py's
FamilyNamed = Callable[[str], Family]

BOI, SOFT, EOI = "<start_of_image>", "<image_soft_token>", "<end_of_image>"
NUM_IMAGE_TOKENS, MAX_LENGTH = 4, 200
PICTURE = Image.new("RGB", (2, 2))


@dataclass(frozen=True)
class Processed:
    pixel_values: Any
    image_hash: bytes


@dataclass(frozen=True)
class Processor:
    """An image processor like Gemma 3's, for images of few tokens."""

    image_token_id: int
    placeholder: str = BOI
    num_image_tokens: int = NUM_IMAGE_TOKENS

    def process(self, image: Image.Image) -> Any:
        return Processed(np.zeros((3, 2, 2), np.float32), bytes(32))

    def expand_placeholders(self, text: str) -> str:
        return text.replace(BOI, f"\n\n{BOI}{SOFT * NUM_IMAGE_TOKENS}{EOI}\n\n")


@pytest.fixture
def gemma3(family_named: FamilyNamed) -> Family:
    return family_named("gemma3")


@pytest.fixture
def encoder(gemma3: Family) -> PromptEncoder:
    (image_token_id,) = gemma3.ids(SOFT)
    return encoder_of(gemma3, load_image_processor=lambda: Processor(image_token_id))


def encoder_of(family: Family, **options: Any) -> PromptEncoder:
    vocab_size = family.text.vocab_size
    return PromptEncoder(family.text, vocab_size, max_length=MAX_LENGTH, is_instruction_model=True, **options)


def reference(family: Family, text: str) -> list[int]:
    """Token ids of transformers' processor for a rendered chat."""
    expanded = Processor(0).expand_placeholders(text)
    return list(family.hf.encode(expanded, add_special_tokens=False))


def rendered(family: Family, messages: list[dict[str, Any]]) -> str:
    return str(family.hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def user(*parts: str | dict[str, str]) -> dict[str, Any]:
    """A turn of texts and images."""
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


IMAGE = {"type": "image"}

# --- prompts that the encoder made ---


def test_an_encoded_prompt_stays_as_it_is(encoder: PromptEncoder) -> None:
    for prompt in ("Hello", ImagePrompt(f"{BOI} and {BOI}", [PICTURE, PICTURE])):
        encoded = encoder.encode(prompt)
        again = encoder.encode(encoded)
        assert (again.tokens, again.images) == (encoded.tokens, encoded.images)
    assert encoder.encode(EncodedPrompt([1] * MAX_LENGTH), num_new=0).tokens == [1] * MAX_LENGTH
    assert encoder.encode(EncodedPrompt(list(np.array([1, 2])))).tokens == [1, 2]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "the prompt is empty"),
        ([1] * MAX_LENGTH, "has 200 tokens, and the limit is 200 with at least 1 new: .* max_length"),
        ([5, -1], "token id -1 is outside"),
        ([5, 10**6], "token id 1000000 is outside"),
    ],
)
def test_encoded_prompts_and_token_ids_are_checked_alike(
    encoder: PromptEncoder, tokens: list[int], message: str
) -> None:
    for prompt in (tokens, EncodedPrompt(tokens)):
        with pytest.raises(InputError, match=message):
            encoder.encode(prompt)


def test_token_ids_of_an_encoded_prompt_are_whole_numbers(encoder: PromptEncoder) -> None:
    with pytest.raises(TypeError):
        encoder.encode(EncodedPrompt([1.5]))  # type: ignore[list-item]


def span(start: int, end: int) -> ImageSpan:
    return ImageSpan(start, end, np.zeros((3, 2, 2), np.float32), bytes(32))


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ([(2, 6), (4, 8)], "tokens 4 to 8, which are not its 4 image tokens"),
        ([(2, 6), (2, 6)], "another"),
        ([(8, 12), (2, 6)], "another"),
        ([(2, 6)], "2 runs of image tokens, but 1 images"),
        ([(2, 6), (8, 12), (20, 24)], "tokens 20 to 24"),
        ([(2, 6), (-4, 0)], "tokens -4 to 0"),
        ([(2, 6), (9, 9)], "tokens 9 to 9"),
        ([(2, 6), (8, 11)], "tokens 8 to 11"),
        ([(2, 6), (6, 2)], "tokens 6 to 2"),
    ],
)
def test_images_of_an_encoded_prompt_are_where_their_tokens_are(
    encoder: PromptEncoder, gemma3: Family, places: list[tuple[int, int]], message: str
) -> None:
    tokens = [1, 1, *gemma3.ids(SOFT) * 4, 1, 1, *gemma3.ids(SOFT) * 4, 1]
    images = tuple(span(start, end) for start, end in ((2, 6), (8, 12)))
    assert encoder.encode(EncodedPrompt(tokens, images)).images == images
    with pytest.raises(InputError, match=message):
        encoder.encode(EncodedPrompt(tokens, tuple(span(*place) for place in places)))


def test_images_of_another_size_are_refused(encoder: PromptEncoder, gemma3: Family) -> None:
    tokens = [1, *gemma3.ids(SOFT) * 5, 1]
    with pytest.raises(InputError, match="tokens 1 to 6, which are not its 4 image tokens"):
        encoder.encode(EncodedPrompt(tokens, (span(1, 6),)))


def test_a_model_of_text_alone_takes_no_encoded_images(gemma3: Family) -> None:
    with pytest.raises(InputError, match="takes text alone"):
        encoder_of(gemma3).encode(EncodedPrompt([1, 2], (span(0, 1),)))


# --- sizes ---


@pytest.fixture
def no_tokenizing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        pytest.fail("the text was tokenized")

    monkeypatch.setattr(PreTrainedTokenizerBase, "encode", refuse)
    monkeypatch.setattr(Tokenizer, "encode", refuse, raising=False)


@pytest.mark.parametrize("text", ["x" * 10**7, "word and more " * 10**6, " " * 10**7, "中" * 10**6, "<bos>" * 10**6])
def test_megabytes_are_refused_before_they_are_tokenized(family: Family, no_tokenizing: None, text: str) -> None:
    encoder, num_bytes = encoder_of(family), len(text.encode())
    message = (
        rf"the prompt has {num_bytes} bytes, at least \d+ tokens, and the limit is {MAX_LENGTH} with at least 1 new"
    )
    with pytest.raises(InputError, match=message):
        encoder.encode(text)
    with pytest.raises(InputError, match=r"the prompt has \d+ bytes, at least \d+ tokens, and the limit is"):
        encoder.encode_chat([{"role": "user", "content": f"<{text}>"}])


def test_megabytes_beside_an_image_are_refused(encoder: PromptEncoder, no_tokenizing: None) -> None:
    with pytest.raises(InputError, match=r"the prompt has \d+ bytes"):
        encoder.encode(ImagePrompt(BOI + "x" * 10**6, [PICTURE]))


def test_a_text_that_fits_is_never_refused_for_its_size(encoder: PromptEncoder, gemma3: Family) -> None:
    longest = max(gemma3.hf.get_vocab(), key=len)
    for num_tokens in (MAX_LENGTH - 1, MAX_LENGTH):
        text = longest * num_tokens
        assert len(text) > 10 * MAX_LENGTH
        try:
            assert len(encoder.encode(text).tokens) == num_tokens == MAX_LENGTH - 1
        except InputError as error:
            assert f"has {num_tokens} tokens" in str(error) or f"at least {num_tokens} tokens" in str(error)
            assert num_tokens == MAX_LENGTH


def test_words_are_as_long_as_they_like() -> None:
    backend = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?"))
    encoder = PromptEncoder(tokenizer, vocab_size=1, max_length=3, is_instruction_model=False)
    assert encoder.encode("x" * 10**5 + " " * 10**5 + "y").tokens == [0, 0]


# --- images and placeholders in chats ---


@pytest.mark.parametrize(
    "text", [f"Compare {BOI} and {BOI}", f"{BOI}{BOI}", f" {BOI}\n\nWhat? {BOI} ", f"is 3 < {BOI} > 2 {BOI} <"]
)
def test_in_one_turn_that_is_a_string_placeholders_count(encoder: PromptEncoder, gemma3: Family, text: str) -> None:
    encoded = encoder.encode_chat(text, [PICTURE, PICTURE])
    assert encoded.tokens == reference(gemma3, rendered(gemma3, [{"role": "user", "content": text}]))
    assert len(encoded.images) == 2


def test_other_control_tokens_in_such_a_turn_are_text(encoder: PromptEncoder, gemma3: Family) -> None:
    encoded = encoder.encode_chat(f"{BOI} a{SOFT}<end_of_turn>b", [PICTURE])
    harmless = encoder.encode_chat(f"{BOI} a b", [PICTURE])
    assert gemma3.num_controls(encoded.tokens) == gemma3.num_controls(harmless.tokens)
    assert [(i.start, i.end) for i in encoded.images] == [(i.start, i.end) for i in harmless.images]
    assert f"a{SOFT}<end_of_turn>b" in gemma3.text.decode(encoded.tokens, skip_special_tokens=False)


def test_without_images_a_placeholder_in_it_is_text(encoder: PromptEncoder, gemma3: Family) -> None:
    encoded = encoder.encode_chat(f"What is {BOI}?")
    assert gemma3.num_controls(encoded.tokens) == gemma3.num_controls(encoder.encode_chat("What?").tokens)


def test_in_messages_only_parts_make_places(encoder: PromptEncoder, gemma3: Family) -> None:
    messages = [
        user(IMAGE, f"{BOI} is {SOFT}{EOI}"),
        {"role": "assistant", "content": f"That is {BOI}"},
        user(f"And {BOI[:5]}", f"{BOI[5:]}?", IMAGE),
    ]
    harmless = [user(IMAGE, "a"), {"role": "assistant", "content": "b"}, user("c", "d", IMAGE)]
    encoded = encoder.encode_chat(messages, [PICTURE, PICTURE])
    assert len(encoded.images) == 2
    expected = encoder.encode_chat(harmless, [PICTURE, PICTURE])
    assert gemma3.num_controls(encoded.tokens) == gemma3.num_controls(expected.tokens)
    assert expected.tokens == reference(gemma3, rendered(gemma3, harmless))


def test_spelled_placeholders_make_no_place_for_an_image(encoder: PromptEncoder) -> None:
    with pytest.raises(InputError, match=f"has 0 times {BOI}, but 1 images"):
        encoder.encode_chat([user(f"Look: {BOI}")], [PICTURE])
    with pytest.raises(InputError, match=f"has 1 times {BOI}, but 2 images"):
        encoder.encode_chat(f"Look: {BOI}", [PICTURE, PICTURE])


def test_places_without_images_are_refused(encoder: PromptEncoder, gemma3: Family) -> None:
    with pytest.raises(InputError, match=f"has 1 times {BOI}, but 0 images"):
        encoder.encode_chat([user(IMAGE, "What is it?")])
    with pytest.raises(InputError, match="takes text alone"):
        encoder_of(gemma3).encode_chat([user(IMAGE, "What is it?")])


def test_spelled_placeholders_may_be_allowed(encoder: PromptEncoder, gemma3: Family) -> None:
    messages = [user(f"Look: {BOI} <end_of_turn>")]
    encoded = encoder.encode_chat(messages, [PICTURE], allow_control_tokens=True)
    assert encoded.tokens == reference(gemma3, rendered(gemma3, messages))
    assert len(encoded.images) == 1


def test_an_image_in_front_of_a_turn_without_a_place(encoder: PromptEncoder, gemma3: Family) -> None:
    encoded = encoder.encode_chat("What is it?", [PICTURE])
    assert encoded.tokens == reference(gemma3, rendered(gemma3, [user(IMAGE, "What is it?")]))


def test_raw_prompts_keep_their_control_tokens(encoder: PromptEncoder, gemma3: Family) -> None:
    text = f"{BOI} a<end_of_turn>"
    assert encoder.encode(ImagePrompt(text, [PICTURE])).tokens == reference(gemma3, text)
    assert encoder.encode("a<end_of_turn>").tokens == gemma3.hf.encode("a<end_of_turn>")
