"""Small random base models in Hugging Face layout, made on the spot: real architectures, real tokenizers, no hub."""

from __future__ import annotations

from pathlib import Path

WORDS = [
    "the",
    "a",
    "an",
    "and",
    "or",
    "not",
    "is",
    "was",
    "it",
    "this",
    "that",
    "my",
    "your",
    "our",
    "order",
    "bill",
    "card",
    "refund",
    "late",
    "broken",
    "screen",
    "app",
    "crash",
    "login",
    "password",
    "good",
    "bad",
    "great",
    "awful",
    "love",
    "hate",
    "fast",
    "slow",
    "please",
    "help",
    "thanks",
    "urgent",
    "today",
    "tomorrow",
    "never",
    "always",
    "why",
    "how",
    "price",
    "cheap",
    "money",
    "account",
    "team",
    "phone",
    "email",
    "box",
    "road",
    "day",
    "night",
    "red",
    "blue",
    "big",
    "small",
    "one",
    "two",
    "three",
]


def _write_tokenizer(directory: Path, *, bert: bool) -> int:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] if bert else ["<pad>", "<unk>", "<s>", "</s>"]
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys([*special, *letters, *WORDS]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True)])
    if bert:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
        )
        names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    else:
        names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(directory)
    return len(vocabulary)


def make_tiny_bert(directory: Path, *, hidden: int = 64, layers: int = 2, seed: int = 0) -> Path:
    """Write a random BERT (`hidden` wide, `layers` deep) and its tokenizer; the same bytes for the same arguments."""
    import torch
    from transformers import BertConfig, BertModel

    vocabulary = _write_tokenizer(directory, bert=True)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=vocabulary, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=4,
        intermediate_size=2 * hidden, max_position_embeddings=128, pad_token_id=0,
    )  # fmt: skip
    BertModel(config).save_pretrained(directory)
    return directory


def make_tiny_llama(directory: Path, *, hidden: int = 64, layers: int = 2, seed: int = 0) -> Path:
    """Write a random Llama (`hidden` wide, `layers` deep) and its tokenizer; the same bytes for the same arguments."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    vocabulary = _write_tokenizer(directory, bert=False)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=2 * hidden, max_position_embeddings=256,
        pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory
