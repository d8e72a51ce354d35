"""The report at the end of the demonstration: numbers, plots, pages."""
