"""Word-level tokenizers and the chat format of the bundled models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.normalizers import Normalizer
from transformers import PreTrainedTokenizerFast


def write_template(media: str) -> str:
    """Turns of <user> and <assistant>; media: the clauses of a part that is not text."""
    return (
        "{{ bos_token }}{% for message in messages %}{{ '<' + message['role'] + '>' }}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        f"{{% for part in message['content'] %}}{media}"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
        "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
    )


def build_tokenizer(words: Sequence[str], normalizer: Normalizer, **options: Any) -> PreTrainedTokenizerFast:
    """One token for each of the words, special ones first."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.normalizer = normalizer
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, padding_side="left", **marks, **options)
