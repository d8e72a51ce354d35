"""trainer: trains a LoRA adapter on a dataset.

consumes  datasets.built · cycles.finished (one that a person ended: its training ends, too)
does      runs a training job in a process of its own (TRL, PEFT); a killed one resumes from its last checkpoint
produces  adapters.trained · steps.progressed · steps.failed
"""
