"""The data of the demonstration: a CSV file, its split, and the task made for it."""
