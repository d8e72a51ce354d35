"""The inspection of a build. Pure.

    gates     of counts, and of what was measured                         counts.py, gates.py
    changes   what differs from the version before                        changes.py
    report    quality.json                                                summaries.py, report.py

A gate that fails stops the build; the report says so to people.
"""
