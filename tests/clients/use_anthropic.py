"""anthropic: messages, streams, count_tokens, tools, exceptions."""

import os

import anthropic

client = anthropic.Anthropic(base_url=os.environ["URL"], api_key=os.environ["KEY"])
model = os.environ["MODEL"]
messages = [{"role": "user", "content": "def read(path):"}]

answer = client.messages.create(
    model=model, max_tokens=32, messages=messages, system="Be short.", extra_body={"temperature": 0}
)
assert answer.type == "message" and answer.usage.output_tokens > 0
assert answer.stop_reason in ("end_turn", "max_tokens")
print("create")

with client.messages.stream(
    model=model, max_tokens=32, messages=messages, system="Be short.", extra_body={"temperature": 0}
) as stream:
    text = "".join(stream.text_stream)
    final = stream.get_final_message()
assert text == "".join(block.text for block in answer.content if block.type == "text")
assert final.stop_reason == answer.stop_reason and final.usage.output_tokens == answer.usage.output_tokens
print("stream")

count = client.messages.count_tokens(model=model, messages=messages, system="Be short.").input_tokens
assert count == answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0)
print("count_tokens")

schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}}, "required": ["city"]}
tool = {"name": "weather", "description": "Tells the weather.", "input_schema": schema}
answer = client.messages.create(
    model=model,
    max_tokens=64,
    messages=messages,
    tools=[tool],
    tool_choice={"type": "any", "disable_parallel_tool_use": True},
)
call = next(block for block in answer.content if block.type == "tool_use")
assert call.name == "weather" and isinstance(call.input["city"], str) and answer.stop_reason == "tool_use"
history = [
    *messages,
    {"role": "assistant", "content": [block.model_dump() for block in answer.content]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "rain"}]},
]
client.messages.create(model=model, max_tokens=8, messages=history, tools=[tool], tool_choice={"type": "none"})
print("tools: forced, results")

try:
    client.messages.create(model=model, max_tokens=8, messages=[{"role": "user", "content": "word " * 100_000}])
    raise SystemExit("an overlong prompt was taken")
except anthropic.BadRequestError:
    print("overlong prompt: BadRequestError")
try:
    anthropic.Anthropic(base_url=os.environ["URL"], api_key="wrong").messages.create(
        model=model, max_tokens=8, messages=messages
    )
    raise SystemExit("a wrong key was taken")
except anthropic.AuthenticationError:
    print("wrong key: AuthenticationError")
