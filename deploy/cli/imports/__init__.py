"""`ratchet import`: labelled rows of a file become corrections, to be trained on and held out without one review.

commands       what a person types                                           commands.py
files          the lines of a CSV, JSONL or Parquet file                     files.py
rows           a line as a row of the task, or what is wrong with it         rows.py
events         a row as an event: redacted, with ids of its content          events.py
"""
