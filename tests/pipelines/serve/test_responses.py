"""The Responses API over HTTP: every field of its answers, and its events."""

from __future__ import annotations

from typing import Any

import httpx
from fake_model import assert_idle
from responses_api import BODY, PATH, PROMPT, ask, greedy, refused, text
from serving import MODEL, ChatTokenizer, LiveServer, chat_pipeline, model_of, serving
from turns import leave_early, stream_named

HEAD: dict[str, Any] = {
    "object": "response",
    "model": MODEL,
    "error": None,
    "instructions": None,
    "max_output_tokens": 12,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "reasoning": {"effort": None, "summary": None},
    "temperature": 0.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "user": None,
    "safety_identifier": None,
    "prompt_cache_key": None,
    "service_tier": "default",
    "truncation": "disabled",
    "background": False,
    "store": False,
    "previous_response_id": None,
}
USAGE = {
    "input_tokens": len(PROMPT),
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 12,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": len(PROMPT) + 12,
}


def without_ids(response: Any) -> Any:
    """A response without what differs between two equal ones; checks these fields."""
    assert response.pop("id").startswith("resp_") and isinstance(response.pop("created_at"), int)
    completed_at = response.pop("completed_at")
    assert isinstance(completed_at, int) if response["status"] == "completed" else completed_at is None
    for item in response["output"]:
        assert item.pop("id").startswith("msg_")
    return response


def test_a_response_has_every_key_that_clients_need(client: httpx.Client) -> None:
    part = {"type": "output_text", "text": greedy(), "annotations": [], "logprobs": []}
    assert without_ids(ask(client)) == {
        **HEAD,
        "status": "incomplete",
        "incomplete_details": {"reason": "max_output_tokens"},
        "output": [{"type": "message", "status": "incomplete", "role": "assistant", "content": [part]}],
        "usage": USAGE,
    }


def test_an_answer_that_ends_by_itself_is_completed(client: httpx.Client) -> None:
    stop = greedy()[5:7]
    response = ask(client, stop=stop)
    assert response["status"] == response["output"][0]["status"] == "completed"
    assert response["incomplete_details"] is None and text(response) == greedy()[: greedy().index(stop)]
    empty = ask(client, ignore_eos=False, logit_bias={"0": 100})
    assert empty["status"] == "completed" and [len(item["content"]) for item in empty["output"]] == [1]
    assert text(empty) == ""


def test_a_stream_has_its_events_in_order_and_every_key_of_each(client: httpx.Client) -> None:
    events = stream_named(client, PATH, **BODY)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    created, in_progress, added, part_added, *deltas, done, part_done, item_done, end = events
    item_id, whole = item_done["item"]["id"], greedy()
    message = {"id": item_id, "type": "message", "role": "assistant"}
    part = {"type": "output_text", "annotations": [], "logprobs": []}
    place = {"output_index": 0, "item_id": item_id, "content_index": 0}
    begun = {**HEAD, "status": "in_progress", "incomplete_details": None, "output": [], "usage": None}
    for number, (event, name) in enumerate(((created, "created"), (in_progress, "in_progress"))):
        response = event.pop("response")
        assert event == {"type": f"response.{name}", "sequence_number": number}
        assert without_ids(response) == begun

    def named(name: str, event: Any, **fields: Any) -> bool:
        return bool(event == {"type": name, "sequence_number": event["sequence_number"], **fields})

    new_item = {**message, "status": "in_progress", "content": []}
    assert named("response.output_item.added", added, output_index=0, item=new_item)
    assert named("response.content_part.added", part_added, **place, part={**part, "text": ""})
    for delta in deltas:
        assert named("response.output_text.delta", delta, **place, delta=delta["delta"], logprobs=[])
    assert "".join(delta["delta"] for delta in deltas) == whole and len(deltas) > 1
    assert named("response.output_text.done", done, **place, text=whole, logprobs=[])
    assert named("response.content_part.done", part_done, **place, part={**part, "text": whole})
    item = {**message, "status": "incomplete", "content": [{**part, "text": whole}]}
    assert named("response.output_item.done", item_done, output_index=0, item=item)
    assert end["type"] == "response.incomplete" and end["response"]["output"] == [item]
    assert without_ids(end["response"]) == without_ids(ask(client))


