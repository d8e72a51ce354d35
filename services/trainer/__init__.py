"""trainer: trains a candidate on a data set, by LoRA, QLoRA, full fine-tuning or fusion of adapters.

consumes  datasets.built · cycles.finished (one that a person ended: its training ends, too) · rollouts.changed
does      runs a training job in a process of its own (transformers, PEFT, TRL); a killed one goes on from its
          last checkpoint
produces  adapters.trained · steps.progressed · steps.failed
"""
