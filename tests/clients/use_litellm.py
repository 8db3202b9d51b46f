"""litellm: completion, streams, tools, text completion, the exception for an overlong prompt."""

import json
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it asks another server for prices

import litellm

litellm.suppress_debug_info = True
given = {
    "model": "openai/" + os.environ["MODEL"],
    "api_base": os.environ["URL"] + "/v1",
    "api_key": os.environ["KEY"],
    "max_tokens": 48,
}
messages = [{"role": "user", "content": "def read(path):"}]

answer = litellm.completion(messages=messages, **given)
assert answer.usage.completion_tokens > 0 and answer.choices[0].message.role == "assistant"
print("completion")

pieces = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(messages=messages, stream=True, **given)]
assert "".join(pieces) == answer.choices[0].message.content
print("stream")

schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}}, "required": ["city"]}
tool = {"type": "function", "function": {"name": "weather", "description": "Tells the weather.", "parameters": schema}}
answer = litellm.completion(messages=messages, tools=[tool], tool_choice="required", parallel_tool_calls=False, **given)
(call,) = answer.choices[0].message.tool_calls[:1]
assert call.function.name == "weather" and "city" in json.loads(call.function.arguments)
assert answer.choices[0].finish_reason == "tool_calls"
print("tools")

answer = litellm.text_completion(
    prompt="def read(", **given | {"model": "text-completion-openai/" + os.environ["MODEL"]}
)
assert isinstance(answer.choices[0].text, str)
print("text completion")

try:
    litellm.completion(messages=[{"role": "user", "content": "word " * 100_000}], **given)
    raise SystemExit("an overlong prompt was taken")
except litellm.ContextWindowExceededError:
    print("overlong prompt: ContextWindowExceededError")
