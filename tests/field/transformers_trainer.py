"""The Trainer of Transformers."""

from transformers import Trainer, TrainingArguments

trainer = Trainer(args=TrainingArguments("out"))
