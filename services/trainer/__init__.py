"""trainer: a dataset becomes a LoRA adapter.

consumes  datasets.built
does      runs a training job in a process of its own (TRL, PEFT), resumed where it was if the process is killed
produces  adapters.trained · steps.progressed · steps.failed
"""
