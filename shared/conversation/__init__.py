"""Conversations of events: as requests to a model server, as chat templates take them, and cut to a size."""

from shared.conversation.requests import chat_messages as chat_messages
from shared.conversation.requests import comparable_text as comparable_text
from shared.conversation.requests import replay_request as replay_request
from shared.conversation.requests import template_messages as template_messages
from shared.conversation.truncation import QUESTION_BYTES as QUESTION_BYTES
from shared.conversation.truncation import bounded_answer as bounded_answer
from shared.conversation.truncation import bounded_call as bounded_call