def test_a_completed_stream_ends_so(client: httpx.Client) -> None:
    end = stream_named(client, PATH, **BODY, stop=greedy()[5:7])[-1]
    assert end["type"] == "response.completed" and end["response"]["status"] == "completed"
    assert isinstance(end["response"]["completed_at"], int) and end["response"]["usage"]["output_tokens"] > 0


def test_log_probabilities_are_those_of_the_chat(client: httpx.Client) -> None:
    chat = {"messages": [{"role": "user", "content": "HELL1"}], "max_tokens": 12, "ignore_eos": True}
    answer = client.post("/v1/chat/completions", json={**chat, "logprobs": True, "top_logprobs": 2}).json()
    expected = answer["choices"][0]["logprobs"]["content"]
    response = ask(client, include=["message.output_text.logprobs"], top_logprobs=2)
    assert response["output"][0]["content"][0]["logprobs"] == expected and response["top_logprobs"] == 2
    events = stream_named(client, PATH, **BODY, top_logprobs=2)
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [entry for event in deltas for entry in event["logprobs"]] == expected
    (done,) = [event for event in events if event["type"] == "response.output_text.done"]
    assert done["logprobs"] == expected
    (only,) = ask(client, include=["message.output_text.logprobs"], max_output_tokens=1)["output"]
    assert only["content"][0]["logprobs"][0]["top_logprobs"] == []


def test_half_a_character_has_no_bytes(client: httpx.Client) -> None:
    response = ask(client, top_logprobs=20, logit_bias={"63": 100}, max_output_tokens=1)
    (entry,) = response["output"][0]["content"][0]["logprobs"]
    assert entry["bytes"] == [] and any(top["bytes"] for top in entry["top_logprobs"])


def test_fields_of_the_request_are_repeated(client: httpx.Client) -> None:
    given = {
        "instructions": "AB",
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "max_tool_calls": 3,
        "temperature": 0.5,
        "top_p": 0.75,
        "user": "someone",
        "safety_identifier": "id",
        "prompt_cache_key": "key",
    }
    response = ask(client, **given, reasoning={"effort": "low", "summary": "auto"}, store=True, service_tier="flex")
    assert response.items() >= given.items()
    assert response["reasoning"] == {"effort": "low", "summary": None} and response["store"] is False


def test_the_cached_prefix_is_told() -> None:
    with serving(chat_pipeline(enable_prefix_caching=True)) as server, server.client() as client:
        usages = [ask(client, input="ABCDEFGH" * 40)["usage"] for _ in range(2)]
    assert [usage["input_tokens_details"]["cached_tokens"] for usage in usages] == [0, 256]
    assert usages[0]["input_tokens"] == usages[1]["input_tokens"]


def test_a_row_that_fails_fails_its_response_alone(server: LiveServer, client: httpx.Client) -> None:
    first = ChatTokenizer().encode(greedy())[2]
    model_of(server).nan_after = first
    try:
        error = refused(client, 500)
        assert (error["type"], error["code"]) == ("server_error", "engine_error")
        *events, failure, end = stream_named(client, PATH, **BODY)
    finally:
        model_of(server).nan_after = None
    assert [event["sequence_number"] for event in (*events, failure, end)] == list(range(len(events) + 2))
    assert failure["type"] == "error" and failure["error"] == error
    assert {name: failure[name] for name in ("code", "message", "param")} == {
        name: error[name] for name in ("code", "message", "param")
    }
    assert end["type"] == "response.failed" and end["response"]["status"] == "failed"
    assert end["response"]["error"] == {"code": "server_error", "message": error["message"]}
    assert end["response"]["id"] == events[0]["response"]["id"]
    (item,) = end["response"]["output"]
    assert item["status"] == "incomplete" and item["content"][0]["text"] == greedy()[:3]
    assert text(ask(client)) == greedy()


def test_a_client_that_leaves_leaves_nothing_behind() -> None:
    with serving() as server:
        leave_early(server, PATH, input="HELL1", max_output_tokens=900, ignore_eos=True)
    assert_idle(server.pipe)
