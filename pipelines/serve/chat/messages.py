"""Messages of the API as chat templates take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.serve.chat.calls import template_calls
from pipelines.serve.chat.fields import ChatRequest, ContentPart, Message
from pipelines.serve.errors import bad_request

TEXT_TYPES = frozenset({"text", "input_text", "output_text", "refusal"})
IMAGE_TYPES = frozenset({"image_url", "input_image"})
_DEVELOPER = "developer"
_THINKING_SWITCH = "enable_thinking"
# They are arguments of the pipeline, or have fields of their own.
_NO_TEMPLATE_KWARGS = frozenset({"self", "messages", "images", "guard", "allow_control_tokens", "tools", "documents"})


def template_messages(messages: Sequence[Message], template: str = "") -> tuple[list[dict[str, Any]], list[str]]:
    """Converts messages to those that templates take, and lists the images' references in their order.

    Text parts are joined, one a line. The role `developer` becomes `system` where the template does not know it, and
    the system messages with which a conversation begins become one: templates know one, at the beginning.

    Raises:
        ApiError: A part has a type that is not supported, or lacks its content.
    """
    references: list[str] = []
    converted = [_converted(message, f"messages.{i}", references) for i, message in enumerate(messages)]
    _check_no_functions(converted)
    for message in converted:
        if message["role"] == _DEVELOPER and _DEVELOPER not in template:
            message["role"] = "system"
    num_system = next((i for i, message in enumerate(converted) if message["role"] != "system"), len(converted))
    leading = converted[:num_system]
    if len(leading) > 1 and all(isinstance(message["content"], str) for message in leading):
        text = "\n\n".join(message["content"] for message in leading)
        converted[:num_system] = [{**leading[0], "content": text}]
    return converted, references


def begun_answer(body: ChatRequest) -> str:
    """The text of the message that the answer continues; empty if it is a message of its own."""
    if not body.continue_final_message or not body.messages or body.messages[-1].role != "assistant":
        return ""
    content = body.messages[-1].content
    text = content if isinstance(content, str) else "\n".join(part.text or "" for part in content or ())
    return text if text.strip() else ""


def _converted(message: Message, path: str, references: list[str]) -> dict[str, Any]:
    fields = {name: value for name, value in (message.model_extra or {}).items() if value is not None}
    if fields.get("tool_calls"):
        fields["tool_calls"] = template_calls(fields["tool_calls"], f"{path}.tool_calls")
    for name in ("tool_call_id", "name"):
        if not isinstance(fields.get(name, ""), str):
            raise bad_request(f"{path}.{name} must be a string.", f"{path}.{name}")
    if isinstance(fields.get("reasoning"), str):  # templates have the one name or the other
        fields.setdefault("reasoning_content", fields["reasoning"])
    if isinstance(message.content, list):
        content = _content(message.content, f"{path}.content", references)
    else:
        content = message.content or ""
    return {**fields, "role": message.role, "content": content}


def _content(parts: Sequence[ContentPart], path: str, references: list[str]) -> str | list[dict[str, str]]:
    converted: list[dict[str, str]] = []
    for i, part in enumerate(parts):
        if part.type in TEXT_TYPES:
            text = part.text if part.text is not None else (part.model_extra or {}).get(part.type)
            if not isinstance(text, str):
                raise bad_request(f"{path}.{i}: the part has no text.", f"{path}.{i}.text")
            converted.append({"type": "text", "text": text})
        elif part.type in IMAGE_TYPES:
            references.append(_reference(part, f"{path}.{i}.image_url"))
            converted.append({"type": "image"})
        else:
            raise bad_request(f"{path}.{i}: parts of type {part.type[:64]!r} are not supported.", f"{path}.{i}.type")
    if all(part["type"] == "text" for part in converted):
        return "\n".join(part["text"] for part in converted)
    return converted


def _reference(part: ContentPart, path: str) -> str:
    url = part.image_url.get("url") if isinstance(part.image_url, Mapping) else part.image_url
    if not isinstance(url, str):
        raise bad_request(f"{path}: the part has no url.", path)
    return url


def _check_no_functions(messages: Sequence[Mapping[str, Any]]) -> None:
    for i, message in enumerate(messages):
        if message["role"] == "function" or message.get("function_call"):
            path = f"messages.{i}"
            raise bad_request(f"{path}: functions are not supported: give tool_calls and the role 'tool'.", path)


def template_kwargs(body: ChatRequest, template: str) -> dict[str, Any]:
    """The variables of the chat template that a request sets; `reasoning_effort` none turns the thinking off.

    Raises:
        ApiError: One of them is none that a template may see.
    """
    given = {name: value for name, value in (body.chat_template_kwargs or {}).items() if value is not None}
    for name in given:
        if name in _NO_TEMPLATE_KWARGS:
            raise bad_request(f"chat_template_kwargs: {name[:64]} can't be set here.", "chat_template_kwargs")
    options = {name: getattr(body, name) for name in ("documents", "add_generation_prompt", "continue_final_message")}
    if body.reasoning_effort == "none" and _THINKING_SWITCH in template:
        options[_THINKING_SWITCH] = False
    return {name: value for name, value in options.items() if value is not None} | given
