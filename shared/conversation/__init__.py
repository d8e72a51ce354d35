"""Conversations of events: of rows of the lake, as requests, for chat templates, cut to a size, fit for training."""

from shared.conversation.requests import MAX_COMPARED as MAX_COMPARED
from shared.conversation.requests import LoadPart as LoadPart
from shared.conversation.requests import asked_or_documents as asked_or_documents
from shared.conversation.requests import chat_messages as chat_messages
from shared.conversation.requests import chat_tools as chat_tools
from shared.conversation.requests import comparable_text as comparable_text
from shared.conversation.requests import ends_of as ends_of
from shared.conversation.requests import replay_request as replay_request
from shared.conversation.requests import template_messages as template_messages
from shared.conversation.response_format import form_asked_for as form_asked_for
from shared.conversation.response_format import has_own_form as has_own_form
from shared.conversation.response_format import json_asked_for as json_asked_for
from shared.conversation.response_format import tool_choice_asked_for as tool_choice_asked_for
from shared.conversation.rows import answer_of_row as answer_of_row
from shared.conversation.rows import call_of_row as call_of_row
from shared.conversation.training import NEVER_TRAINED as NEVER_TRAINED
from shared.conversation.training import never_trained as never_trained
from shared.conversation.truncation import QUESTION_BYTES as QUESTION_BYTES
from shared.conversation.truncation import bounded_answer as bounded_answer
from shared.conversation.truncation import bounded_call as bounded_call
