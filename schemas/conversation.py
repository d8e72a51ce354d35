"""Conversations: what a model was asked, and what it answered, in the structure of OpenAI's chat API.

Whichever API a request came by, its event has this one form. It is whole: `shared/conversation/` makes from it the
request that was sent to the model server.
"""

from __future__ import annotations

import json
from collections.abc import Container
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, JsonValue, StringConstraints

from schemas.base import Frozen, Identifier, Text

JsonObject = dict[str, JsonValue]
Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
RoleName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,31}$")]
"""A chat template may know roles of its own, so it is not limited to those of `Role`."""


MAX_SURROGATES = 200
MAX_SURROGATE = 200
"""Characters of a surrogate."""
Surrogates = Annotated[
    tuple[Annotated[str, StringConstraints(min_length=1, max_length=MAX_SURROGATE)], ...],
    Field(max_length=MAX_SURROGATES),
]
"""Made-up data that stands for personal data. It looks real: only a list of it tells the two apart."""


class Role(StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


INSTRUCTIONS: tuple[str, ...] = (Role.SYSTEM, "developer")
"""Roles of messages that instruct and are no turn. The responses API has both names."""


class Media(Frozen):
    """A picture, sound, film or document, or a text as embeddings, by reference: an event never has its bytes."""

    kind: Literal["image", "audio", "video", "document", "text"]
    hash: Identifier = Field(description="Keyed hash of the content, or of the address where the request named one.")
    media_type: Name | None = Field(default=None, description="Such as image/png.")
    size: int | None = Field(default=None, ge=0, description="Bytes; None: the request named an address.")
    key: Name | None = Field(
        default=None, description="Its place in the artifact store, encrypted; None: it was not kept."
    )


class Part(Frozen):
    """One part of a message's content. `type` is the API's: text, refusal, image_url, input_audio, file …"""

    type: Name
    text: Text | None = None
    media: Media | None = None


class ToolCall(Frozen):
    """A call of a tool by the model. `arguments` is JSON as text, as the model wrote it: it may be invalid."""

    name: Name
    arguments: Text = ""
    id: Name | None = None
    type: Literal["function", "custom"] = "function"


class Message(Frozen):
    """One message. `content` has the shape that was sent: a text, or a list of parts."""

    role: RoleName
    content: Text | tuple[Part, ...] | None = None
    name: Name | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: Name | None = Field(default=None, description="The call that a tool's message is the result of.")
    reasoning: Text | None = None
    refusal: Text | None = None

    @property
    def text(self) -> str:
        """Everything that the message says as one text: what people and sentence encoders read."""
        if isinstance(self.content, str) and not self.tool_calls and not self.refusal:
            return self.content  # Nearly all of them, and a build asks for each many times.
        return _joined(_content_text(self.content), self.refusal, _calls_text(self.tool_calls))


Messages = Annotated[tuple[Message, ...], Field(min_length=1)]


class Api(StrEnum):
    """The API by which a request came. `external`: an answer that was made elsewhere."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"
    EXTERNAL = "external"


class Call(Frozen):
    """What the model server was asked, model and media aside.

    Fields that do not change the answer are left out: those that ask for log-probabilities or usage, and who asks.
    """

    api: Api = Api.CHAT
    messages: Messages = Field(description="The conversation as the model received it, system prompt included.")
    tools: tuple[JsonObject, ...] = ()
    tool_choice: JsonValue = None
    response_format: JsonValue = None
    parameters: JsonObject = Field(
        default_factory=dict, description="Every other field that changes the answer: temperature, seed, stop, n …"
    )
    stream: bool = False
    constrained: bool = Field(
        default=False, description="The answer was constrained to the labels of the task's revision."
    )
    truncated: bool = Field(
        default=False, description="Something of it is too long for an event, or nothing that one has."
    )
    surrogates: Surrogates = Field(
        default=(), description="What redaction put in the place of personal data, in the call and in its answers."
    )

    @property
    def is_whole(self) -> bool:
        """True if nothing was cut or left out, so that it may be replayed and trained on."""
        return not self.truncated and not any(
            part.text is None if part.media is None else part.media.key is None
            for message in self.messages if isinstance(message.content, tuple)
            for part in message.content
        )  # fmt: skip


class FinishReason(StrEnum):
    """Why an answer ended. `client_left`: the client disconnected. `upstream_cut`: the model server broke it off.
    `gateway_stopped`: the gateway did, because it had to stop."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"
    CLIENT_LEFT = "client_left"
    UPSTREAM_CUT = "upstream_cut"
    GATEWAY_STOPPED = "gateway_stopped"
    OTHER = "other"


class Answer(Frozen):
    """What a model answered."""

    text: Text = ""
    tool_calls: tuple[ToolCall, ...] = ()
    refusal: Text | None = None
    reasoning: Text | None = None
    truncated: bool = Field(
        default=False, description="Something of it is too long for an event, or nothing that one has."
    )
    finish_reason: FinishReason | None = Field(default=None, description="None: unknown, of an answer made elsewhere.")

    @property
    def is_whole(self) -> bool:
        """True for an answer that ended by itself and is in the event as it was given."""
        ended = self.finish_reason in (FinishReason.STOP, FinishReason.TOOL_CALLS, None)
        return ended and not self.truncated and self.refusal is None

    @property
    def plain(self) -> str:
        """The answer as one text, without its reasoning: what is compared, counted and shown in a line.

        Tool calls are compact JSON without their random ids, so that equal calls are equal texts.
        """
        if not self.refusal and not self.tool_calls:
            return self.text
        return plain_answer(self.text, self.refusal, self.tool_calls)


def plain_answer(text: str, refusal: str | None, tool_calls: tuple[ToolCall, ...]) -> str:
    """Return an answer as one text, see `Answer.plain`."""
    return _joined(text, refusal, _calls_text(tool_calls))


def input_text(messages: tuple[Message, ...], prompts: Container[str] | None = None) -> str:
    """Return the text to compare inputs by: all messages but those system messages that all inputs of a task share.

    `prompts`: the task's system prompts. Another system message, such as a document to be summarised, is part of the
    input. None: no system message is, where only what was asked is shown or clustered.
    """
    texts = [
        message.text
        for message in messages
        if message.role not in INSTRUCTIONS or (prompts is not None and message.text not in prompts)
    ]
    return texts[0] if len(texts) == 1 else "\n".join(texts)


def _content_text(content: str | tuple[Part, ...] | None) -> str:
    """The text of a content: parts are joined by line breaks, as vLLM joins them; media are named in brackets."""
    if isinstance(content, str) or content is None:
        return content or ""
    return "\n".join(
        part.text if part.text is not None else f"[{part.media.kind if part.media else part.type}]" for part in content
    )


def _calls_text(calls: tuple[ToolCall, ...]) -> str:
    if not calls:
        return ""
    named = [{"name": call.name, "arguments": call.arguments} for call in calls]
    return json.dumps(named, ensure_ascii=False, separators=(",", ":"))


def _joined(*texts: str | None) -> str:
    return "\n".join(text for text in texts if text)
