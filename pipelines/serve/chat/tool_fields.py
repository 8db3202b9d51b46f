"""The tools of a request, and the choice among them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import ConfigDict, Field, PlainValidator, WithJsonSchema

from pipelines.serve.fields import ApiModel, Flag

MAX_TOOLS = 1024
_WORDS = ("none", "auto", "required")
ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:/-]{1,128}$")]


class FunctionDefinition(ApiModel):
    """A function that the model may call. parameters: a JSON schema."""

    model_config = ConfigDict(extra="allow")

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Flag = None


class Tool(ApiModel):
    """A tool that the model may call."""

    type: Literal["function"] = "function"
    function: FunctionDefinition


class FunctionName(ApiModel):
    """The name of a function."""

    name: str


class NamedToolChoice(ApiModel):
    """The tool that the model has to call."""

    type: Literal["function"] = "function"
    function: FunctionName


class AllowedTools(ApiModel):
    """The tools that may be called. mode: whether one has to be."""

    mode: Literal["auto", "required"] = "auto"
    tools: list[NamedToolChoice]


class AllowedToolChoice(ApiModel):
    """A choice among some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoice = Literal["none", "auto", "required"] | NamedToolChoice | AllowedToolChoice


def parse_tool_choice(value: Any) -> ToolChoice | None:
    """The choice in a field that may be a word, name a function, or list the tools that may be called.

    Objects may also be flat, as the Responses API has them: {"type": "function", "name": ...}.

    Raises:
        ValueError: It is none of these.
    """
    if value is None or isinstance(value, NamedToolChoice | AllowedToolChoice):
        return value
    if isinstance(value, str) and value in _WORDS:
        return cast(ToolChoice, value)
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "function":
        return _named(value)
    if kind == "allowed_tools":
        return _allowed(value)
    raise ValueError(
        f"give {', '.join(_WORDS)}, or an object of the type function, which names it, or of the type allowed_tools"
    )


def _named(value: Any) -> NamedToolChoice:
    kind = value.get("type", "function") if isinstance(value, dict) else None
    function = value.get("function", value) if kind == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise ValueError('a tool is named by {"type": "function", "function": {"name": ...}}')
    return NamedToolChoice(function=FunctionName(name=name))


def _allowed(value: dict[str, Any]) -> AllowedToolChoice:
    listed = value.get("allowed_tools", value)
    tools, mode = (listed.get("tools"), listed.get("mode", "auto")) if isinstance(listed, dict) else (None, None)
    if not isinstance(tools, list) or not 0 < len(tools) <= MAX_TOOLS or mode not in ("auto", "required"):
        raise ValueError(f"allowed_tools needs the mode auto or required, and a list of 1 to {MAX_TOOLS} tools")
    allowed = AllowedTools(mode=mode, tools=[_named(tool) for tool in tools])
    return AllowedToolChoice(type="allowed_tools", allowed_tools=allowed)


_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"enum": list(_WORDS)},
        NamedToolChoice.model_json_schema(),
        {
            "type": "object",
            "properties": {"type": {"const": "allowed_tools"}, "allowed_tools": {"type": "object"}},
            "required": ["type", "allowed_tools"],
        },
        {"type": "null"},
    ]
}
ToolChoiceField = Annotated[ToolChoice | None, PlainValidator(parse_tool_choice), WithJsonSchema(_SCHEMA)]
