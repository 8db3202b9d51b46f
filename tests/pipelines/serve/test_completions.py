"""Text completions, with echo and log probabilities as lm-evaluation-harness reads them, and the token routes."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import httpx
import numpy as np
import pytest
from fake_model import HALF, fingerprints, greedy_text, logits_of, text_of
from serving import MODEL, ChatTokenizer, stream

PATH = "/v1/completions"
BODY: dict[str, Any] = {"model": MODEL, "prompt": "HELL1", "max_tokens": 8, "ignore_eos": True}


def tokens_of(text: str) -> list[int]:
    return ChatTokenizer().encode(text)


def greedy(prompt: str, num_new: int = 8) -> str:
    return text_of(greedy_text(tokens_of(prompt), num_new, True))


def ask(client: httpx.Client, **body: Any) -> Any:
    response = client.post(PATH, json={**BODY, **body})
    assert response.status_code == 200, response.text
    return response.json()


def refused(client: httpx.Client, **body: Any) -> Any:
    response = client.post(PATH, json={**BODY, **body})
    assert response.status_code == 400, response.text
    return response.json()["error"]


def log_softmax(tokens: list[int]) -> Any:
    """[T, V], of each position's next token."""
    logits = logits_of(fingerprints(tokens)).astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def test_an_answer_has_every_key_that_clients_need(client: httpx.Client) -> None:
    answer = ask(client)
    assert answer.pop("id").startswith("cmpl-") and isinstance(answer.pop("created"), int)
    choice = {"index": 0, "text": greedy("HELL1"), "logprobs": None, "finish_reason": "length", "stop_reason": None}
    assert (answer["object"], answer["model"], answer["choices"]) == ("text_completion", MODEL, [choice])
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (5, 8)


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("ABC", ["ABC"]),
        (["ABC", "DE"], ["ABC", "DE"]),
        (tokens_of("ABC"), ["ABC"]),
        ([tokens_of("ABC"), tokens_of("DE")], ["ABC", "DE"]),
        (["ABC", tokens_of("DE")], ["ABC", "DE"]),
    ],
)
def test_prompts_come_as_text_and_as_token_ids(client: httpx.Client, prompt: Any, texts: list[str]) -> None:
    answer = ask(client, prompt=prompt)
    assert [choice["text"] for choice in answer["choices"]] == [greedy(text) for text in texts]
    assert answer["usage"]["prompt_tokens"] == sum(map(len, texts))
    events = stream(client, PATH, **{**BODY, "prompt": prompt}, stream_options={"include_usage": True})
    streamed = [""] * len(texts)
    for chunk in events[:-1]:
        for choice in chunk["choices"]:
            streamed[choice["index"]] += choice["text"]
    assert streamed == [greedy(text) for text in texts]
    assert events[-1]["choices"] == [] and events[-1]["usage"] == answer["usage"]


def test_choices_are_numbered_prompt_by_prompt(client: httpx.Client) -> None:
    answer = ask(client, prompt=["ABC", "DE"], n=2)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in answer["choices"]] == [greedy("ABC")] * 2 + [greedy("DE")] * 2
    assert answer["usage"]["prompt_tokens"] == 5


