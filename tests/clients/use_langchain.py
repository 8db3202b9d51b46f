"""langchain-openai: chat, streams with usage, tools, structured output, log probabilities."""

import os

from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


@tool
def add(first: int, second: int) -> int:
    """Adds two numbers."""
    return first + second


class Person(BaseModel):
    name: str
    age: int


model = ChatOpenAI(
    base_url=os.environ["URL"] + "/v1", api_key=os.environ["KEY"], model=os.environ["MODEL"], max_tokens=64, seed=1
)

answer = model.invoke([SystemMessage("Be short."), HumanMessage("def read(path):")])
assert answer.usage_metadata["output_tokens"] > 0 and answer.response_metadata["finish_reason"] in ("stop", "length")
print("invoke")

chunks = list(model.stream("def read(path):", stream_usage=True))
whole = chunks[0]
for chunk in chunks[1:]:
    whole += chunk
assert whole.content == model.invoke("def read(path):").content
assert whole.usage_metadata["total_tokens"] > 0
print("stream with usage")

tooled = model.bind_tools([add], tool_choice="required", parallel_tool_calls=False)
answer = tooled.invoke("What is 1 + 2?")
(call,) = answer.tool_calls
assert call["name"] == "add" and set(call["args"]) == {"first", "second"} and not answer.invalid_tool_calls
result = ToolMessage(add.invoke(call["args"]), tool_call_id=call["id"])
after = model.bind_tools([add], tool_choice="none").invoke([HumanMessage("What is 1 + 2?"), answer, result])
assert not after.tool_calls
streamed = list(tooled.stream("What is 1 + 2?"))
whole = streamed[0]
for chunk in streamed[1:]:
    whole += chunk
assert whole.tool_calls[0]["name"] == "add" and whole.tool_calls[0]["args"] == call["args"]
print("tools: required, results, streamed")

person = model.with_structured_output(Person, method="json_schema").invoke("A person:")
assert isinstance(person, Person)
assert isinstance(model.with_structured_output(Person, method="function_calling").invoke("A person:"), Person)
print("structured output by schema and by function")

answer = model.bind(logprobs=True, top_logprobs=3).invoke("def")
assert len(answer.response_metadata["logprobs"]["content"][0]["top_logprobs"]) == 3
print("log probabilities")
print([len(texts.content) > 0 for texts in model.batch(["def a", "def b", "def c"])] and "batch")
