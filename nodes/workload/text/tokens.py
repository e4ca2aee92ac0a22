"""Ids of texts: the shipped tokenizer, and those of models that have their own."""

PAD, BEGIN, END, USER, ASSISTANT = SPECIAL = ("<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>")
"""Of the shipped tokenizer, in the order of their ids."""


def dialogue(prompt: str) -> str:
    """A prompt as the shipped model is asked it: what follows is its answer."""
    return f"{BEGIN}{USER}{prompt}{ASSISTANT}"
