"""Predictions from OpenTelemetry: spans of model calls that did not go through the gateway."""
