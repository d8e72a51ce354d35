"""The data of the demonstration: a CSV file, split into parts, and the task made for it."""
