"""What grading stands on: words, JSON values, fields, tool calls, each compared with the right ones. Pure."""
