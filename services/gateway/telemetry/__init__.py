"""Answers that others gave, told in OpenTelemetry's spans and log records."""
