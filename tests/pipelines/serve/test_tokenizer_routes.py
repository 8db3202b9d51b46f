"""The tokenizer's routes with a real one, as lm-evaluation-harness asks them; others are in test_completions.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import jinja2
import pytest
from fake_model import new_pipeline
from serving import LiveServer, chat_pipeline, serving

from pipelines.loading.checkpoint import DEMO_FOLDER
from pipelines.text.prompts import PromptEncoder
from pipelines.text.tokenizer import TextTokenizer
from pipelines.text_generation import TextGenerationPipeline

MESSAGES = [{"role": "user", "content": "import os"}]


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    pipe = new_pipeline()
    tokenizer = TextTokenizer.from_pretrained(DEMO_FOLDER)
    prompts = PromptEncoder(tokenizer, tokenizer.vocab_size, 1000, is_instruction_model=True)
    served = TextGenerationPipeline(pipe.config, pipe.model, pipe.cache, prompts)
    with serving(served) as server, server.client() as client:
        yield client


def tokenize(client: httpx.Client, **body: Any) -> Any:
    response = client.post("/tokenize", json=body)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert set(answer) == {"count", "max_model_len", "tokens", "token_strs"}
    assert answer["count"] == len(answer["tokens"]) and answer["max_model_len"] == 1000
    return answer


def test_the_tokenizer_is_described(client: httpx.Client) -> None:
    tokens = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    assert client.get("/tokenizer_info").json() == {
        "tokenizer_class": "TokenizersBackend",
        "model_max_length": 1000,
        "chat_template": (DEMO_FOLDER / "chat_template.jinja").read_text(),
        **tokens,
    }


def test_a_special_token_is_found_by_its_text(client: httpx.Client) -> None:
    info = client.get("/tokenizer_info").json()
    tokenizer = TextTokenizer.from_pretrained(DEMO_FOLDER)
    (end,) = tokenize(client, prompt=info["eos_token"], add_special_tokens=False)["tokens"]
    assert (end,) == tokenizer.eos_token_ids
    assert client.post("/detokenize", json={"tokens": [end]}).json() == {"prompt": info["eos_token"]}


def test_text_has_special_tokens_around_it_unless_it_is_asked_for_without(client: httpx.Client) -> None:
    plain = tokenize(client, prompt="import os", add_special_tokens=False, return_token_strs=True)
    assert plain["token_strs"] and "".join(plain["token_strs"]).strip() == "import os"
    assert client.post("/detokenize", json={"tokens": plain["tokens"]}).json() == {"prompt": "import os"}
    assert tokenize(client, prompt="import os")["tokens"] != plain["tokens"]


@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_a_chat_that_the_client_renders_has_the_tokens_of_the_servers(
    client: httpx.Client, add_generation_prompt: bool
) -> None:
    info = client.get("/tokenizer_info").json()
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(info["chat_template"])
    text = template.render(**info | {"messages": MESSAGES, "add_generation_prompt": add_generation_prompt})
    ours = tokenize(client, messages=MESSAGES, add_generation_prompt=add_generation_prompt)["tokens"]
    assert tokenize(client, prompt=text, add_special_tokens=False)["tokens"] == ours


def test_a_tokenizer_without_tokens_that_begin_or_end_a_text_says_so() -> None:
    with serving() as server, server.client() as client:
        info = client.get("/tokenizer_info").json()
        assert {info[name] for name in ("bos_token", "eos_token", "pad_token", "chat_template")} == {None}


def test_while_the_model_is_loaded_it_is_not_known() -> None:
    server = LiveServer(chat_pipeline())
    with server.client() as client:
        assert client.get("/tokenizer_info").status_code == 503
    server.may_load.set()
    server.begin_shutdown()
    server.wait()
