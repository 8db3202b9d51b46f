"""openai (Python): chat, streams, tools, parsed schemas, completions with log probabilities, responses."""

import os

import openai
from pydantic import BaseModel, ConfigDict


class Person(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    age: int


client = openai.OpenAI(base_url=os.environ["URL"] + "/v1", api_key=os.environ["KEY"], _strict_response_validation=True)
model = os.environ["MODEL"]
messages = [{"role": "user", "content": "def read(path):"}]

answer = client.chat.completions.create(model=model, messages=messages, max_tokens=32, temperature=0)
with client.chat.completions.stream(
    model=model, messages=messages, max_tokens=32, temperature=0, stream_options={"include_usage": True}
) as stream:
    list(stream)  # get_final_completion() raises for the finish reason "length"
    final = stream.current_completion_snapshot
assert final.choices[0].message.content == answer.choices[0].message.content and final.usage == answer.usage
print("chat, streamed and whole")

parsed = client.chat.completions.parse(model=model, messages=messages, response_format=Person, max_tokens=200)
assert isinstance(parsed.choices[0].message.parsed, Person)
print("parsed schema")

tool = openai.pydantic_function_tool(Person)
answer = client.chat.completions.parse(
    model=model, messages=messages, tools=[tool], tool_choice="required", parallel_tool_calls=False, max_tokens=200
)
(call,) = answer.choices[0].message.tool_calls
assert isinstance(call.function.parsed_arguments, Person)
print("parsed tool call")

loose = client.with_options()
loose._strict_response_validation = False  # the package's types know no null for the first token of a prompt
whole = loose.completions.create(model=model, prompt=["def", "class"], max_tokens=8, logprobs=2, echo=True, n=2)
assert [choice.index for choice in whole.choices] == [0, 1, 2, 3] and whole.choices[0].logprobs.token_logprobs[
    0
] is None
print("completions, echoed with log probabilities")

response = client.responses.create(model=model, input="def read(path):", max_output_tokens=32, temperature=0)
with client.responses.stream(model=model, input="def read(path):", max_output_tokens=32, temperature=0) as stream:
    text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
assert text == response.output_text  # the helper's final response is there only for answers that are not cut
parsed = client.responses.parse(model=model, input="A person:", text_format=Person, max_output_tokens=200)
assert isinstance(parsed.output_parsed, Person)
print("responses: whole, streamed, parsed")

try:
    client.chat.completions.create(model=model, messages=[{"role": "user", "content": "word " * 100_000}])
    raise SystemExit("an overlong prompt was taken")
except openai.BadRequestError as error:
    assert error.code == "context_length_exceeded"
    print("overlong prompt: context_length_exceeded")