def test_a_prompt_is_echoed_with_its_log_probabilities(client: httpx.Client) -> None:
    prompts = [tokens_of("HELL1"), tokens_of("GAMMA3")]
    body = {"prompt": prompts, "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True, "seed": 1234}
    choices = ask(client, **body)["choices"]
    for prompt, choice in zip(prompts, choices, strict=True):
        new = greedy_text(prompt, 1, True)
        tokens, expected = prompt + new, log_softmax(prompt)
        logprobs = choice["logprobs"]
        assert choice["text"] == text_of(tokens)
        assert {len(entries) for entries in logprobs.values()} == {len(prompt) + 1}
        assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
        for i, token in enumerate(tokens[1:]):
            assert logprobs["token_logprobs"][i + 1] == pytest.approx(expected[i, token], abs=1e-5)
            top = logprobs["top_logprobs"][i + 1]
            assert top[logprobs["tokens"][i + 1]] == logprobs["token_logprobs"][i + 1]
            is_greedy = logprobs["token_logprobs"][i + 1] == max(top.values())
            assert is_greedy == (expected[i].argmax() == token)
        pieces = [text_of([token]) for token in tokens]
        assert logprobs["text_offset"] == [0, *accumulate(map(len, pieces[:-1]))]


def test_a_streamed_echo_adds_up_to_the_whole(client: httpx.Client) -> None:
    body = {"prompt": ["HELL1", "GAMMA3"], "echo": True, "logprobs": 2}
    whole = ask(client, **body)["choices"]
    parts: list[list[Any]] = [[], []]
    for chunk in stream(client, PATH, **{**BODY, **body}):
        for choice in chunk["choices"]:
            parts[choice["index"]].append(choice)
    for choice, own in zip(whole, parts, strict=True):
        assert "".join(part["text"] for part in own) == choice["text"]
        for name, entries in choice["logprobs"].items():
            assert [entry for part in own for entry in part["logprobs"][name]] == entries


def test_no_tokens_may_be_asked_for(client: httpx.Client) -> None:
    answer = ask(client, max_tokens=0, echo=True, logprobs=0)
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("HELL1", "length")
    assert len(choice["logprobs"]["tokens"]) == 5 and answer["usage"]["completion_tokens"] == 0
    assert all(len(top) == 1 for top in choice["logprobs"]["top_logprobs"][1:])


def test_tokens_that_share_a_text_keep_their_own_log_probabilities(client: httpx.Client) -> None:
    """Halves of characters: their text is the same, or none."""
    answer = ask(client, max_tokens=1, logprobs=20, logit_bias={str(HALF): 100})
    logprobs = answer["choices"][0]["logprobs"]
    assert logprobs["tokens"] == [f"token_id:{HALF}"] and len(logprobs["top_logprobs"][0]) in (20, 21)
    assert logprobs["top_logprobs"][0][f"token_id:{HALF}"] == logprobs["token_logprobs"][0]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, None),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [[1], [10_000]]}, "prompt"),
        ({"prompt": [-1]}, None),
        ({"prompt": ["A"] * 2000}, "prompt"),
        ({"prompt": ["A"] * 20, "n": 100}, "prompt"),
        ({"suffix": "end"}, "suffix"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
    ],
)
def test_what_cant_be_served_is_a_400(client: httpx.Client, body: dict[str, Any], param: str | None) -> None:
    assert refused(client, **body)["param"] == param


def test_null_is_as_good_as_absent(client: httpx.Client) -> None:
    from pipelines.serve.completions.fields import CompletionRequest

    nulls = {name: None for name in CompletionRequest.model_fields if name not in BODY}
    assert ask(client, **nulls)["choices"] == ask(client)["choices"]
    assert ask(client, max_tokens=None)["usage"]["completion_tokens"] == 16


def test_text_becomes_tokens_and_back(client: httpx.Client) -> None:
    answer = client.post("/tokenize", json={"prompt": "HELL1", "return_token_strs": True}).json()
    tokens = tokens_of("HELL1")
    assert answer == {"count": 5, "max_model_len": 1000, "tokens": tokens, "token_strs": list("HELL1")}
    assert client.post("/detokenize", json={"tokens": tokens}).json() == {"prompt": "HELL1"}


def test_a_conversation_becomes_the_tokens_of_its_completion(client: httpx.Client) -> None:
    answer = client.post("/tokenize", json={"messages": [{"role": "user", "content": "HELL1"}]}).json()
    assert answer["tokens"] == tokens_of("UHELL1;=>") and answer["token_strs"] is None


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "A" * 2**21}),
        ("/detokenize", {"tokens": [64]}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": "A"}),
    ],
)
def test_what_has_no_tokens_is_a_400(client: httpx.Client, path: str, body: Any) -> None:
    response = client.post(path, json=body)
    assert response.status_code == 400 and response.json()["error"]["type"] == "invalid_request_error"
