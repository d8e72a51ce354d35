"""Parts of the evaluation set that are looked at by themselves: which of them are judged, and rows by language."""
