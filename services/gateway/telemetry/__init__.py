"""Predictions from OpenTelemetry: spans and log records of model calls that did not go through the gateway."""
